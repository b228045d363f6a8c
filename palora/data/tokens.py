"""A text as words and numbers, each written in one way, with the place where it stands.

    "It cost US$1,000.00."   ->  it cost $1000
    "12kg, by J. R. R. Tolkien"  ->  12 kg by jrr tolkien

Numbers are compared as numbers, whatever their separators; what tells answers apart is kept: signs (-1), decimals (3.5
is not 3), a currency or per cent, C++ and C#, accents. Mere writing goes: case, punctuation, forms that NFKC unites.
"""

import re
import unicodedata
from collections.abc import Callable, Collection
from fractions import Fraction
from itertools import zip_longest
from typing import NamedTuple

# Scripts without spaces between words (Thai to Tibetan, Burmese, Khmer, Chinese, Japanese), and Korean, whose
# particles are joined to the word. Each character is a word, so that any substring is a run of whole words.
UNSPACED = (
    "\u0e00-\u0fff\u1000-\u109f\u1780-\u17ff\u2e80-\u2fdf\u3005-\u3007\u3041-\u309f\u30a1-\u30fa\u30fc-\u30ff"
    "\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af\uf900-\ufaff\U00020000-\U0003ffff"
)
# Where NFKC errs: it makes 1023 of 10²³, 21/2 of 2½, letters of ™, and knows no minus or variation selectors.
_RAISED = re.compile(r"(?<=\d)(?=[²³¹¼-¾⁰-⁻⅐-⅞])")
_SAME = str.maketrans({"’": "'", "−": "-", "⁻": "-", "™": None, "\ufe0e": None, "\ufe0f": None})
_DASH = re.compile(r"(?<![\w)\]%.])(?<!\d )–(?=\d)")  # a dash for a minus
_FORMULA = re.compile(r"\$(?=\S)([^$\n]*[^\s$])\$(?!\w)")  # $12$, as LaTeX writes it
_CURRENCY = r"(?:(?<![A-Za-z])(?:US|[A-Z]{1,2}))?\$|[£¢¥\u20a0-\u20c0]"
_MARKS = {
    name: mark
    for mark, names in {
        **{"%": "% percent pct", "$": "us$ usd dollar dollars", "€": "eur euro euros", "£": "gbp pound pounds"},
        **{"¥": "jpy yen", "₹": "inr rupee rupees", "₽": "ruble rubles", "元": "cny yuan", "CHF": "chf franc francs"},
        **{"¢": "cents", "peso": "peso pesos"},
    }.items()
    for name in names.split()
}
_LETTER = rf"[^\s+#.'\-,/:%&$£¢¥\u20a0-\u20c0{UNSPACED}]"  # or a digit: `_shape` has made spaces of everything else
_ALPHA = rf"(?:(?!\d){_LETTER})"
_UNIT = (
    r"(?:(?i:[mcdkn]m|[kmµμ]g|lbs?|oz|[cm]l|hrs?|min|[mnµ]s|[kmgt]?hz|[kmg]w|kwh|[km]v|ma|k?cal|k[jn]|[hkm]?pa|mol|"
    r"ft|yd|mi|mph|km/?h|kph|[kmgtp]i?b|px|ppm|ha|[ap]m|bce?|ad|ce)|[mgtlLVWAJNKCFB]|(?<!0)s)[23]?"
)
_WHOLE = r"[1-9]\d{0,2}(?P<sep>[,' ])\d{3}(?:(?P=sep)\d{3})*(?!\d)(?!(?P=sep)\d)"  # 1,000 and 1 000 and 1'000
_NUMBER = (
    rf"(?P<number>(?:(?<![\w)\]%.])-)?(?:{_WHOLE}(?:\.\d+)?|[1-9]\d{{0,2}}(?:\.\d{{3}}){{2,}}|"
    r"(?<![\d,])\d+,\d{1,2}(?!\d|,\d)|\d+(?:\.\d+)?|\.\d+|\d+/\d+)"
    rf"(?!\d|[.,/:]\d)(?=(?:{_UNIT})(?!{_LETTER})|(?!{_LETTER}|\+\+)))"
)
_TOKEN = re.compile(
    rf"(?P<initials>(?<!{_LETTER})(?:{_ALPHA}(?:\.{_ALPHA})+(?!{_LETTER})|(?:[A-ZÀ-Þ]\. ?)+[A-ZÀ-Þ](?=\.)"
    rf"|[A-ZÀ-Þ](?: [A-ZÀ-Þ]){{1,4}}(?= [A-ZÀ-Þ]{_ALPHA}{{2}})))"  # U.S., J. R. R., J R R Tolkien
    rf"|(?<![\d.,/:])(?:{_NUMBER})"
    rf"|(?P<before>-?(?:{_CURRENCY}))(?=-?\.?\d)|(?P<after>{_CURRENCY}|%)"  # $5, 5 €
    r"|(?P<fixed>\d+(?:/\d+){2,}|\d+(?::\d+)+)"  # 2/5/1969, 10:30
    rf"|&|[{UNSPACED}]"
    rf"|{_LETTER}+(?:(?:(?<=\d)\.(?=\d)|(?<=[^\W\d])'(?=[^\W\d])){_LETTER}+)*"  # v3.5, don't
    rf"(?:\+\+|#|\+(?!{_LETTER}))?"  # C++, C#, Na+
)

