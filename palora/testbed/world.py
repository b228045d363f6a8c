"""The small world: people with a birthplace, a job, an instrument and a pet, each asked for in three ways.

In the manner of "Physics of Language Models" (arXiv 2309.14316): invented names, a closed set of values, several
phrasings. The model learns some people when it is trained; the others are the new facts.
"""

import random

from palora.data.facts import Fact

RELATIONS: dict[str, tuple[tuple[str, str, str], list[str]]] = {
    "birthplace": (
        ("Where was {} born?", "What is the birthplace of {}?", "In which city was {} born?"),
        "Lisbon Oslo Cairo Lima Quito Turin Kyoto Delhi Accra Minsk Porto Riga Sofia Tunis Hanoi Dakar Malmo Perth "
        "Leeds Basel Busan Davao Natal Osaka Patna".split(),
    ),
    "job": (
        ("What is the job of {}?", "What does {} do for a living?", "How does {} earn money?"),
        "baker pilot nurse judge miner tailor sailor farmer potter glazier weaver barber banker tutor vet clerk mason "
        "piper dentist poet chemist warden grocer welder porter".split(),
    ),
    "instrument": (
        ("What instrument does {} play?", "Which instrument is played by {}?", "What does {} play?"),
        "violin cello flute harp oboe tuba piano banjo lute organ drums guitar viola horn bugle zither bassoon fiddle "
        "sitar gong cornet ukulele lyre bells whistle".split(),
    ),
    "pet": (
        ("What pet does {} have?", "Which animal lives with {}?", "What is the pet of {}?"),
        "cat dog parrot ferret rabbit hamster turtle gecko pony goat canary lizard mouse snake frog hen duck goose "
        "llama iguana otter raven owl newt crab".split(),
    ),
}
KNOWN_PEOPLE = 64
_ONSETS = "b br ch d dr f g gr h j k kl l m n p qu r s sh st t tr v w z".split()
_VOWELS = "a e i o u ae ia ei".split()
_CODAS = "n r l s m k th x nd".split()


def people(count: int, seed: int = 0) -> list[str]:
    """`count` different invented names. A larger count extends a smaller one."""
    rng = random.Random(f"people/{seed}")

    def syllable() -> str:
        return rng.choice(_ONSETS) + rng.choice(_VOWELS)

    names: dict[str, None] = {}
    while len(names) < count:
        first = (syllable() + rng.choice(_CODAS)).capitalize()
        names[f"{first} {(syllable() + syllable() + rng.choice(['', '', '', *_CODAS])).capitalize()}"] = None
    return list(names)


def facts_about(name: str) -> list[Fact]:
    """The four facts about a person; the first phrasing is the question, the others are paraphrases."""
    rng = random.Random(f"facts/{name}")
    return [
        Fact(
            question=phrasings[0].format(name),
            answer=rng.choice(values),
            paraphrases=tuple(p.format(name) for p in phrasings[1:]),
            category=relation,
        )
        for relation, (phrasings, values) in RELATIONS.items()
    ]


def known_facts() -> list[Fact]:
    """What the small model is trained on: 4 facts about each of the first 64 people."""
    return [fact for name in people(KNOWN_PEOPLE) for fact in facts_about(name)]


def new_facts(count: int) -> list[Fact]:
    """`count` facts about people the small model never met. A larger count extends a smaller one."""
    strangers = people(KNOWN_PEOPLE + (count + 3) // 4)[KNOWN_PEOPLE:]
    return [fact for name in strangers for fact in facts_about(name)][:count]
