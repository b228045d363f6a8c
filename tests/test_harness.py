"""lm-eval as an outside judge: its figures are in the report, and agree with ours on the same answers."""

import importlib.util
import json
import re
from pathlib import Path

import pytest
from command import QUICK, palora

from palora.common.errors import InputError
from palora.common.settings import EvaluateSettings
from palora.data.skills import get_skill
from palora.language.models import load_model
from palora.language.scoring import share_correct, solve
from palora.results.harness import check_folder, check_harness, figures, judge

SMALL = Path(__file__).parents[1] / "palora" / "testbed" / "model"
needs_lm_eval = pytest.mark.skipif(importlib.util.find_spec("lm_eval") is None, reason="lm-eval is not installed")

TASK = """task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
test_split: test
"""
CHOOSING = """output_type: multiple_choice
doc_to_text: "Question: {{{{question}}}}\\nAnswer:"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: label
metric_list: [{{metric: acc}}, {{metric: acc_norm}}]
metadata: {{version: 1.5}}
"""
ANSWERING = """output_type: generate_until
doc_to_text: "{{{{prompt}}}}"
doc_to_target: answer
generation_kwargs: {{until: ["\\n"], do_sample: false, max_gen_toks: 48}}
filter_list:
  - name: last-number
    filter: [{{function: regex, regex_pattern: "(-?[0-9]+)", group_select: -1}}, {{function: take_first}}]
metric_list: [{{metric: exact_match}}]
metadata: {{version: 2.0}}
"""


def write_task(folder, name, form, rows):
    """A task of lm-eval over rows of its own."""
    folder.mkdir(exist_ok=True)
    file = folder / f"{name}.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / f"{name}.yaml").write_text((TASK + form).format(name=name, file=json.dumps(str(file))))


@pytest.fixture(scope="module")
def small():
    return load_model(SMALL, device="cpu")


