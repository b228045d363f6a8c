"""The report shows every arm, says what is missing, and is one safe, self-contained file."""

import base64
import copy
import hashlib
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from example_run import ACCURACY, ATTACK, evaluation, make_run, without_numbers

from palora.common.errors import InputError
from palora.results.pages.findings import findings, headline
from palora.results.pages.report import write_report
from palora.results.pages.report_answers import answers
from palora.results.pages.results import Results
from palora.results.plots.style import PALETTE
from palora.results.table import evaluation_table, summary

OPTIONAL = ("recipe.yaml", "metrics.jsonl", "answers.jsonl", "expert/scales.safetensors", "protection/protection.json")


class Page(HTMLParser):
    """What a browser sees: tags, their attributes, and the text outside style and scripts."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.text = ""
        self._style = False
        self.feed(html)
        self.text = re.sub(r"\s+", " ", self.text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._style = tag in ("style", "script")
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        self._style = False

    def handle_data(self, data: str) -> None:
        if not self._style:
            self.text += data


SCRIPTS = re.compile(r"<script>(.*?)</script>", re.S)


@pytest.fixture(scope="module")
def html(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_report(make_run(tmp_path_factory.mktemp("run"), evaluation())).read_text(encoding="utf-8")


def _html(folder: Path, values: dict[str, Any], rule: str = "svf") -> str:
    return write_report(make_run(folder / "run", values, rule)).read_text(encoding="utf-8")


def _without_leak() -> dict[str, Any]:
    """The evaluation, of arms without a hard rule."""
    values = evaluation()
    for update in values["update"].values():
        update["leak"] = None
        update["layers"] = {name: {**layer, "leak": None} for name, layer in update["layers"].items()}
    return values


def test_the_sentences_are_on_the_page(html: str) -> None:
    results, text = Results(evaluation()), Page(html).text
    assert headline(results) in text
    assert findings(results) and all(finding.text in text for finding in findings(results))


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
    assert ATTACK in page.text  # shown as it came
    assert "script" in page.tags and html.count("<script") == html.count("</script>") == 2


def test_names_cannot_become_markup_either(tmp_path: Path) -> None:
    values = evaluation()
    for part in (values["arms"], values["update"], values["retention"]):
        part[ATTACK] = copy.deepcopy(part["palora"])
    for arm in values["arms"].values():
        arm["skills"] = {'$x^2$ "<b>': arm["skills"]["chain"]}
    html = _html(tmp_path, values)
    assert html.count("<script") == html.count("</script>") == 2
    assert '"<b>' not in html


def test_self_contained(html: str) -> None:
    page = Page(html)
    assert not {"link", "iframe", "object", "embed"} & set(page.tags)
    beside = ("evaluation.json", "answers.jsonl", "metrics.jsonl", "recipe.yaml")
    for name, value in page.attributes:
        if name in ("src", "href", "xlink:href", "srcset", "data", "action"):
            assert value.startswith(("#", "data:image/")) or value in beside, (name, value)
    assert "http://" not in html and "https://" not in html
    assert "@import" not in html and not re.search(r"url\((?!#)", html)


def test_the_browser_runs_our_script_and_no_other(html: str) -> None:
    policy = next(value for name, value in Page(html).attributes if name == "content" and "script-src" in value)
    ours = base64.b64encode(hashlib.sha256(SCRIPTS.findall(html)[0].encode()).digest()).decode()
    assert f"script-src 'sha256-{ours}'" in policy and policy.startswith("default-src 'none'")
    for asks in ("fetch(", "XMLHttpRequest", "innerHTML", "eval(", "import("):
        assert asks not in SCRIPTS.findall(html)[0], asks


def test_palora_is_the_first_column(html: str) -> None:
    heads = re.findall(r"<thead>(.*?)</thead>", html, re.S)
    assert len(heads) == 2, "the numbers, and the known facts by category"
    for head in heads:
        assert re.findall(r"</i> ([\w ]+)</th>", head) == ["palora", "plain LoRA", "random", "base", "expert"]


def test_all_answers_can_be_searched(html: str) -> None:
    stored = json.loads(re.findall(r'<script id="all-answers" type="application/json">(.*?)</script>', html)[0])
    assert len(stored["rows"]) == 13 and stored["rows"][0]["given"][0] == [f"{ATTACK} by palora", True]
    known = [row for row in stored["rows"] if row["kind"] == "known fact"]
    assert [row["flags"] for row in known] == [[], *2 * [["disagree", "wrong-lora", "forgot-lora"]]]
    options = re.findall(r"<option[^>]*>([^<]*)", html)
    assert "known facts that plain LoRA forgot (2)" in options and "the taught arms disagree (12)" in options
    assert not any("palora forgot" in option for option in options), "there is none"
    assert {"fact", "known fact", "town", "river"} <= set(options)
    assert '<form id="find" hidden' in html, "without the script there is nothing to search with"


def test_only_a_known_fact_is_forgotten() -> None:
    row = {"kind": "fact", "arms": {"base": {"correct": True}, "lora": {"correct": False}, "palora": {"correct": None}}}
    (told,) = answers([row], Results(evaluation()))
    assert told.flags == ("wrong-lora",), "and what was not judged is neither right nor wrong"
    (told,) = answers([{**row, "kind": "known fact"}], Results(evaluation()))
    assert told.flags == ("wrong-lora", "forgot-lora")
    assert answers([None, 3], Results(evaluation()))[0].arms == [], "whatever a file holds"


def test_known_facts_by_category(html: str) -> None:
    text = Page(html).text
    assert "Known facts, by category" in text and "New facts, by category" not in text, "these have none"
    assert "town100.0%50.0%100.0%100.0%100.0%2 river100.0%0.0%100.0%100.0%100.0%1" in text


def test_of_very_many_answers_the_page_holds_those_where_arms_disagree(monkeypatch: pytest.MonkeyPatch) -> None:
    from example_run import KNOWN

    from palora.results.pages import report_answers

    monkeypatch.setattr(report_answers, "MOST", 2)
    results = Results(evaluation())
    held = report_answers.searched(report_answers.answers(KNOWN, results), results)
    assert [row["prompt"] for row in held["rows"]] == ["Where is 1?", "Where is 2?"]


def test_the_files_that_are_there_can_be_downloaded_and_the_command_is_told(tmp_path: Path, html: str) -> None:
    beside = ["evaluation.json", "answers.jsonl", "metrics.jsonl", "recipe.yaml"]
    assert all(f'<a href="{name}" download>' in html for name in beside)
    text = Page(html).text
    assert "This makes it again: palora run recipe.yaml --out again" in text and "made it:" not in text
    (tmp_path / "evaluation.json").write_text(json.dumps(evaluation() | {"command": f"palora run x --out {ATTACK}"}))
    page = write_report(tmp_path).read_text(encoding="utf-8")
    assert f"This command made it: palora run x --out {ATTACK}" in Page(page).text and "answers.jsonl" not in re.sub(
        r'class="absent">[^<]*', "", page
    )


def test_a_leak_that_is_rounding_is_said_to_be(html: str) -> None:
    assert "A leak below 10⁻⁵ is the rounding of 32-bit numbers" in Page(html).text


def test_pictures_share_no_ids_and_miss_none(html: str) -> None:
    ids = re.findall(r'\sid="([^"]+)"', html)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'(?:href="#|url\(#)([\w-]+)', html)) <= set(ids)


def test_exact_and_f1_stand_beside_recall(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    values = evaluation()
    for arm in values["arms"].values():
        arm |= {"recall": 0.91, "recall_exact": 0.123, "recall_f1": 0.456}
    text = Page(_html(tmp_path, values)).text
    assert "12.3%" in text and "45.6%" in text and "recall, exact" in text and "recall, F1" in text
    values["retention"] = dict.fromkeys(values["arms"], values["retention"]["palora"])


def test_the_table_in_the_terminal_fits_a_hundred_columns(capsys: pytest.CaptureFixture[str]) -> None:
    values = evaluation()
    values["retention"] = {arm: {"chain": {"vs_expert": 0.5, "vs_base": 0.5}} for arm in values["arms"]}
    for number in range(3):  # four skills
        for arm in values["arms"].values():
            arm["skills"][f"skill_{number}"] = arm["skills"]["chain"]
        for own in values["retention"].values():
            own[f"skill_{number}"] = own["chain"]
    evaluation_table(values)
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 100
    text = " ".join(" ".join(lines).replace("│", " ").replace("┃", " ").split())
    for told in ("facts learned", "in other words", "known facts", "chain", "97.0% of 200", "69.3% (50.0% left)"):
        assert told.split()[0] in text and told.split()[-1] in text, told
    one = evaluation()
    one["retention"] = values["retention"]
    evaluation_table(one)
    printed = capsys.readouterr().out
    assert all(told in printed for told in ("97.0% of 200", "60.0%", "98.0%", "69.3% (50.0% left)"))
    del one["arms"]["palora"]["paraphrase_recall"]  # written by an older version
    evaluation_table(one)
    assert "–" in capsys.readouterr().out


def test_nothing_learned_is_said_and_not_what_was_kept(tmp_path: Path) -> None:
    values = evaluation()
    values["arms"]["palora"]["recall"] = 0.0
    told = summary(values)
    assert told is not None and told.startswith(
        "palora learned none of 200 facts: raise inject.epochs or inject.learning_rate; plain LoRA learned 98%"
    )
    assert [finding.text for finding in findings(Results(values))] == [
        "palora learned no fact: what it kept says nothing about the method."
    ]
    assert "raise inject.epochs" in Page(_html(tmp_path, values)).text
    values["arms"] = {"base": values["arms"]["base"]}  # nothing was trained: there is nothing to raise
    assert summary(values) is None and "raise" not in headline(Results(values))


def test_pictures_follow_light_and_dark(html: str) -> None:
    body = html[html.index("<body>") :]
    assert "var(--palora)" in body
    assert not [light for light, _ in PALETTE.values() if light in body]
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


def test_an_arm_has_one_colour_on_the_whole_page(tmp_path: Path) -> None:
    values = evaluation()
    for part in (values["arms"], values["retention"], values["update"]):  # the last one is what the report is about
        part["other"], part["mine"] = part.pop("random"), part.pop("palora")
    run = make_run(tmp_path / "run", values)
    lines = (run / "metrics.jsonl").read_text().replace('"palora"', '"mine"').replace('"random"', '"other"')
    (run / "metrics.jsonl").write_text(lines)
    html = write_report(run).read_text(encoding="utf-8")
    for arm in ("mine", "other"):
        slots = re.findall(rf'<i style="color: var\(--([\w-]+)\)">.</i> {arm}<', html)
        assert len(slots) == 5 and len(set(slots)) == 1, (arm, slots)  # two tables and three keys


def test_a_soft_rule_shows_weights_and_no_leak(tmp_path: Path) -> None:
    values = _without_leak()
    text = Page(_html(tmp_path, values, rule="covariance")).text
    assert "How strongly each input direction is protected" in text
    assert "in effect 1.5 of 3 directions" in text
    assert "Leak into" not in text and "only for a hard constraint" in text
    assert "Soft protection damps" in text


def test_without_a_constraint_the_report_says_what_holds_instead(tmp_path: Path) -> None:
    values = _without_leak()
    values["update"]["palora"]["loss"] = {"drift": 20000.0, "distil": None}
    text = Page(_html(tmp_path, values, rule="none")).text
    assert "No constraint: the update may go in any direction. What is to be kept is held by the loss: drift." in text
    assert "drift 20000" in text  # in the table, and a weight that is missing is no error
    assert "No direction of the update is forbidden or damped" in text
    assert "Soft protection damps" not in text and "How much of the inputs that covers" not in text


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
    assert "palora learned 97%" in text


def test_an_evaluation_alone_is_enough(tmp_path: Path) -> None:
    (tmp_path / "evaluation.json").write_text(json.dumps(evaluation()))
    text = Page(write_report(tmp_path).read_text(encoding="utf-8")).text
    assert all(f"This run has no {name}." in text for name in OPTIONAL)
    assert "palora learned 97% of 200 facts" in text


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
    assert "kept 99% of the expert's chain skill and 100% of the facts that the base knows; plain LoRA kept 35%" in text
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


def test_drawing_leaves_matplotlib_as_it_was(tmp_path: Path) -> None:
    import matplotlib

    before = dict(matplotlib.rcParams)
    _html(tmp_path, evaluation())
    assert dict(matplotlib.rcParams) == before
    assert before["svg.hashsalt"] != "palora"  # nor did an earlier test change it
