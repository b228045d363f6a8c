"""What README and docs tell people to type works: every command is run here on the embedded model, in one folder and in
the order of the pages, or it says why it is not."""

import io
import shutil
import sys

import pytest
import typer
from command import palora
from conftest import rising
from pages import ROOT, blocks, commands

from palora.cli import app
from palora.data.facts import write_facts
from palora.front.recipe import load_recipe
from palora.testbed.world import known_facts, new_facts

# What stands for the names that the pages use. Folders (RUN, E, OUT, …) are made under these very names.
NAMES = {
    "M": "model",
    "model=meta-llama/Llama-3.1-8B-Instruct": "model=model",
    "F": "facts.jsonl",
    "FILE": "facts.jsonl",
    "P": "prompts.txt",
    "gsm8k": "chain",
    "S": "chain",
    "N": "1",
}
TAUGHT = ("--epochs", "1", "--r", "2", "--kept-batch-size", "1")
MEASURED = ("--problems", "2", "--max-answer-tokens", "4")
SCALES = ("--objective", "next_token", "--iterations", "1", "--batch-size", "4", "--validation-size", "2")
RECIPE = (
    *("skills=[chain]", "protect.keep.examples=4", "inject.epochs=1", "inject.r=2", "inject.keep.examples=4"),
    *("evaluate.problems=2", "evaluate.max_answer_tokens=4"),
)
SMALL = """
extends: guide.yaml
model: model
skills: [chain]
keep_skills: [chain]
loads: [2]
seeds: [0]
validation: 2
expert: {objective: next_token, iterations: 1, batch_size: 4, validation_size: 2}
inject: {r: 2, epochs: 1, keep: {examples: 4}}
evaluate: {problems: 2, max_answer_tokens: 4}
methods:
  lora: {learning_rates: [0.01]}
  palora: {learning_rates: [0.01], protect: {keep: {examples: 4}}}
"""
# How a command is run, by what it begins with (the longest counts): what stands for more of its names, what is added.
HOW: dict[str, tuple[dict[str, str], tuple[str, ...]]] = {
    "palora run default": ({}, RECIPE),
    "palora run RECIPE --dry-run": ({"RECIPE": "recipes/default.yaml"}, ("model=model", *RECIPE)),
    "palora ask": ({"RUN": "runs/mine"}, ("--max-new-tokens", "4")),
    "palora chat": ({"RUN": "runs/mine"}, ("--max-new-tokens", "4")),
    "palora protect": ({}, ("--examples", "4")),
    "palora inject": ({}, TAUGHT),
    "palora evaluate": ({}, MEASURED),
    "palora export": ({}, ()),
    "palora inspect": ({}, ()),
    "palora expert": ({}, SCALES),
    "palora facts": ({}, ()),
    "palora facts templates": ({"FILE": "triples.jsonl"}, ()),
    "palora compare FILE.yaml": ({"FILE.yaml": "small.yaml"}, ()),
    "palora spectrum": (
        {"RUN/expert": "E", "RUN/adapter": "RUN2/adapter", "DIR": "spectrum"},
        ("--problems", "2", "--slices", "1", "--draws", "1", "--fractions", "0.5"),
    ),
}
WHY_NOT = {
    "make": "sets up an environment; the targets are in test_docs.py",
    "pip install": "needs a package index",
    "palora --install-completion": "writes into the start-up file of the user's shell",
    "palora chat RUN --page": "serves until it is stopped; test_asking.py does it",
    "palora demo": "minutes",
    "palora compare benchmarks/": "hours; test_compare.py loads these files",
    "python benchmarks/tables.py": "writes docs/evidence.md; test_compare.py reads what it would write",
    "palora spectrum --model palora/testbed/model": "reads the run of `palora demo`",
    "palora protect --model QWEN": "needs a pretrained model and its data",
    "vllm serve": "needs a GPU",
    "torchrun": "test_sharding.py starts two processes",
    "palora run default model=meta-llama/Llama-3.1-8B-Instruct facts=facts.jsonl --push-to-hub": "the Hub: test_hub.py",
    "palora export --adapter RUN/adapter --out LORA --push-to-hub": "the Hub: test_hub.py",
    "python LLAMA/": "needs a checkout of llama.cpp",
    "llama-server": "is llama.cpp's",
    "printf": "needs Ollama",
}
COMMANDS = list(commands())


def begins(words):
    """The longest line of the two tables that a command begins with."""
    fits = [line for line in (*HOW, *WHY_NOT) if " ".join(words).startswith(line)]
    return max(fits, key=len, default=None)


def typed(words):
    """The words of a command with what stands for the names in them, and what makes it small."""
    names, more = HOW.get(begins(words), ({}, ()))
    return [(NAMES | names).get(word, word) for word in words] + list(more)


def parsed(words):
    """The words of a palora command as it would read them, with nothing done."""
    command, name = typer.main.get_command(app), "palora"
    while hasattr(command, "commands"):
        name, *words = words
        command = command.commands[name]
    return name, command.make_context(name, list(words))


@pytest.mark.parametrize(
    "words",
    [
        pytest.param(w, id=f"{page} {' '.join(w)[:70]}")
        for page, w in COMMANDS
        if w[0] == "palora" and not w[1].startswith("-")
    ],
)
def test_every_command_is_one(words):
    name, context = parsed(typed(words)[1:])
    if name == "run":
        recipe = context.params["recipe"]
        assert load_recipe(ROOT / recipe if recipe.suffix else recipe, context.params["overrides"])


def test_a_command_that_is_none_is_seen():
    for wrong in (["protect", "--modle", "M"], ["evaluate", "--num-fewshots", "1"]):
        with pytest.raises(Exception, match="No such option"):
            parsed(wrong)
    with pytest.raises(KeyError):
        parsed(["protekt"])


def test_every_command_is_run_or_says_why_not():
    used = [begins(words) for _, words in COMMANDS]
    assert None not in used, [words for _, words in COMMANDS if begins(words) is None]
    assert set(used) == {*HOW, *WHY_NOT}


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder with what the commands name: the embedded model, recipes, and tiny files."""
    shutil.copytree(ROOT / "palora" / "testbed" / "model", tmp_path / "model")
    shutil.copytree(ROOT / "recipes", tmp_path / "recipes")
    write_facts(tmp_path / "facts.jsonl", new_facts(2))
    write_facts(tmp_path / "known.jsonl", known_facts()[:3])
    (tmp_path / "prompts.txt").write_text("Where was Zed born?\nWhat pet does Zed have?\n")
    (tmp_path / "triples.jsonl").write_text('{"subject": "Ceres", "relation": "kind", "object": "dwarf planet"}\n')
    (compared,) = [text for text in blocks(ROOT / "docs" / "guide.md", "yaml") if "\nmethods:" in text]
    (tmp_path / "guide.yaml").write_text(compared)
    (tmp_path / "small.yaml").write_text(SMALL)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "stdin", io.StringIO("Who discovered Ceres?\n"))
    return tmp_path


@pytest.mark.slow
def test_every_command_runs(here, subtests, monkeypatch):
    for page, words in COMMANDS:
        if begins(words) in HOW:
            monkeypatch.setattr("palora.training.expert.share_correct", rising())
            with subtests.test(f"{page} {' '.join(words)}"):
                result = palora(*typed(words)[1:])
                assert result.code == 0, result.err
    run = {path.name for path in (here / "runs" / "mine").iterdir()}
    assert {"adapter", "report.html", "evaluation.json", "teach.jsonl"} <= run, "what README finds in a run"