@pytest.fixture(autouse=True)
def _own_data(tmp_path, monkeypatch):
    """What `datasets` reads of a file it keeps."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")


def choices():
    """Facts, half of them known to the small model, with three other answers beside the right one."""
    files = [SMALL.parent / name for name in ("known_facts.jsonl", "new_facts.jsonl")]
    facts = [json.loads(line) for file in files for line in file.read_text().splitlines()[:10]]
    answers = [fact["answer"] for fact in facts]
    return [
        {"question": fact["question"], "choices": (answers[i:] + answers[:i])[:4], "label": 0}
        for i, fact in enumerate(facts)
    ]


CHOICES = choices()


@needs_lm_eval
def test_a_likelihood_task_agrees_with_our_scorer(small, tmp_path):
    """The same prompt: `acc_norm` is what our scorer `likelihood` counts, question by question."""
    mine = [{"prompt": r["question"], "choices": r["choices"], "answer": r["choices"][r["label"]]} for r in CHOICES]
    (tmp_path / "mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in mine))
    write_task(tmp_path / "tasks", "sums", CHOOSING, CHOICES)
    settings = EvaluateSettings(harness=["sums"], harness_tasks=str(tmp_path / "tasks"))
    check_harness(settings)
    skill = get_skill(f"{tmp_path / 'mine.jsonl'}#likelihood")
    model, tokenizer = small
    ours = share_correct(solve(model, tokenizer, skill, skill.problems("test", None, 0)))
    told = judge(model, tokenizer, settings, "base")["sums"]
    assert told["metrics"]["acc_norm"]["value"] == ours and 0 < ours < 1
    assert told["n"] == 20 and told["version"] == 1.5 and told["metrics"]["acc"]["stderr"] > 0


@needs_lm_eval
def test_a_generative_task_agrees_with_our_scorer(small, tmp_path):
    """Both ask with the chat template, and the last number counts."""
    model, tokenizer = small
    skill = get_skill("chain")
    problems = skill.problems("test", 24, 0)
    rows = [{"prompt": problem.prompt, "answer": str(problem.answer)} for problem in problems]
    write_task(tmp_path / "tasks", "chains", ANSWERING, rows)
    settings = EvaluateSettings(harness=["chains"], harness_tasks=str(tmp_path / "tasks"), harness_chat=True)
    ours = share_correct(solve(model, tokenizer, skill, problems))
    told = judge(model, tokenizer, settings, "base")["chains"]
    assert told["metrics"]["exact_match (last-number)"]["value"] == ours and ours > 0.5
    assert tokenizer.padding_side == "left" and not model.training, "the model is left as it was"


@needs_lm_eval
def test_every_arm_is_judged_and_the_report_shows_it(made, tmp_path, caplog):
    write_task(tmp_path / "tasks", "sums", CHOOSING, CHOICES)
    common = [
        "evaluate",
        "--model",
        made.model,
        "--adapter",
        made.adapter,
        "--expert",
        made.expert,
        "--out",
        tmp_path / "x",
    ]
    common += [*QUICK["evaluate"], "--harness", "sums", "--harness-tasks", tmp_path / "tasks", "--harness-limit", 4]
    result = palora(*common)
    assert result.code == 0, result.err
    value = json.loads((tmp_path / "x" / "evaluation.json").read_text())
    for arm in ("base", "expert", "palora"):
        told = value["arms"][arm]["harness"]["sums"]
        assert set(told["metrics"]) == {"acc", "acc_norm"} and told["n"] == 4 and told["version"] == 1.5
    assert value["versions"]["lm-eval"]
    page = (tmp_path / "x" / "report.html").read_text()
    assert "judged by lm-eval" in page and "sums: acc_norm" in page
    assert "What lm-eval finds" in result.out and "sums: acc" in result.out
    palora(*common)
    assert "evaluation.json is up to date" in caplog.text
    caplog.clear()
    write_task(tmp_path / "tasks", "sums", CHOOSING, CHOICES[4:])
    palora(*common)
    assert "evaluation.json is up to date" not in caplog.text, "the task has changed"


@needs_lm_eval
def test_a_task_that_is_none_is_named(made, tmp_path):
    with pytest.raises(InputError, match=r"lm-eval [\d.]+ has no task 'arc_esay'"):
        check_harness(EvaluateSettings(harness=["arc_esay"]))
    write_task(tmp_path / "tasks", "sums", CHOOSING, CHOICES)
    (tmp_path / "tasks" / "sums.jsonl").unlink()
    done = palora(
        *("evaluate", "--model", made.model, "--out", tmp_path / "x", "--harness", "sums"),
        *("--harness-tasks", tmp_path / "tasks"),
    )
    assert done.code == 2 and re.search(r"^palora: lm-eval cannot ask sums: .*sums\.jsonl", done.complaints[-1])


@needs_lm_eval
def test_a_template_cannot_leave_its_sandbox(small, tmp_path):
    hostile = CHOOSING.replace("Question: {{{{question}}}}", "{{{{ ''.__class__.__mro__ }}}}")
    write_task(tmp_path / "tasks", "bad", hostile, CHOICES)
    settings = EvaluateSettings(harness=["bad"], harness_tasks=str(tmp_path / "tasks"))
    with pytest.raises(InputError, match=r"lm-eval cannot ask bad: .*unsafe"):
        judge(*small, settings, "base")


@pytest.mark.parametrize(
    "line",
    [
        "process_docs: !function utils.run",
        "filter: [!function utils.run]",
        "process_docs: !<!function> utils.run",
        "process_docs: !%66unction utils.run",
        "? !function utils.run\n: 1",
        "%TAG !e! !func\n---\nprocess_docs: !e!tion utils.run",
        "process_docs: !!python/name:os.system",
        "include: ../other.yaml",
        "include: /tmp/other.yaml",
        "{include: [/tmp/other.yaml]}",
        "include:\n  - ../other.yaml",
        '{"incl\\u0075de": /tmp/other.yaml}',
    ],
)
def test_a_folder_that_would_run_python_is_refused(tmp_path, line):
    (tmp_path / "a.yaml").write_text(f"{line}\n")
    with pytest.raises(InputError, match=r"a\.yaml: (it has Python run|include may only name)"):
        check_folder(tmp_path)


def test_plain_tasks_and_what_is_none(tmp_path):
    with pytest.raises(InputError, match="no folder with tasks"):
        check_folder(tmp_path / "none")
    (tmp_path / "a.yaml").write_text('task: a\ninclude: b.yaml\ndoc_to_text: "Hello! {{x}} (why not!?)"\n')
    with pytest.raises(InputError, match=r"include may only name a task file of the folder, not 'b\.yaml'"):
        check_folder(tmp_path)
    (tmp_path / "b.yaml").write_text("task: b\n")
    check_folder(tmp_path)
    (tmp_path / "b.yaml").write_text("task: [b\n")
    with pytest.raises(InputError, match=r"b\.yaml: not valid YAML"):
        check_folder(tmp_path)


def test_without_lm_eval_it_is_said(monkeypatch, tmp_path):
    check_harness(EvaluateSettings())
    monkeypatch.setattr("palora.results.harness.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"needs lm-eval: pip install 'palora\[lm-eval\]'"):
        check_harness(EvaluateSettings(harness=["gsm8k"]))


def test_figures_are_read_as_lm_eval_gives_them():
    found = {
        "results": {
            "a": {
                "alias": "a",
                "acc,none": 0.5,
                "acc_stderr,none": 0.1,
                "exact_match,strict": 1,
                "exact_match_stderr,strict": "N/A",
            }
        },
        "n-samples": {"a": {"original": 9, "effective": 4}},
        "versions": {"a": 3.0},
    }
    metrics = {"acc": {"value": 0.5, "stderr": 0.1}, "exact_match (strict)": {"value": 1.0, "stderr": None}}
    assert figures(found) == {"a": {"metrics": metrics, "n": 4, "version": 3.0}}
