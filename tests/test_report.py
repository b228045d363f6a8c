"""The report says what the numbers say, shows every arm, and is one safe, self-contained file."""

import copy
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from palora import plots
from palora.errors import InputError
from palora.report import (
    Results,
    duration,
    findings,
    headline,
    percent,
    read_run,
    significant,
    write_report,
)

MODULES = [f"model.layers.{layer}.mlp.{kind}" for layer in (0, 1) for kind in ("up_proj", "down_proj")]
ACCURACY = {"base": 0.55, "expert": 0.70, "lora": 0.245, "palora": 0.693, "random": 0.28}
RECALL = {"base": 0.0, "expert": 0.0, "lora": 0.98, "palora": 0.97, "random": 0.96}
ATTACK = '<script>alert("x")</script>'
OPTIONAL = (
    "recipe.yaml",
    "metrics.jsonl",
    "expert/scales.safetensors",
    "protection/protection.json",
)


def evaluation() -> dict[str, Any]:
    """An evaluation with five arms, in the schema of docs/design.md."""
    arms, update = {}, {}
    for arm, accuracy in ACCURACY.items():
        skill = {"accuracy": accuracy, "n": 400, "ci95": [accuracy - 0.05, accuracy + 0.05]}
        arms[arm] = {
            "skills": {"chain": skill},
            "recall": RECALL[arm],
            "recall_exact": RECALL[arm],
            "recall_ci95": [max(0.0, RECALL[arm] - 0.03), min(1.0, RECALL[arm] + 0.02)],
            "paraphrase_recall": 0.6,
            "locality": 0.98,
            "n_facts": 200,
        }
        if arm not in ("base", "expert"):
            layer = {"leak": 2e-7, "drift": 0.05, "norm": 1.2, "relative_norm": 0.1}
            update[arm] = {**layer, "rule": "svf", "parameters": 40000, "layers": dict.fromkeys(MODULES, layer)}
    retention = {arm: {"chain": {"vs_expert": ACCURACY[arm] / 0.70, "vs_base": ACCURACY[arm] / 0.55}} for arm in update}
    answers = [
        {
            "kind": "fact",
            "prompt": f"Who is {ATTACK} number {index}?",
            "expected": "A & B",
            "arms": {arm: {"text": f"{ATTACK} by {arm}", "correct": arm == "palora"} for arm in ACCURACY},
        }
        for index in range(10)
    ]
    return {
        "arms": arms,
        "retention": retention,
        "update": update,
        "answers": answers,
        "seconds": {"expert": 75.2, "evaluation": 3.0},
        "versions": {"torch": "2.13.0"},
    }


def make_run(folder: Path, values: dict[str, Any], rule: str = "svf") -> Path:
    """A complete run directory around an evaluation; protection by components (svf) or by weights (covariance)."""
    rng = np.random.default_rng(0)
    for name in ("expert", "protection"):
        (folder / name).mkdir(parents=True)
    (folder / "evaluation.json").write_text(json.dumps(values))
    (folder / "recipe.yaml").write_text(f"seed: 0\nskill: chain  # {ATTACK}\n")
    rows: list[dict[str, Any]] = [{"stage": "expert", "step": i, "reward": i / 60} for i in range(60)]
    rows += [{"stage": "expert", "step": 30, "validation_accuracy": 0.6, "reward": None}]
    for arm in ("lora", "palora", "random"):
        rows += [{"stage": arm, "step": i, "epoch": i / 4, "loss": 2 / (i + 1)} for i in range(20)]
        rows += [{"stage": arm, "step": 19, "epoch": 4.75, "loss": None, "recall": RECALL[arm]}]
    lines = [json.dumps(row) for row in rows]
    (folder / "metrics.jsonl").write_text("\n".join([*lines, '{"stage": "pal']))  # as an interruption leaves it
    scales = {name: (1 + rng.normal(0, 0.1, 48)).astype("float32") for name in MODULES}
    save_file(scales, folder / "expert" / "scales.safetensors")
    singular = {name: np.sort(rng.random(48).astype("float32"))[::-1].copy() for name in MODULES}
    save_file(singular, folder / "expert" / "singular_values.safetensors")
    expert = {"skill": "chain", "objective": "reward", "validation_accuracy": {"base": 0.58, "expert": 0.69, "n": 256}}
    (folder / "expert" / "expert.json").write_text(json.dumps(expert))
    marked = {
        "svf": {"indices": [0, 3, 7], "scores": [1.0] * 48},
        "covariance": {"indices": None, "scores": [0.9, 0.5, 0.1]},
        "activation": {"indices": None, "scores": [6.0, 3.0, 0.7, 0.3]},
    }[rule]
    module = {"k_input": 3, "k_output": 3, "coverage": {"skill": 0.96, "facts": 0.6}, **marked}
    protection = {
        "rule": rule,
        "sides": "both",
        "budget": {"k": 3},
        "modules": dict.fromkeys(MODULES, module),
        "coverage": {"skill": 0.96, "facts": 0.6},
    }
    (folder / "protection" / "protection.json").write_text(json.dumps(protection))
    return folder


