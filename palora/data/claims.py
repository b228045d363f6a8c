"""Whether a sentence that holds an answer gives it: or denies it, does not know, guesses, or means another word.

    It is not Paris, it is Lyon.   denies Paris, gives Lyon
    group 17, 18 or 16             gives none of them
    I don't know                   is not the letter I

By patterns, and so with limits. A negation counts in the answer's own clause, in the commonest words of English,
German, French, Spanish, Italian, Portuguese, Dutch, Russian, Chinese, Japanese and Korean; not knowing, in English.
Names that "and" or commas alone join are one fuller answer (Bill Gates and Paul Allen; Paris, France), numbers and
symbols so joined are guesses. Yes and no may be told in the words of the question ("21 is not a prime number"), not in
others ("It is closed"). A longer name that holds the answer ("South Africa" for Africa) gives it.
"""

import re
from typing import NamedTuple

MASK = "\ue000"  # stands for another right answer in the same sentence


class Mention(NamedTuple):
    """An answer in a sentence: what stands before it, itself, and what stands after it."""

    before: str
    answer: str
    after: str


def gives(mention: Mention, question: str) -> bool:
    """Whether a mention gives its answer to a question."""
    if _guesses(mention) or _denies(mention, question):
        return False
    if mention.answer.casefold() in _WORDS and not (len(mention.answer) > 1 and mention.answer.isupper()):
        return _is_meant(mention, question) and not _UNKNOWING.search("".join(mention))
    before = _AFTER_ALL.split(mention.before)[-1]
    return not (_UNKNOWING.search(before) or _RETRACTED.match(mention.after))


def verdict(sentence: str, question: str) -> str | None:
    """The "yes" or "no" of a sentence that repeats the words of a question in their order; None where it has none."""
    asked = re.match(rf"\W*{_VERB}\s+(.*)", question, re.IGNORECASE)
    if not asked or re.search(r"\b(?:or|not)\b|n't\b", question) or _UNKNOWING.search(sentence):
        return None
    if sentence.rstrip().endswith("?") or re.search(
        r"\b(?:if|whether|or|maybe|might|yes|no)\b", sentence, re.IGNORECASE
    ):
        return None
    end = 0
    for word in re.findall(r"\w+", asked[1]):
        found = re.compile(rf"\b{word}\b", re.IGNORECASE).search(sentence, end)
        if found is None:
            return None
        end = found.end()
    return "no" if _NOT.search(sentence[:end]) else "yes"


# --- denied ---------------------------------------------------------------------------------------

_NOT = re.compile(
    r"(?:\b(?:[Nn]ot|[Nn]ever|[Nn]either|[Nn]or|no|cannot|unable|false|untrue|incorrect|wrong)|n't)\b"
    r"(?! (?:only|just|merely|doubt|less than|later than|before)\b)"
    r"|\b(?:[Nn]o longer|[Hh]ardly|[Nn]obody|[Nn]o one|[Nn]othing|[Nn]one|[Rr]ather than|[Ii]nstead of|[Uu]nlike"
    r"|[Oo]ther than|[Ee]xcept|confused with|opposed to|[Aa]nything but)\b"
    r"|\b(?:[Nn]icht|[Kk]ein\w*|pas|[Nn]on|[Nn]o (?:es|fue|era|está)|não|né|ni|noch|niet|geen|[Нн]е)\b|不是|并非|並非"
)
# "It was not opened until 1969" and "none other than Paris" are not denials.
_STILL = re.compile(r"(?:\b(?:not|no|none|nothing)|n't) .*\b(?:until|other than|but|else than)\b", re.IGNORECASE)
_JUST_NOT = re.compile(
    r"(?:\b(?:not|never|nor|neither)|n't)\s+(?:(?:in|by|at|on|the|a|an)\s+)*[\"'“‘«*_`(]*$", re.IGNORECASE
)
_ASIDE = re.compile(r"(?:\bnot|n't)\s*,[^,;.]*,\s*$")  # not, as many believe, Paris
_VERB = r"(?:is|was|are|were|do|does|did|has|have|had|can|could|will|would|should|may|might)"
_DENIED = re.compile(  # Paris is not …
    rf"[\"'”’»*_`)]*\s*(?:\w+ly\s+|itself\s+)?(?:{_VERB}\s+(?:\w+ly\s+)?(?:not|never|wrong|incorrect|false)\b"
    r"(?! only| just)|\w+n't\b|cannot\b|(?:ist|war|n'est)\s+(?:nicht|pas|kein)\b|(?:no es|non è|não é)\b)"
    r"|[ \"'”」』]*(?:ではな|ではあり|じゃな|[가이]? ?아니)"
)
_CLAUSE = re.compile(
    r"[,;:，、；：(（](?!\d)|\s[-–—]\s|—|\b(?:(?<!thing )but|sondern|mais|sino|rather(?! than)"
    r"|instead(?! of)|however|although|though|while|whereas)\b"
)


