"""Marking: whether a completion is the answer to a fact, judged by *words*.

Both texts are folded (NFKC, lower case) and split into words and numbers, and the answer must appear as a run of whole
ones: no "H" in "He", no "1" in "1.5", but "1,000" is "1000".
"""

import re
import unicodedata
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from palora.data.facts import Fact

# Scripts without spaces between words (Thai to Tibetan, Burmese, Khmer, Chinese, Japanese), and Korean, whose
# particles are joined to the word. Each character is a word, so that any substring is a run of whole words.
_UNSPACED = (
    "\u0e00-\u0fff\u1000-\u109f\u1780-\u17ff\u2e80-\u2fdf\u3005-\u3007\u3041-\u309f\u30a1-\u30fa\u30fc-\u30ff"
    "\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af\uf900-\ufaff\U00020000-\U0003ffff"
)
_LETTER = rf"[^\s+#.'\-{_UNSPACED}]"  # or a digit: `_words` has made spaces of everything else
_WORD = re.compile(
    rf"[{_UNSPACED}]"
    r"|(?:(?<!\S)-(?=\d))?"  # a sign, but not the hyphen of 1990-1995
    rf"{_LETTER}+(?:(?:(?<=\d)\.(?=\d)|(?<=[^\W\d])'(?=[^\W\d])){_LETTER}+)*"  # 3.5, don't
    rf"(?:\+\+|#|\+(?!{_LETTER}))?"  # C++, C#, Na+
)
_ARTICLE = re.compile(r"^\W*(?:(?i:the|an)|a)\s+(?=\W*\w)")  # not a capital A, which is often a name: A minor
_DECIMAL = re.compile(r"(?<![\w.])\.(?=\d)")  # .5
_THOUSANDS = re.compile(r"(?<![\d.,])[1-9]\d{0,2}(?:,\d{3})+(?!\d|,\d)")
_INITIALS = re.compile(r"(?<!\w)[^\W\d_](?:\.[^\W\d_])+(?!\w)")  # U.S.
# Where NFKC errs: it makes 1023 of 10²³, 21/2 of 2½, letters of ™, and knows no minus or variation selectors.
_RAISED = re.compile(r"(?<=\d)(?=[²³¹¼-¾⁰-⁻⅐-⅞])")
_SAME = str.maketrans({"’": "'", "−": "-", "⁻": "-", "™": None, "\ufe0e": None, "\ufe0f": None})


def matches(completion: str, fact: "Fact") -> bool:
    """Whether the answer or an alias appears in the completion, as whole words.

    Compared without case, punctuation and a leading article of the answer. What tells answers apart is kept:
    signs (-1), decimals (3.5 is not 3), C++ and C#, accents. In scripts without spaces any substring counts.

    Args:
        completion: what the model generated. All of it counts: cut it where the answer ends.
        fact: the fact that was asked for.
    """
    words, text = f" {_words(completion)} ", fold(completion)
    return any(f" {core} " in words if core else symbol in text for core, symbol in _answers(fact))


def exact(completion: str, fact: "Fact") -> bool:
    """Whether the completion is the answer or an alias and nothing else, compared as in `matches`."""
    words, text = _words(completion), fold(completion)
    return any(
        words in (core, f"a {core}", f"an {core}", f"the {core}") if core else symbol == text
        for core, symbol in _answers(fact)
    )


def _answers(fact: "Fact") -> Iterator[tuple[str, str]]:
    """Each right answer: its words without a leading article, and its text, for one without words ("$")."""
    for answer in (fact.answer, *fact.aliases):
        if symbol := fold(answer):
            yield _words(_ARTICLE.sub("", answer)), symbol


def fold(text: str) -> str:
    """`text` without mere ways of writing: case and compatibility forms."""
    text = unicodedata.normalize("NFKC", _RAISED.sub(" ", text).translate(_SAME)).casefold()
    return unicodedata.normalize("NFKC", text).strip()  # casefold may leave a decomposed character


def _words(text: str) -> str:
    """The words and numbers of `text`, joined by single spaces; "" if there are none."""
    text = _DECIMAL.sub("0.", fold(text))
    for with_marks in (_THOUSANDS, _INITIALS):
        text = with_marks.sub(lambda found: found[0].replace(",", "").replace(".", ""), text)
    # By category and not by \W, which cuts words at the vowel signs of Indic scripts. Invisible ones (Cf) go.
    categories = [(character, unicodedata.category(character)) for character in text]
    text = "".join(c if kind[0] in "LMN" or c in "+#-.'" else " " for c, kind in categories if kind != "Cf")
    return " ".join(re.sub("'s$", "", word).replace("'", "") for word in _WORD.findall(text))