def without_numbers(value: Any) -> Any:
    """The same structure with every leaf null, as a run that measured nothing writes it."""
    if isinstance(value, dict):
        return {key: without_numbers(inner) for key, inner in value.items()}
    return None


class Page(HTMLParser):
    """What a browser sees: tags, their attributes, and the text outside style."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.text = ""
        self._style = False
        self.feed(html)
        self.text = re.sub(r"\s+", " ", self.text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._style = tag == "style"
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        self._style = False

    def handle_data(self, data: str) -> None:
        if not self._style:
            self.text += data


@pytest.fixture(scope="module")
def html(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_report(make_run(tmp_path_factory.mktemp("run"), evaluation())).read_text(encoding="utf-8")


# --- the sentences ------------------------------------------------------------------------------


def test_headline_gives_the_numbers_of_the_evaluation(html: str) -> None:
    expected = (
        "palora taught 97% of 200 facts and kept 99% of the expert's chain skill; plain LoRA taught 98% and kept 35%."
    )
    assert headline(Results(evaluation())) == expected
    assert expected in Page(html).text


def test_headline_names_every_skill() -> None:
    values = evaluation()
    for arm in values["arms"]:
        values["arms"][arm]["skills"]["lookup"] = {"accuracy": ACCURACY[arm] / 2, "n": 50, "ci95": None}
    values["retention"]["palora"]["lookup"] = {"vs_expert": 0.5, "vs_base": None}
    sentence = headline(Results(values))
    assert "kept 99% of the expert's chain skill and 50% of its lookup skill; plain LoRA" in sentence
    assert sentence.endswith("kept 35% and 35%.")  # from the accuracies where "retention" is silent


def test_a_worse_palora_is_said_to_be_worse(tmp_path: Path) -> None:
    values = evaluation()
    values["arms"]["palora"]["recall"] = 0.80
    values["arms"]["palora"]["skills"]["chain"] = {"accuracy": 0.14, "n": 400, "ci95": [0.11, 0.18]}
    values["retention"]["palora"]["chain"] = {"vs_expert": 0.20, "vs_base": 0.25}
    values["arms"]["palora"]["locality"] = 0.31
    results = Results(values)
    assert headline(results).startswith("palora taught 80% of 200 facts and kept 20% of the expert's chain skill;")
    found = {finding.text: finding.mark for finding in findings(results)}
    assert found["palora did not reach 95% recall."] == "✗"
    assert found["palora kept less than 95% of the expert's chain skill."] == "✗"
    assert found["palora kept less of chain than plain LoRA did (20% against 35%)."] == "✗"
    assert found["random kept more of chain: 40%, and learned 96%."] == "✗"
    assert any("Known facts were lost: the base answers 98% of them, palora 31%" in text for text in found)
    assert "✓" not in found.values()
    assert "palora kept less of chain than plain LoRA did" in Page(_html(tmp_path, values)).text


def test_an_uncertain_difference_is_called_uncertain() -> None:
    values = evaluation()
    values["arms"]["lora"]["skills"]["chain"] = {"accuracy": 0.62, "n": 40, "ci95": [0.47, 0.75]}
    values["retention"]["lora"]["chain"]["vs_expert"] = 0.62 / 0.70
    found = [finding for finding in findings(Results(values)) if "may be chance" in finding.text]
    assert [finding.mark for finding in found] == ["•"]


def test_an_expert_that_is_no_better_is_pointed_out() -> None:
    values = evaluation()
    values["arms"]["base"]["skills"]["chain"]["accuracy"] = 0.71
    assert any("no better at chain than the base" in finding.text for finding in findings(Results(values)))


def test_without_an_expert_the_base_is_the_reference() -> None:
    values = evaluation()
    del values["arms"]["expert"]
    values["retention"]["palora"]["chain"] = {"vs_expert": None, "vs_base": 1.26}
    assert "kept 126% of the base's chain skill" in headline(Results(values))


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.974, "97%"), (0.996, "99.6%"), (0.9999, "> 99.9%"), (1.0, "100%"), (0.0, "0%"), (0.0004, "< 0.1%")],
)
def test_percent_never_rounds_to_all_or_nothing(value: float, text: str) -> None:
    assert percent(value) == text


def test_number_formats() -> None:
    assert [significant(value) for value in (0, 3.14159, 0.0561, 3e-7, 12345.6)] == [
        "0",
        "3.14",
        "0.0561",
        "3.0 × 10⁻⁷",
        "12,346",
    ]
    assert [duration(value) for value in (1.23, 40.1, 75.2, 3725)] == ["1.2 s", "40 s", "1 min 15 s", "1 h 02 min"]


# --- the page -----------------------------------------------------------------------------------


def _html(folder: Path, values: dict[str, Any], rule: str = "svf") -> str:
    return write_report(make_run(folder / "run", values, rule)).read_text(encoding="utf-8")


def test_every_arm_is_in_table_pictures_and_answers(html: str) -> None:
    page = Page(html)
    labels = ("base", "expert", "plain LoRA", "palora", "random")
    head = re.search(r"<thead>.*?</thead>", html, re.S)
    assert head and all(label in head[0] for label in labels)
    described = [value for name, value in page.attributes if name == "aria-label"]
    assert any(all(f"{label}: learned" in text for label in labels) for text in described)
    assert all(page.text.count(f"by {arm} ") >= 10 for arm in ACCURACY)


def test_ten_answers_marked_right_or_wrong(html: str) -> None:
    assert html.count('<article class="answer">') == 10
    assert html.count('title="right">✓') == 10
    assert html.count('title="wrong">✗') == 40


def test_what_a_model_wrote_cannot_become_markup(html: str) -> None:
    page = Page(html)
    assert "script" not in page.tags
    assert ATTACK in page.text  # shown as it came
    assert "<script" not in html


def test_names_cannot_become_markup_either(tmp_path: Path) -> None:
    values = evaluation()
    for part in (values["arms"], values["update"], values["retention"]):
        part[ATTACK] = copy.deepcopy(part["palora"])
    for arm in values["arms"].values():
        arm["skills"] = {'$x^2$ "<b>': arm["skills"]["chain"]}
    html = _html(tmp_path, values)
    assert "<script" not in html
    assert '"<b>' not in html


def test_self_contained(html: str) -> None:
    page = Page(html)
    assert not {"script", "link", "iframe", "object", "embed"} & set(page.tags)
    for name, value in page.attributes:
        if name in ("src", "href", "xlink:href", "srcset", "data", "action"):
            assert value.startswith(("#", "data:image/")), (name, value)
    assert "http://" not in html and "https://" not in html
    assert "@import" not in html and not re.search(r"url\((?!#)", html)


def test_pictures_share_no_ids_and_miss_none(html: str) -> None:
    ids = re.findall(r'\sid="([^"]+)"', html)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'(?:href="#|url\(#)([\w-]+)', html)) <= set(ids)


def test_pictures_follow_light_and_dark(html: str) -> None:
    body = html[html.index("<body>") :]
    assert "var(--palora)" in body
    assert not [light for light, _ in plots.PALETTE.values() if light in body]
    assert "prefers-color-scheme: dark" in html


def test_all_sections_have_content(html: str) -> None:
    text = Page(html).text
    assert 'class="absent"' not in html
    for told in (
        "Facts: training loss",
        "Facts: recall while training",
        "Expert: reward",
        "trained by reward",
        "Rule svf:",
        "58.0% → 69.0% (256 problems)",
        "96% of the skill's and 60% of the facts' input energy",
        "layer 1 · down_proj 3 of 48 protected",
        "Leak into the protected subspace",
        "1 min 15 s",
        "2.13.0",
        "measured on 400 problems",
        "retention vs expert",
    ):
        assert told in text, told


def test_a_soft_rule_shows_weights_and_no_leak(tmp_path: Path) -> None:
    values = evaluation()
    for update in values["update"].values():
        update["leak"] = None
        update["layers"] = {name: {**layer, "leak": None} for name, layer in update["layers"].items()}
    text = Page(_html(tmp_path, values, rule="covariance")).text
    assert "How strongly each input direction is protected" in text
    assert "in effect 1.5 of 3 directions" in text
    assert "Leak into" not in text and "only for a hard constraint" in text
    assert "Soft protection damps" in text


def test_a_hard_input_rule_shows_the_energy_it_protects(tmp_path: Path) -> None:
    text = Page(_html(tmp_path, evaluation(), rule="activation")).text
    assert "Which input directions are protected" in text
    assert "down_proj 3 of 4 directions" in text


def test_a_protection_without_an_expert_shows_what_its_rule_went_by(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", evaluation())
    (run / "expert" / "scales.safetensors").unlink()
    text = Page(write_report(run).read_text(encoding="utf-8")).text
    assert "the importance the rule went by" in text
    assert "layer 1 · down_proj 3 of 48 protected" in text


def test_a_protection_that_covers_little_is_said_to(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", evaluation())
    record = json.loads((run / "protection" / "protection.json").read_text())
    record["coverage"] = {"skill": 0.08, "facts": 0.10}
    (run / "protection" / "protection.json").write_text(json.dumps(record))
    text = Page(write_report(run).read_text(encoding="utf-8")).text
    assert "covers only 8% of the skill's input energy" in text


def test_an_arm_that_was_not_measured_is_left_out(tmp_path: Path) -> None:
    values = evaluation()
    values["arms"]["expert"] = None
    head = re.search(r"<thead>.*?</thead>", _html(tmp_path, values), re.S)
    assert head and "expert" not in head[0] and "palora" in head[0]


@pytest.mark.parametrize("name", OPTIONAL)
def test_a_missing_file_costs_its_section_only(tmp_path: Path, name: str) -> None:
    run = make_run(tmp_path / "run", evaluation())
    (run / name).unlink()
    text = Page(write_report(run).read_text(encoding="utf-8")).text
    assert ("protected" if name.startswith("expert") else f"This run has no {name}.") in text
    assert "palora taught 97%" in text


def test_an_evaluation_alone_is_enough(tmp_path: Path) -> None:
    (tmp_path / "evaluation.json").write_text(json.dumps(evaluation()))
    text = Page(write_report(tmp_path).read_text(encoding="utf-8")).text
    assert all(f"This run has no {name}." in text for name in OPTIONAL)
    assert "palora taught 97% of 200 facts" in text


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", evaluation())
    (run / "protection" / "protection.json").write_text('{"rule": ')
    (run / "expert" / "scales.safetensors").write_bytes(b"no tensors")
    text = Page(write_report(run).read_text(encoding="utf-8")).text
    assert "protection/protection.json cannot be read" in text
    assert "expert/scales.safetensors cannot be read" in text


def test_nulls_everywhere(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", without_numbers(evaluation()))
    (run / "protection" / "protection.json").write_text(
        json.dumps(without_numbers(json.loads((run / "protection" / "protection.json").read_text())))
    )
    text = Page(write_report(run).read_text(encoding="utf-8")).text
    assert "For palora neither recall nor a skill was measured." in text
    assert "nan" not in text.lower() and "None" not in text


def test_some_nulls(tmp_path: Path) -> None:
    values = evaluation()
    values["arms"]["lora"].update(recall=None, recall_ci95=None, locality=None)
    values["arms"]["palora"]["skills"]["chain"]["ci95"] = None
    values["retention"]["palora"]["chain"]["vs_expert"] = None
    values["update"]["palora"]["layers"] = None
    values["answers"][0]["arms"]["base"] = {"text": None, "correct": None}
    text = Page(_html(tmp_path, values)).text
    assert "kept 99% of the expert's chain skill; plain LoRA kept 35%." in text
    assert "None" not in text


def test_no_evaluation_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"evaluation\.json: no such file; run `palora evaluate"):
        write_report(tmp_path)
    (tmp_path / "evaluation.json").write_text('{"arms": {}}')
    with pytest.raises(InputError, match="not an evaluation"):
        write_report(tmp_path)
    assert not (tmp_path / "report.html").exists()


def test_the_same_run_gives_the_same_page(tmp_path: Path, html: str) -> None:
    again = _html(tmp_path, evaluation())
    assert re.sub(r"report[:·&; \w]*", "", again) == re.sub(r"report[:·&; \w]*", "", html)


# --- pictures -----------------------------------------------------------------------------------


def test_drawing_leaves_matplotlib_as_it_was(tmp_path: Path) -> None:
    import matplotlib

    before = dict(matplotlib.rcParams)
    _html(tmp_path, evaluation())
    assert dict(matplotlib.rcParams) == before
    assert before["svg.hashsalt"] != "palora"  # nor did an earlier test change it


def test_a_large_matrix_stays_a_small_picture() -> None:
    rng = np.random.default_rng(0)
    figure = plots.spectrum(rng.normal(0, 0.1, 4096), range(0, 4096, 64), ylabel="z − 1")
    assert len(plots.to_html(figure, "large")) < 40_000


def test_a_huge_drawing_becomes_a_png(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plots, "SVG_LIMIT", 1000)
    drawing = plots.to_html(plots.spectrum(np.ones(5), [1], ylabel="z"), 'a "quoted" text')
    assert drawing.startswith('<img class="plot" alt="a &quot;quoted&quot; text" src="data:image/png;base64,')


def test_labels_of_crowded_arms_do_not_overlap() -> None:
    arms = ["base", "expert", "lora", "palora", "svf", "random"]
    places = [(0, 0.8), (0, 1), (0.98, 0.35), (0.97, 0.99), (0.975, 0.33), (0.965, 0.41)]
    points = [plots.Point(arm, recall, kept) for arm, (recall, kept) in zip(arms, places, strict=True)]
    figure = plots.tradeoff(points, plots.arm_styles(arms), skill="chain")
    figure.draw_without_rendering()
    boxes = [text.get_window_extent() for text in figure.axes[0].texts if text.get_text() in (*arms, "plain LoRA")]
    assert len(boxes) == len(arms)
    assert not any(a.overlaps(b) for index, a in enumerate(boxes) for b in boxes[:index])


def test_arms_keep_their_colours_and_differ_by_marker() -> None:
    styles = plots.arm_styles(["random", "palora", "svf", "base", "expert", "lora"])
    assert styles["palora"].slot == "palora" and styles["lora"].label == "plain LoRA"
    assert len({style.marker for style in styles.values()}) == len({s.slot for s in styles.values()}) == len(styles)


def test_modules_are_sorted_by_depth() -> None:
    names = ["model.layers.10.mlp.up_proj", "model.layers.2.mlp.up_proj", "lm_head"]
    assert plots.by_depth(names) == ["lm_head", "model.layers.2.mlp.up_proj", "model.layers.10.mlp.up_proj"]
    assert plots.module_label("transformer.h.3.mlp.c_fc") == "layer 3 · c_fc"
    assert plots.split_module("lm_head") == (None, "lm_head")


def test_read_run_skips_the_half_line_of_an_interruption(tmp_path: Path) -> None:
    run = read_run(make_run(tmp_path / "run", evaluation()))
    assert len(run.metrics) == 61 + 3 * 21
    assert run.missing == {}


def test_small_tick_labels_keep_their_digits():
    from matplotlib.figure import Figure

    figure = Figure()
    axes = figure.subplots()
    axes.plot([0, 1], [0.001, 0.004])
    axes.set_yticks([0.0025], ["0.0025"])
    page = plots.to_html(figure, "small numbers")
    assert "0.0025" in page, "only coordinates are shortened"
    assert not re.search(r'd="[^"]*\d\.\d{3}', page)