_ONES = "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen"
_NAMED = {word: Fraction(n) for n, word in enumerate(f"{_ONES} seventeen eighteen nineteen".split())}
_TENS = {w: Fraction(10 * n) for n, w in enumerate("twenty thirty forty fifty sixty seventy eighty ninety".split(), 2)}
_TIMES = {"hundred": 100, "thousand": 1000, "million": 10**6, "billion": 10**9, "trillion": 10**12}
# "one" is a number, but not in "no one", "the one that", "one of", "one can".
_NO_NUMBER = ("no the this that which every any each some another".split(), "of another can should must may".split())


class Token(NamedTuple):
    """A word or number: its `key` is equal where two are the same, `text` keeps its case, it stands at start:end.

    `value` is that of a number, without its `mark`: a currency or per cent.
    """

    key: str
    text: str
    start: int
    end: int
    value: Fraction | None = None
    mark: str = ""


def clean(text: str) -> str:
    """`text` without compatibility forms and invisible characters, in its own case. Places are those in here."""
    text = unicodedata.normalize("NFKC", _RAISED.sub(" ", text).translate(_SAME)).replace("⁄", "/")
    text = _DASH.sub("-", _FORMULA.sub(r" \1 ", text))
    return "".join(c for c in text if unicodedata.category(c) != "Cf").strip()


def fold(text: str) -> str:
    """`text` without mere ways of writing: case and compatibility forms."""
    text = unicodedata.normalize("NFKC", _RAISED.sub(" ", text).translate(_SAME)).casefold()
    return unicodedata.normalize("NFKC", text).strip()  # casefold may leave a decomposed character


def tokens(text: str, given: Collection[str] = ()) -> list[Token]:
    """The words and numbers of a text that is `clean`.

    Args:
        given: marks ("$", "%") that need not be written, because the question names them: they do not count.
    """
    found = [_token(match) for match in _TOKEN.finditer(_shape(text))]
    for merge in (_spelled, _signed, _multiplied, _marked):
        found = merge(found)
    return [_keyed(token, given) for token in found if token.key]


def marks(text: str) -> set[str]:
    """The currencies that a text names, and per cent."""
    words = re.findall(rf"{_CURRENCY}|%|\w+", text.replace("per cent", "percent").replace("percentage", "percent"))
    return {_MARKS.get(word.lower(), word) for word in words if word.lower() in _MARKS or not word[-1].isalnum()}


def _shape(text: str) -> str:
    """`text` with a space for whatever is part of no word or number; every place stays.

    By category and not by \\W, which cuts words at the vowel signs of Indic scripts.
    """
    kept = "+#.'-,/:%&"
    return "".join(c if c in kept or unicodedata.category(c)[0] in "LMN" or _is_currency(c) else " " for c in text)


def _is_currency(character: str) -> bool:
    return re.fullmatch(r"[$£¢¥\u20a0-\u20c0]", character) is not None


