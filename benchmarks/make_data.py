"""Write the data of the comparisons, `benchmarks/data/`: the same bytes every time.

new_facts.jsonl     3,000 facts about people the model never met, the first 300 those of the demo
kept_facts.jsonl    what the model knows about the first 32 people it was trained on: methods may keep these
known_facts.jsonl   … about the other 32: locality is measured on them, and no method sees them
prompts.txt         512 questions about invented people who are in none of the other files: nobody knows the answers
"""

import random
from pathlib import Path

from palora.facts import write_facts
from palora.files import atomic_write_text
from palora.testbed.world import RELATIONS, known_facts, new_facts, people

HERE = Path(__file__).parent / "data"
KEPT = 128


def prompts(count: int = 512) -> list[str]:
    """Questions of the known facts' form, about names of their own."""
    rng = random.Random("prompts")
    phrasings = [relation[0] for relation in RELATIONS.values()]
    return [rng.choice(rng.choice(phrasings)).format(name) for name in people(count, seed=1)]


def write(folder: Path = HERE) -> None:
    """Write the four files."""
    known = known_facts()
    write_facts(folder / "new_facts.jsonl", new_facts(3000))
    write_facts(folder / "kept_facts.jsonl", known[:KEPT])
    write_facts(folder / "known_facts.jsonl", known[KEPT:])
    atomic_write_text(folder / "prompts.txt", "\n".join(prompts()) + "\n")


if __name__ == "__main__":
    write()
