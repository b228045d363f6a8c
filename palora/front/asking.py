"""Ask the arms of a finished run: the model as it was, plain LoRA where the run has it, palora, side by side.

The model is loaded once and its adapters are switched (with an expert there are two models). Prompts and answers are
made as the measuring makes them, greedily, so they are those of `evaluation.json`; only an answer that was cut there is
longer here. In bfloat16 a question asked alone is rounded otherwise than in a batch, and a long answer may take another
turn.
"""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from palora.common.errors import InputError
from palora.common.files import read_json
from palora.front.stages import adapter_record, check_adapter
from palora.language.generation import complete
from palora.language.models import load_model
from palora.language.prompts import encode_prompt, set_chat
from palora.results.pages.run_folder import measured
from palora.results.updates import MARKER as ADAPTER
from palora.results.updates import read_record
from palora.training.svf import MARKER as EXPERT
from palora.training.svf import MODEL, Expert

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MAX_NEW_TOKENS = 256


@dataclass(frozen=True)
class _Loaded:
    """A model in memory, and the arms that it can be: by name the adapter's in PEFT, or None for the model itself."""

    model: Any
    tokenizer: "PreTrainedTokenizerBase"
    arms: Mapping[str, str | None]

    def switched(self, arm: str) -> AbstractContextManager[Any]:
        """While open, the model is that arm."""
        adapter = self.arms[arm]
        if adapter is not None:
            self.model.set_adapter(adapter)
            return nullcontext()
        return self.model.disable_adapter() if any(self.arms.values()) else nullcontext()


class Arms:
    """The arms of a run, ready to answer.

    Args:
        run: a run folder, of `palora run` or made stage by stage.
        model: where the model is now, if it has moved.

    Raises: InputError where the run is not finished, or holds no adapter, or its model is gone or another one.
    """

    def __init__(self, run: Path, model: str | None = None) -> None:
        measured, adapters = _measured(run), _adapters(run)
        adapters = {arm: folder for arm, folder in adapters.items() if arm in measured}
        if not adapters:
            raise InputError(f"{run}: there is no adapter of this run in it; run it again, or give another run")
        records = {arm: adapter_record(folder) for arm, folder in adapters.items()}
        expert = _expert(run, records)
        on_expert = [arm for arm, own in records.items() if expert and Expert.load(expert).is_base_of(own)]
        on_base = [arm for arm in adapters if arm not in on_expert]
        some = next(iter(records.values()))
        base = model or (Expert.load(expert).record["model"] if expert else some["model"])
        if Path(base).is_absolute() and not Path(base).is_dir():
            raise InputError(f"the model of this run is no longer at {base}; say where it is by --model")

        def load(itself: str, name: str, names: Sequence[str]) -> _Loaded:
            return _load(itself, name, {arm: (adapters[arm], records[arm]) for arm in names}, some)

        self._loaded = [load("base", base, on_base)]
        if expert:
            self._loaded.append(load("expert", str(expert / MODEL), on_expert))
        there = {arm for loaded in self._loaded for arm in loaded.arms}
        self.names = [arm for arm in measured if arm in there]

    def ask(self, question: str, max_new_tokens: int = MAX_NEW_TOKENS) -> dict[str, str]:
        """What every arm answers, by its name. Raises InputError where the question is longer than the model reads."""
        said = {}
        for loaded in self._loaded:
            prompt = encode_prompt(loaded.tokenizer, question)
            limit = getattr(loaded.model.config, "max_position_embeddings", None) or len(prompt) + max_new_tokens
            if len(prompt) >= limit:
                raise InputError(f"the question is longer than the model's {limit} tokens; shorten it")
            for arm in loaded.arms:
                with loaded.switched(arm):
                    longest = min(max_new_tokens, limit - len(prompt))
                    (said[arm],) = complete(loaded.model, loaded.tokenizer, [prompt], longest)
        return {arm: said[arm] for arm in self.names}


def _measured(run: Path) -> list[str]:
    """The arms that a run has measured. Raises InputError where it is no run, or not finished."""
    if not run.is_dir():
        raise InputError(f"{run}: no such folder; give the folder of a run (runs/…)")
    if not (run / "evaluation.json").exists():
        begun = (run / "recipe.yaml").exists()
        todo = "it is not finished; start it again and it continues" if begun else "give the folder of a finished run"
        raise InputError(f"{run}: there is no evaluation.json in it: {todo}")
    return list(measured(read_json(run / "evaluation.json", "arms")))


def _adapters(run: Path) -> dict[str, Path]:
    """The adapters that were measured, by their arm. With an expert, `adapter/` is another form of palora's."""
    markers = [*run.glob(f"arms/*/adapter/{ADAPTER}"), *run.glob(f"*/{ADAPTER}")]
    found = [(read_record(marker.parent), marker.parent) for marker in sorted(markers)]
    return {str(own.get("arm")): folder for own, folder in found if "combined" not in own}


def _expert(run: Path, records: Mapping[str, Mapping[str, Any]]) -> Path | None:
    """The expert's folder: in the run, or where an adapter says."""
    named = [Path(own["model"]).parent for own in records.values()]
    return next((folder for folder in (run / "expert", *named) if (folder / EXPERT).exists()), None)


def _load(itself: str, name: str, on_it: Mapping[str, tuple[Path, Any]], record: Mapping[str, Any]) -> _Loaded:
    """A model with its adapters; `record` says how it was asked, and in which dtype."""
    from peft import PeftModel

    model, tokenizer = load_model(name, record.get("dtype") or "auto", load=record.get("load"))
    asked = record.get("prompts") or {}
    set_chat(tokenizer, asked.get("chat_template_kwargs"), asked.get("system_message"))
    tuned: Any = model
    arms: dict[str, str | None] = {itself: None}
    for folder, own in on_it.values():  # before anything is put into the model
        check_adapter(model, own, folder, name)
    for number, (arm, (folder, _)) in enumerate(on_it.items()):
        arms[arm] = f"arm{number}"  # an arm's name may hold a dot, PEFT's may not
        if number == 0:
            tuned = PeftModel.from_pretrained(model, str(folder), adapter_name=arms[arm])
        else:
            tuned.load_adapter(str(folder), adapter_name=arms[arm])
    return _Loaded(tuned.eval(), tokenizer, arms)