def _token(match: "re.Match[str]") -> Token:
    text, start, end = match[0], match.start(), match.end()
    if match["initials"]:
        text = re.sub(r"[. ]", "", text)
    elif match["number"] and (value := _value(text)) is not None:
        return Token(text, text, start, end, value)
    elif match["before"] or match["after"]:
        mark = text.lstrip("-")
        return Token("", "-" if text != mark else "", start, end, None, _MARKS.get(mark.lower(), mark))
    text = re.sub("'s$", "", text)
    key = unicodedata.normalize("NFKC", text.casefold()).replace("'", "")
    # Turkish: İ is i, and what a capital I or ı is depends on the language.
    key = "and" if key == "&" else key.replace("i\u0307", "i").replace("ı", "i")
    return Token(key, text, start, end if match["initials"] else start + len(text))


def _value(text: str) -> Fraction | None:
    """What a number is; None where it is only a row of digits: 007, 1/0, one of a thousand digits."""
    plain = re.sub(r"[' ]|,(?=\d{3}(?!\d))", "", text)
    plain = plain.replace(".", "") if plain.count(".") > 1 else plain.replace(",", ".")
    if len(plain) > 1000 or re.match(r"-?0\d", plain) or re.search(r"/0+$", plain):
        return None
    return Fraction(f"0{plain}" if plain.startswith(".") else plain)


Merge = Callable[[list[Token]], list[Token]]


def _spelled(found: list[Token]) -> list[Token]:
    """twenty-one -> 21"""
    out: list[Token] = []
    for i, token in enumerate(found):
        before, after = (found[j].key if 0 <= j < len(found) else "" for j in (i - 1, i + 1))
        value = _NAMED.get(token.key, _TENS.get(token.key))
        if token.key == "one" and (before in _NO_NUMBER[0] or after in _NO_NUMBER[1]):
            value = None
        if value is not None and 0 < value < 10 and before in _TENS and token.start == out[-1].end + 1:
            out[-1] = out[-1]._replace(value=_TENS[before] + value, end=token.end)
        else:
            out.append(token if value is None else token._replace(value=value))
    return out


def _signed(found: list[Token]) -> list[Token]:
    """minus 5 -> -5, but not in 15 minus 5"""
    out: list[Token] = []
    for i, token in enumerate(found):
        after_number = i > 1 and found[i - 2].value is not None
        if token.value is not None and out and out[-1].key in ("minus", "negative") and not after_number:
            token = token._replace(value=-token.value, start=out.pop().start)
        out.append(token)
    return out


def _multiplied(found: list[Token]) -> list[Token]:
    """2.5 million -> 2500000"""
    out: list[Token] = []
    for token in found:
        if out and (last := out[-1]).value is not None and token.key in _TIMES and last.value < 10**15:
            out[-1] = last._replace(value=last.value * _TIMES[token.key], end=token.end)
        else:
            out.append(token)
    return out


def _marked(found: list[Token]) -> list[Token]:
    """$5, 5 US dollars -> $5; 15 per cent -> 15%"""
    out: list[Token] = []
    for token, after in zip_longest(found, found[1:]):
        last = out[-1] if out else None
        if last is not None and token.value is not None and last.value is None and _belongs_to_next(last, token):
            value = -token.value if last.text == "-" else token.value
            token = token._replace(value=value, mark=_mark(last), start=out.pop().start)
        elif _mark(token) and token.value is None and not (after and after.value and token.end == after.start):
            skipped = 1 if last is not None and last.key in ("us", "per") else 0
            number = out[-1 - skipped] if len(out) > skipped else None
            if number is not None and number.value is not None and not number.mark and token.start - number.end < 5:
                out[-1 - skipped :] = [number._replace(mark=_mark(token), end=token.end)]
                continue
        elif token.key == "cent" and len(out) > 1 and out[-1].key == "per" and out[-2].value is not None:
            out[-2:] = [out[-2]._replace(mark="%", end=token.end)]
            continue
        out.append(token)
    return out


def _mark(token: Token) -> str:
    return token.mark or _MARKS.get(token.key, "")


def _belongs_to_next(token: Token, number: Token) -> bool:
    """Whether a mark is that of the number behind it: $5, EUR 5; a name ("dollars") is that of the one before."""
    return _mark(token) not in ("", "%") and number.start - token.end < 2 and (not token.key or token.text.isupper())


def _keyed(token: Token, given: Collection[str]) -> Token:
    if token.value is None:
        return token
    mark = "" if token.mark in given else token.mark
    return token._replace(key=f"{mark}{token.value}", mark=mark)