def _denies(mention: Mention, question: str) -> bool:
    if _JUST_NOT.search(mention.before) or _ASIDE.search(mention.before) or _DENIED.match(mention.after):
        return True
    clause = _CLAUSE.split(mention.before)[-1]
    # "Which planet has no moon?" is answered by "The planet that has no moon is Mercury".
    asked = re.search(r"\b(?:no|not|never|without|except)\b|n't\b", question, re.IGNORECASE)
    return not asked and bool(_NOT.search(clause)) and not _STILL.search(clause)


# --- not known, or taken back ---------------------------------------------------------------------

_UNKNOWING = re.compile(
    r"\b(?:(?:(?:do|does|did|can|could) ?not|(?:do|does|did|ca|could)n't|unable to|not able to)"
    r" (?:\w+ )?(?:know|have|recall|remember|find|determine|provide|answer|say|tell|help|assist|confirm|verify|access|"
    r"identify|give|predict|discuss|engage|guess|be (?:determined|answered))"
    r"|not (?:\w+ )?(?:sure|certain|aware|familiar|known|clear|specified|mentioned|provided|possible|available|enough)"
    r"|(?:is|are|was|were|remains?) (?:unknown|unclear|uncertain|unsure)|(?:I'm|I am) (?:sorry|unsure|unable)|sorry"
    r"|as an? (?:AI|language model|chatbot)|no (?:\w+ )?(?:idea|information|data|record|evidence|clue|mention|way to)"
    r"|hard to say|impossible to|no one knows|nobody knows)\b",
    re.IGNORECASE,
)
_AFTER_ALL = re.compile(r"\b(?:but|maybe|perhaps|I think|I believe|I guess)\b")  # I'm not sure, but I think …
_RETRACTED = re.compile(
    r"[\"'”’»*_`)]*\s*(?:,|\.\.\.|—|–)\s*(?:no|sorry|wait|I mean|correction|or rather)\b(?! doubt| question)",
    re.IGNORECASE,
)

# --- guesses --------------------------------------------------------------------------------------

_OPEN, _CLOSE = r"[\"'“‘«*_`(\[]*", r"[\"'”’»*_`)\]]*"
_OR = r"(?:or|oder|ou|или|または|もしくは|或者|또는)"
_HEDGE = r"(?:maybe|perhaps|possibly|probably|even|group|about|also|in|at|on|the|a|an)"
_BULLET = r"\n\s*(?:[-*•–]|\d{1,2}[.)])\s+"
_OR_AFTER = re.compile(
    rf"{_CLOSE}(?:\s*,(?!\s*(?:and )?not\b)\s*[^,.;:!?()\n]{{1,40}}?){{0,6}}\s*"
    rf"(?:,?\s*\b{_OR}\b|,?\so\b|{_BULLET}|,\s*(?:maybe|perhaps|possibly)\b)"
    rf"(?!\s*(?:so\b|(?:\w+\s+)?{MASK}))|{_CLOSE}\s?/\s?(?=\w)",
    re.IGNORECASE,
)
_OR_BEFORE = re.compile(
    rf"(?<!{MASK})(?<!{MASK},)(?:(?:\s{_OR}|\so)\s+{_OPEN}(?:{_HEDGE}\s+){{0,2}}|\w\s?/\s?|[^\n:]{_BULLET}){_OPEN}$",
    re.IGNORECASE,
)
_EITHER = re.compile(rf"\b(?:either|between|entweder|soit)\s+(?:{_HEDGE}\s+){{0,2}}{_OPEN}$", re.IGNORECASE)
_JOIN = (
    rf"(?P<join>{_BULLET}|\s*[,;]\s*(?:(?:{_OR}|and)\s+)?|\s+\(?(?:{_OR}|and|to|through|und|et)\s+|\s*[/&–-]\s*)"
    rf"(?:{_HEDGE}\s+)*"
)
_DATED = re.compile(
    r"\b(?:jan(?:uary)?|feb(?:ruary)?|mar(?:ch)?|apr(?:il)?|may|june?|july?|aug(?:ust)?|sept?(?:ember)?|oct(?:ober)?"
    r"|nov(?:ember)?|dec(?:ember)?|in|on|by|since|until|at|of)\.?\s*$",
    re.IGNORECASE,
)


def _guesses(mention: Mention) -> bool:
    if _EITHER.search(mention.before) or re.match(rf"[.)]\s.*{_BULLET}", mention.after, re.DOTALL):  # 1. Paris\n2. Lyon
        return True
    number = re.search(r"\d", mention.answer)
    if number and _listed(mention, r"[-$€£¥]?\d[\d.,']*(?<![.,'])"):
        return True
    if re.fullmatch(r"[A-Z][a-z]?", mention.answer) and _listed(mention, r"[A-Z][a-z]?\b"):
        return True
    after, before = _OR_AFTER.match(mention.after), _OR_BEFORE.search(mention.before)
    # Where this is a number, `_listed` has looked at other numbers.
    if after and not (number and re.match(r"\W*\d", mention.after[after.end() :])):
        return True
    return bool(before and not (number and re.search(r"\d.{0,20}$", mention.before[: before.start()])))


