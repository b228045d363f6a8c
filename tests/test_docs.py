"""README and docs: their Python runs, their make targets are there, the reference names everything public."""

import re

import pytest
from datasets import Dataset
from pages import PAGES, ROOT, blocks, commands

import palora
from palora.data.facts import write_facts
from palora.testbed.world import new_facts


def test_every_make_target_is_one():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    asked = {word for _, words in commands() if words[0] == "make" for word in words[1:] if "=" not in word}
    listed = set(re.findall(r"(?:^    |; )make ([a-z-]+)", (ROOT / "CONTRIBUTING.md").read_text(), re.MULTILINE))
    assert {"demo", "test"} <= asked <= targets
    assert listed == targets - {"setup", "clean"}


# What makes the code of the pages small, and lets it run without a GPU.
STANDS_FOR = {
    "meta-llama/Llama-3.1-8B-Instruct": str(ROOT / "palora" / "testbed" / "model"),
    "gsm8k": "chain",
    'SFTConfig("trained"': 'SFTConfig("trained", max_steps=1, report_to="none", save_strategy="no"',
}
FACTS = new_facts(2)
PYTHON = [  # the code of design.md shows signatures
    (page.name, text) for page in PAGES if page.name != "design.md" for text in blocks(page, "python")
]


@pytest.mark.parametrize(("page", "text"), [pytest.param(*block, id=block[0]) for block in PYTHON])
def test_the_python_of_a_page_runs(page, text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_facts(tmp_path / "facts.jsonl", FACTS)
    model, tokenizer = palora.load_model(STANDS_FOR["meta-llama/Llama-3.1-8B-Instruct"], device="cpu")
    keep = palora.Keep([palora.get_skill("chain")], examples=4)
    palora.protect(model, tokenizer, palora.ProtectSettings(), keep).save("RUN/protection")
    dataset = Dataset.from_list([{"prompt": fact.question, "completion": fact.answer} for fact in FACTS])
    for written, meant in STANDS_FOR.items():
        text = text.replace(written, meant)
    given = {"model": model, "tokenizer": tokenizer, "dataset": dataset, "questions": ["Who?"]}
    exec(compile(text, page, "exec"), given)


def test_a_page_has_python():
    assert {"README.md", "guide.md"} <= {page for page, _ in PYTHON}


def test_the_reference_names_every_public_name():
    named = re.findall(r"^::: palora\.(\w+)$", (ROOT / "docs" / "api.md").read_text(), re.MULTILINE)
    assert sorted(named) == sorted(set(palora.__all__) - {"__version__"})
