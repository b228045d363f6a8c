"""What evaluation.json says: questions to an evaluation, each answered with a number or with None."""

from collections.abc import Mapping
from typing import Any

from palora.results.pages.run_folder import finite, interval, mapping, measured
from palora.results.plots.style import Style, arm_styles

GOAL = 0.95  # the share of facts learned, and of skill kept, that counts as reached
UNTRAINED = ("base", "expert")  # arms that no facts were taught to


class Results:
    """An evaluation, to be asked.

    `subject` is the arm the report is about, and the first of `arms`, before the others that were taught; `control` is
    the one it is compared with (None where there is none). `expert_skill` is the skill that the expert was trained on
    (None without an expert).
    """

    def __init__(self, evaluation: Mapping[str, Any]) -> None:
        arms = measured(evaluation)
        self.styles: dict[str, Style] = arm_styles(arms)
        trained = [arm for arm in arms if arm not in UNTRAINED]
        self.subject = "palora" if "palora" in arms else (trained or list(arms))[-1]
        self._arms = {arm: arms[arm] for arm in [self.subject, *trained, *arms]}
        self._retention = mapping(evaluation.get("retention"))
        self._update = mapping(evaluation.get("update"))
        self._taught = mapping(evaluation.get("taught"))
        self.arms = list(self._arms)
        skills = [mapping(values.get("skills")) for values in self._arms.values()]
        self.skills = list(dict.fromkeys(skill for found in skills for skill in found))
        # Where it is not written which skill the expert was trained on: a recipe's first one.
        expert = mapping(evaluation.get("expert"))
        first = self.skills[0] if self.skills and "expert" in self._arms else None
        self.expert_skill = str(expert["skill"]) if expert.get("skill") else first
        self._on_expert = expert.get("taught", [*self.arms])
        self.control = "lora" if "lora" in self._arms and self.subject != "lora" else None

    def label(self, arm: str) -> str:
        return self.styles[arm].label

    def reference(self, skill: str) -> str:
        """The arm whose `skill` counts as 100%: the expert for the skill that it was trained on, where the facts were
        taught on it; for every other skill the base, which is what there was."""
        trained = skill == self.expert_skill and self.subject in [*self._on_expert, *UNTRAINED]
        return "expert" if trained and self.accuracy("expert", skill) is not None else "base"

    def learned_none(self, arm: str) -> bool:
        """Whether an arm was trained and learned nothing: that the skill was kept then says nothing."""
        return arm not in UNTRAINED and self.measure(arm, "recall") == 0

    def measure(self, arm: str, name: str) -> float | None:
        """A share, as recall, old_answer or locality (`results/evaluation.py`), or how many: n_facts, n_known."""
        return finite(self._arms.get(arm, {}).get(name))

    def recall_interval(self, arm: str) -> tuple[float, float] | None:
        return interval(self._arms.get(arm, {}).get("recall_ci95"))

    def _skill(self, arm: str, skill: str) -> dict[str, Any]:
        return mapping(mapping(self._arms.get(arm, {}).get("skills")).get(skill))

    def accuracy(self, arm: str, skill: str) -> float | None:
        return finite(self._skill(arm, skill).get("accuracy"))

    def answer_words(self, arm: str, skill: str) -> float | None:
        """Words an answer to the skill's problems."""
        return finite(self._skill(arm, skill).get("words"))

    def taught(self, arm: str) -> dict[str, int]:
        """How many facts were taught in which words."""
        return {how: int(n) for how, n in mapping(self._taught.get(arm)).items() if isinstance(n, int)}

    def accuracy_interval(self, arm: str, skill: str) -> tuple[float, float] | None:
        return interval(self._skill(arm, skill).get("ci95"))

    def problems(self, skill: str) -> int | None:
        """How many problems the skill was measured on (the smallest number over the arms)."""
        counts = [finite(self._skill(arm, skill).get("n")) for arm in self.arms]
        return min((int(count) for count in counts if count is not None), default=None)

    def kept(self, arm: str, skill: str, reference: str | None = None) -> float | None:
        """The arm's skill as a share of `reference`'s (the skill's own): from "retention", or from the accuracies."""
        reference = reference or self.reference(skill)
        stored = mapping(mapping(self._retention.get(arm)).get(skill)).get(f"vs_{reference}")
        if (share := finite(stored)) is not None:
            return share
        own, whole = self.accuracy(arm, skill), self.accuracy(reference, skill)
        return None if own is None or not whole else own / whole

    def kept_interval(self, arm: str, skill: str) -> tuple[float, float] | None:
        """The interval of the arm's accuracy over the reference's accuracy, which is taken as exact."""
        own, whole = self.accuracy_interval(arm, skill), self.accuracy(self.reference(skill), skill)
        return None if own is None or not whole else (own[0] / whole, own[1] / whole)

    def known(self, arm: str) -> float | None:
        """The share of the known facts that are still answered right, of those that the base answers."""
        now, before = self.measure(arm, "locality"), self.measure("base", "locality")
        return None if now is None or not before else now / before

    def known_interval(self, arm: str) -> tuple[float, float] | None:
        """The interval of `known`, which takes the base's share as exact."""
        own, before = interval(self._arms.get(arm, {}).get("locality_ci95")), self.measure("base", "locality")
        return None if own is None or not before else (own[0] / before, own[1] / before)

    def judged(self, arm: str, task: str, metric: str) -> dict[str, Any]:
        """What lm-eval found: value and stderr of a metric of one of its tasks."""
        own = mapping(mapping(mapping(self._arms.get(arm)).get("harness")).get(task))
        return mapping(mapping(own.get("metrics")).get(metric))

    @property
    def harness(self) -> list[tuple[str, str, Any, Any]]:
        """Every metric of lm-eval's tasks, in its order: (task, metric, questions, the task's version)."""
        found: dict[tuple[str, str], tuple[str, str, Any, Any]] = {}
        for values in self._arms.values():
            for task, own in mapping(values.get("harness")).items():
                for metric in mapping(mapping(own).get("metrics")):
                    told = (task, metric, mapping(own).get("n"), mapping(own).get("version"))
                    found.setdefault((task, metric), told)
        return list(found.values())

    def update(self, arm: str, name: str) -> Any:
        """rule, leak, drift, norm, relative_norm or parameters of a trained arm."""
        return mapping(self._update.get(arm)).get(name)

    def loss(self, arm: str) -> dict[str, float]:
        """What stood in a trained arm's loss beside the facts, by its weight."""
        weights = {term: finite(weight) for term, weight in mapping(self.update(arm, "loss")).items()}
        return {term: weight for term, weight in weights.items() if weight is not None}

    def layers(self, name: str) -> dict[str, dict[str, float]]:
        """{arm: {matrix: value}} of leak, drift, norm or relative_norm, without the missing ones."""
        found: dict[str, dict[str, float]] = {}
        for arm in self.arms:
            for module, values in mapping(self.update(arm, "layers")).items():
                if (value := finite(mapping(values).get(name))) is not None:
                    found.setdefault(arm, {})[module] = value
        return found
