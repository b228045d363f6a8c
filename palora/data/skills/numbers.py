r"""The number a text ends on, exactly: "1,000" is 1000 and never 000.

    final_number("She pays $1,000.50 in all.\n#### 1,000.50")   ->   Fraction(2001, 2)

What is read: digits with or without thousands commas, a decimal part, a fraction a/b, a sign (also the
Unicode minus), a dollar sign, and LaTeX's way of writing these (\$18, 1{,}000, \frac{1}{2}). What is not:
mixed numbers (1 1/2 reads as 1/2 at the end), exponents, and number words. Numbers are compared as fractions,
so 1000.0 is 1000 and 0.5 is 1/2.
"""

import re
from fractions import Fraction

# The group is atomic (?>...): what follows a number can then never make the match give back a digit.
NUMBER = r"""(?>
    (?:(?<![\w)\]}])[-+])?                                    # a sign, but not the minus of 5-3
    (?:\$\s?[-+]?)?                                           # $5, $ 5, -$5, $-5
    (?:(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+)      # 1,000.50  1000  .5
    (?:/\d+)?                                                 # 1/2
)"""
ANY = re.compile(NUMBER, re.VERBOSE)
# "#### 18", "#### **$18**"; but not a numbered heading, "#### 1. Find the price".
MARKED = re.compile(rf"\#\#\#\#[ \t]*[^\w\n.+$-]{{0,4}}({NUMBER})(?![.):][ \t]*[^\W\d_])", re.VERBOSE)
STATED = re.compile(r"answer\W{0,3}?(?:\sis\b\s*:?|:)\s*(.*?)(?=\.\s|\n|$)", re.IGNORECASE)

MINUS_SIGNS = str.maketrans(dict.fromkeys("−–‒﹣－", "-"))
THOUSANDS = re.compile(r"(?<=\d)(?:\{,\}|,?\\[,!; ]|[\u00a0\u2009\u202f])(?=\d{3}(?!\d))")
FRACTION = re.compile(r"(?<!\d)\\[dt]?frac\{(\d+)\}\{(\d+)\}")
BOXED = re.compile(r"\\(?:boxed|fbox)\s*\{")


def final_number(text: str) -> Fraction | None:
    r"""The number a solution ends on.

    In this order: after the first `####` (GSM8K's mark; a model that runs on invents another problem after
    it), in the last \boxed{}, in the last "the answer is", else the last number of all. In a box or a
    statement it is the first number after the last equals sign: 18 in "x = 18 m^2".

    Args:
        text: a completion, of any kind and length.

    Returns:
        The exact number; None where there is none.
    """
    text = _plain(text)
    if marked := MARKED.search(text):
        return _value(marked[1])
    statement = boxed(text)
    for clause in ([] if statement is None else [statement]) + STATED.findall(text)[-1:]:
        if found := ANY.search(clause.rsplit("=", 1)[-1]):
            return _value(found[0])
    found_all = ANY.findall(text)
    return _value(found_all[-1]) if found_all else None


def parse_number(text: str) -> Fraction | None:
    """The number that `text` is, as a whole; None where it is anything else."""
    found = ANY.fullmatch(_plain(text).strip())
    return _value(found[0]) if found else None


def boxed(text: str) -> str | None:
    r"""What stands in the last \boxed{...} that is closed, inner braces and all; None where there is none."""
    content = None
    for start in BOXED.finditer(text):
        depth, end = 1, start.end()
        while end < len(text) and depth:
            if text[end] == "\\":
                end += 1  # \{ and \} are no braces
            else:
                depth += {"{": 1, "}": -1}.get(text[end], 0)
            end += 1
        if not depth:
            content = text[start.end() : end - 1]
    return content


def _plain(text: str) -> str:
    text = THOUSANDS.sub(",", text.translate(MINUS_SIGNS).replace("\\$", "$"))
    return FRACTION.sub(r"\1/\2", text)


def _value(number: str) -> Fraction | None:
    try:
        numerator, _, denominator = re.sub(r"[,$\s]", "", number).partition("/")
        return Fraction(numerator) / int(denominator or 1)
    except (ValueError, ZeroDivisionError):  # 1/0, or more digits than Python converts (4,300)
        return None