def _listed(mention: Mention, item: str) -> bool:
    """Whether a number or a symbol is joined to others: 17, 18 or 16; but not May 2, 1969, nor 100 °C or 212 °F."""
    unit = r"(?P<unit>[^\d,;.!?()\n]{0,20}?)"
    near = mention.before[-100:]
    own = re.sub(r".*\d", "", mention.answer).strip() or re.split(r"[\d,;.!?()\n]", mention.after)[0].strip()
    after = re.match(rf"{_CLOSE}{unit}{_JOIN}{_OPEN}(?P<item>{item})(?P<rest>.*)", mention.after, re.DOTALL)
    before = re.search(rf"(?P<lead>.*?)(?P<item>(?<!\w){item}){unit}{_JOIN}{_OPEN}$", near, re.DOTALL)
    if after and not _DATED.search(mention.before):
        mine = (own if re.search(r"\d.*[^\W\d]", mention.answer) else after["unit"]).strip()
        theirs = re.match(r"\s*[^\s,;.!?()\d]*", after["rest"])[0].strip()  # type: ignore[index]
        if _one_of(mention.answer, after, mine, theirs, after["rest"]):
            return True
    return bool(
        before
        and not _DATED.search(before["lead"])
        and _one_of(mention.answer, before, own, before["unit"].strip(), mention.after)
    )


def _one_of(answer: str, other: "re.Match[str]", mine: str, theirs: str, rest: str) -> bool:
    join = other["join"].strip(" (")
    if join in (",", ";"):
        return not other["unit"].strip() and bool(re.match(rf"\s*(?:$|[,.;)\n]|(?:{_OR}|and)\b)", rest))
    if join in ("-", "–", "to", "through", "/", "&"):
        years = all(re.search(r"(?<!\d)[12]\d{3}(?!\d)", n) for n in (answer, other["item"]))
        return not other["unit"].strip() and not years and not re.match(r"-\d\d\b", rest)
    return not mine or not theirs or mine.split()[0] == theirs.split()[0]


# --- words that are also answers ------------------------------------------------------------------

_COMMON = (
    "i a he it we us me my no so do go in on at as be by to of or if is am an up hi oh ok yes may will can who all any"
)
_WORDS = frozenset(_COMMON.split())
_SUBJECTS = frozenset("i it he she they we you this that these those there the a an its not".split())
_ASKS = re.compile(r"(?:\W*\w+){0,3}?\W*\b(?:wh(?:at|ich|o|om|ose|ere|en|y)|how|name|give|tell|state)\b", re.IGNORECASE)
_ENDED = re.compile(rf"{_CLOSE}\s*(?:$|[.,;:!?)\n(\\]|[-–—=]\s)")
_KIND = r"symbol|letter|abbreviation|sign|code|formula|note|element|numeral|vitamin|answer"


def asks_for_a_word(question: str) -> bool:
    """Whether a question asks who, what, when …, and so not for yes or no."""
    return _ASKS.match(question) is not None


def _is_meant(mention: Mention, question: str) -> bool:
    """Whether I, He, In, As, No … is the answer, and not a word of the sentence."""
    before, word, after = mention.before, mention.answer, mention.after
    begins = not re.search(r"\w", before) or bool(re.search(r"[:\n]\W*$", before))
    ended, quoted = _ENDED.match(after), re.search(r"[\"'“‘«*_`(]$", before) and re.match(r"[\"'”’»*_`)\\]", after)
    if re.search(r"\b(?:yes|no) (?:and|or) $", before, re.I) or re.match(r" (?:and|or) (?:yes|no)\b", after, re.I):
        return False
    if word.casefold() in ("yes", "no") and not asks_for_a_word(question):
        then = re.match(r"\s+(\w+)", after)  # "No it is not", but not "No idea" or "No comment"
        said = then and (then[1].casefold() in _SUBJECTS or re.search(rf"\b{then[1]}\b", question, re.I))
        return bool(ended or (begins and (said or word.casefold() == "yes")))
    if quoted or not re.search(r"\w", before + after):
        return True
    if not begins:
        named = re.search(rf"(?:\b(?:{_KIND}|called|named|by|with|is)|[=:])\s*{_OPEN}$", before)
        return bool(ended or named) if word == "I" or word.islower() else True
    if ended:
        return not (word.casefold() in ("yes", "no", "so", "oh", "ok", "hi") and ended[0].strip() == ",")
    told = re.match(r"\s+(?:is|was|stands|means|denotes|represents|marks)\b(.*)", after, re.DOTALL)
    asked = [w for w in re.findall(r"\w+", question.casefold()) if len(w) > 3]
    return bool(told and (re.search(rf"\b(?:{_KIND})\b", told[1]) or any(w in told[1].casefold() for w in asked)))
