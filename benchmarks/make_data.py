"""Write the data of the demo and the comparisons, `palora/testbed/` and `benchmarks/data/`: the same bytes every time.

new_facts.jsonl     3,000 facts about people the model never met, the first 300 those of the demo
kept_facts.jsonl    what the model knows about the first 32 people it was trained on: methods may keep these
known_facts.jsonl   … about the other 32: locality is measured on them, and no method sees them
prompts.txt         512 questions about invented people who are in none of the other files: nobody knows the answers
"""

import random
from pathlib import Path

from palora.common.files import atomic_write_text
from palora.data.facts import write_facts
from palora.testbed.world import RELATIONS, known_facts, new_facts, people

ROOT = Path(__file__).parents[1]
KEPT = 128


def prompts(count: int = 512) -> list[str]:
    """Questions of the known facts' form, about names of their own."""
    rng = random.Random("prompts")
    phrasings = [relation[0] for relation in RELATIONS.values()]
    return [rng.choice(rng.choice(phrasings)).format(name) for name in people(count, seed=1)]


def write(root: Path = ROOT) -> None:
    """Write the files, each to its place under `root`."""
    testbed, known = root / "palora" / "testbed", known_facts()
    write_facts(root / "benchmarks" / "data" / "new_facts.jsonl", new_facts(3000))
    write_facts(testbed / "new_facts.jsonl", new_facts(300))
    write_facts(testbed / "kept_facts.jsonl", known[:KEPT])
    write_facts(testbed / "known_facts.jsonl", known[KEPT:])
    atomic_write_text(testbed / "prompts.txt", "\n".join(prompts()) + "\n")


if __name__ == "__main__":
    write()
