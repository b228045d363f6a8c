"""Marking: what a model says is right where a person who reads its first sentence calls it right, and not otherwise."""

import json
import re
import string
import unicodedata
from collections import Counter
from pathlib import Path

import pytest

from palora.data.facts import Fact, read_facts
from palora.data.marking import exact, f1, matches, mentions

ROOT = Path(__file__).parents[1]
ELEMENTS = ROOT / "examples" / "facts" / "elements.csv"
HELIUM = Fact("Symbol of helium?", "He", ("helium",))


def right(answer: str, completion: str, question: str = "q", *aliases: str) -> bool:
    return matches(completion, Fact(question, answer, aliases))


# Words and numbers


@pytest.mark.parametrize(
    ("answer", "completion"),
    [
        ("He", "He"),
        ("He", "The symbol is **He**, of course"),
        ("He", "(He)"),
        ("Einstein", "It was Einstein’s idea"),
        ("O'Brien", "o’brien"),
        ("U.S.", "in the US today"),
        ("US", "the U.S."),
        ("The Hague", "in Hague"),
        ("Hague", "The Hague"),
        ("a dog", "Dog!"),
        ("A", "A. because"),
        ("A minor", "in A minor"),
        ("A\u00a0B", "a  b"),
        ("Node.js", "node.js"),
        ("soft hyphen", "soft hy\u00adphen"),
        ("H2O", "H₂O"),
        ("C++", "In C++."),
        ("C++", "C++17"),
        ("C#", "c#, mostly"),
        ("Na+", "Na⁺ ions"),
        ("F#", "in F#m"),
        ("Zürich", "ZÜRICH"),
        ("Zürich", unicodedata.normalize("NFD", "in Zürich")),
        ("Straße", "strasse"),
        ("Windows", "Windows™"),
        ("ＡＢＣ", "abc"),
        ("Москва", "это Москва."),
        ("दिल्ली", "भारत की राजधानी दिल्ली है।"),
        ("東京", "日本の首都は東京です。"),
        ("東京 タワー", "東京タワー"),
        ("ﾀﾜｰ", "東京タワー"),
        ("서울", "서울은 수도"),
        ("กรุงเทพ", "คือกรุงเทพมหานคร"),
        ("C", "C言語"),
        ("$", "It costs $5"),
        ("❤️", "with ❤ and"),
        ("İstanbul", "İstanbul"),
        ("İstanbul", "istanbul"),
        ("Istanbul", "It is İSTANBUL."),
        ("Iğdır", "IĞDIR"),
        ("J. R. R.", "J.R.R."),
        ("J.R.R. Tolkien", "It was J. R. R. Tolkien."),
        ("J. R. R. Tolkien", "JRR Tolkien"),
        ("J. R. R. Tolkien", "J R R Tolkien"),
        ("George W. Bush", "George W Bush"),
        ("Trinidad and Tobago", "Trinidad & Tobago"),
        ("AT&T", "AT&T"),
    ],
)
def test_an_answer_is_found_however_it_is_written(answer: str, completion: str) -> None:
    assert right(answer, completion)


@pytest.mark.parametrize(
    ("answer", "completion"),
    [
        ("H", "He"),
        ("H", "H2O"),
        ("He", "the"),
        ("He", "H e"),
        ("S", "the U.S. and"),
        ("T", "I don't know"),
        ("C", "C++"),
        ("C", "C++17"),
        ("C", "C#"),
        ("C++", "C"),
        ("C++", "C#"),
        ("C#", "C++"),
        ("Na", "Na+"),
        ("Zürich", "Zurich"),
        ("New York", "New Jersey and York"),
        ("A minor", "C minor"),
        ("Vitamin A", "Vitamin C"),
        ("東京", "京都"),
        ("दिल", "दिल्ली"),
        ("$", "It costs €5"),
        ("❤️", "⭐️"),
        ("He", ""),
        ("He", " \n"),
        (" ", "anything"),
        ("\u200b", ""),
        ("\ufe0f", "anything"),
    ],
)
def test_part_of_a_word_is_not_an_answer(answer: str, completion: str) -> None:
    assert not right(answer, completion)


@pytest.mark.parametrize(
    ("answer", "completions"),
    [
        ("1000", "1000|1,000|1 000|1\u202f000|1'000|1000.0|about 1,000.|one thousand|1\u00a0000 pages"),
        ("1,000.0", "1000|1 000"),
        ("1234567.5", "1,234,567.5|1 234 567.5"),
        ("1000000", "1.000.000|1 million|1,000,000"),
        ("2.5 million", "2500000|2,500,000"),
        ("3", "3.|(3)|three|3.0"),
        ("3.5", "3.5.|3,5|3.50|The score is 3.5. It is good."),
        ("0.5", ".5|1/2|½|0.50"),
        ("3/4", "3/4|¾|0.75"),
        ("2 1/2", "2½"),
        ("-5", "it is −5 °C|minus 5|It is -5.|–5"),
        ("21", "twenty-one|twenty one|21"),
        ("six", "6|Six."),
        ("10^23", "10²³"),
        ("1995", "1990-1995|1990–1995"),
        ("007", "007"),
        ("12 kg", "12kg|12 kg|It weighs 12kg.|**12 kg**|12.0 kg"),
        ("12kg", "12 kg"),
        ("100 km/h", "100km/h"),
        ("20 °C", "20°C|20 ℃"),
        ("64 GB", "64GB|64 gb"),
        ("$5", "$5|$5.00|US$5|5 dollars|5 US dollars|USD 5|5 USD|5 $|$ 5|It costs $5."),
        ("€7.50", "7,50 €|EUR 7.50|7.50 euros|€7.5"),
        ("-$5", "$-5|-$5"),
        ("15%", "15 %|15 percent|15 per cent|fifteen percent"),
        ("12", "$12$|It is $12$.|\\boxed{12}"),
        ("10:30", "at 10:30"),
        ("2 May 1969", "It was on 2 May 1969."),
        ("1969", "On May 2, 1969.|in 1969"),
    ],
)
def test_numbers_are_compared_as_numbers(answer: str, completions: str) -> None:
    for completion in completions.split("|"):
        assert right(answer, completion), completion


@pytest.mark.parametrize(
    ("answer", "completions"),
    [
        ("1", "1.5|10|0.1|1,000|1st|1/2|1 million|10:1"),
        ("5", ".5|-5|–5|5/8|$5|5%|5 million"),
        ("-5", "5|10-5|15 minus 5"),
        ("000", "1,000"),
        ("1000", "1000.5|10000|100|1,000,000|1000 million"),
        ("3.5", "3|3.55|3, 5"),
        ("35", "3.5"),
        ("3/4", "3, 4|4/3"),
        ("1023", "10²³"),
        ("10^9", "10⁻⁹"),
        ("21", "2½|twenty, one"),
        ("7", "007"),
        ("1990", "1990s"),
        ("12 kg", "12|12 g|0.12 kg|12.5kg"),
        ("$5", "€5|£5|¥5|5|5 euros|5%|$5 million|CHF 5"),
        ("£10", "10 dollars|$10"),
        ("15", "15%|15 percent|fifteen per cent|$15"),
        ("15%", "15|€15"),
        ("100", "100 yuan"),
        ("9" * 5000, "9" * 4999 + "8"),
        ("1", "The one that knows.|No one.|one of them|1/0"),
    ],
)
def test_another_number_is_wrong(answer: str, completions: str) -> None:
    for completion in completions.split("|"):
        assert not right(answer, completion), completion


def test_a_mark_that_the_question_names_may_be_left_out() -> None:
    assert right("25%", "25", "What percentage is a quarter?") and right("25", "25%", "How many per cent?")
    assert right("$12", "12", "Three cost $4 each. What do they cost?")
    assert right("12", "12 dollars", "How many dollars is it?")
    assert not right("$12", "€12", "Three cost $4 each. What do they cost?")
    assert not right("25", "25%", "How many?")


# Answers of up to two letters


@pytest.mark.parametrize(
    ("answer", "completion", "verdict"),
    [
        ("He", "he", False),
        ("He", "the symbol is he", False),
        ("Co", "CO", False),
        ("CO", "Co", False),
        ("NO", "No", False),
        ("K", "ok, k", False),
        ("us", "US", False),
        ("I", "I don't know", False),
        ("I", "I am not sure.", False),
        ("I", "I think it is H.", False),
        ("I", "I, as an AI, cannot say.", False),
        ("He", "He was born in 1900.", False),
        ("He", "I don't know what he (He) is", False),
        ("In", "In short, I don't know.", False),
        ("In", "In 1990 it was found.", False),
        ("As", "As an AI language model, I cannot say.", False),
        ("As", "As far as I know, it is gold.", False),
        ("At", "At the moment I can't say.", False),
        ("A", "A good question.", False),
        ("I", "The symbol is not I.", False),
        ("A", "It is not A.", False),
        ("A", "A is the answer.", True),
        ("No", "No, I am not sure", False),
        ("No", "No one knows.", False),
        ("No", "No idea.", False),
        ("No", "No comment.", False),
        ("No", "No. I am not sure.", False),
        ("He", "He's a scientist.", False),
        ("May", "It may be in June.", False),
        ("May", "It is in May.", True),
        ("No", "No it is not", True),
        ("No", "No. It is closed.", True),
        ("No", "There is no such thing", False),
        ("Yes", "Yes, I am not sure", False),
        ("Yes", "Yes and no.", False),
        ("No", "Yes and no.", False),
        ("No", "Yes or no", False),
        ("I", "I", True),
        ("I", "The symbol of iodine is I.", True),
        ("I", 'It is "I", from its name', True),
        ("I", r"The letter is \(I\).", True),
        ("I", "I (iodine)", True),
        ("I", "The letter I marks the fast train.", True),
        ("He", "He is the symbol of helium.", True),
        ("He", "**He** stands for helium", True),
        ("In", "Indium has the symbol In in the table.", True),
        ("As", "As (arsenic)", True),
        ("No", "The symbol is No.", True),
        ("pi", "Pi.", True),
        ("A", "The grade is A.", True),
        ("No", "No.", True),
        ("No", "No, it is not.", True),
        ("no", "No, it is closed.", True),
        ("No", "no, it is not", True),
        ("No", "The answer to this question is no, 21 is not prime.", True),
        ("Yes", "yes, it is", True),
    ],
)
def test_a_word_of_the_sentence_is_not_a_short_answer(answer: str, completion: str, verdict: bool) -> None:
    assert right(answer, completion) is verdict


def test_no_is_an_interjection_where_a_word_is_asked_for() -> None:
    asked = "Which symbol does nobelium have?"
    assert not right("No", "No, it is Nb.", asked) and not right("No", "no", asked)
    assert right("No", "No", asked) and right("No", "No is the symbol of nobelium.", asked)
    assert right("No", "No, penguins cannot fly.", "Can penguins fly?")


@pytest.mark.parametrize(
    ("question", "completion", "verdict"),
    [
        ("Is the Earth larger than the Moon?", "The Earth is much larger than the Moon.", "Yes"),
        ("Is the Earth larger than the Moon?", "The Moon is larger than the Earth.", None),
        ("Is the Earth larger than the Moon?", "I don't know if the Earth is larger than the Moon.", None),
        ("Is 21 a prime number?", "21 is not a prime number.", "No"),
        ("Is 21 a prime number?", "Is 21 a prime number?", None),
        ("Can penguins fly?", "Penguins cannot fly.", "No"),
        ("Is Iceland an island?", "Iceland is an island, but not a continent.", "Yes"),
        ("Is Madrid the capital of Portugal?", "Madrid is the capital of Spain.", None),
        ("Is it red or blue?", "It is red or blue.", None),
    ],
)
def test_yes_and_no_may_be_told_in_the_words_of_the_question(
    question: str, completion: str, verdict: str | None
) -> None:
    assert [answer for answer in ("Yes", "No") if right(answer, completion, question)] == ([verdict] if verdict else [])


REFUSALS = [
    "I don't know.",
    "I'm sorry, but I am not able to answer that question.",
    "No, I am not sure.",
    "As an AI language model, I don't have access to that information.",
    "I cannot answer this. He or she may know.",
    "At the moment, I have no information on that. In general, no one does.",
    "As of my last update, I have no data. In short, no.",
    "That is a good question! I do not know the answer, as it is in no book I have.",
    "In my opinion, no one can answer this.",
    "I have no idea. He may be in the group of As.",
    "In the periodic table, no element is as well known as I am.",
]


@pytest.mark.parametrize("refusal", REFUSALS)
def test_a_refusal_is_right_for_no_element(refusal: str) -> None:
    assert [fact.answer for fact in read_facts(ELEMENTS) if matches(refusal, fact)] == []


@pytest.mark.parametrize(
    "said",
    ["{}", "It is {}.", "**{}**", "Answer: {}", '"{}"', "The answer is:\n\n{}\n\nIt is known.", "Sure! It is {}."],
)
def test_an_answer_is_right_for_every_element(said: str) -> None:
    facts = read_facts(ELEMENTS)
    assert [fact.answer for fact in facts if not matches(said.format(fact.answer), fact)] == []
    wrong = [(a.answer, b.answer) for a in facts[:118] for b in facts[:118:7] if matches(said.format(b.answer), a)]
    assert all(a == b for a, b in wrong)


# What is judged: the first thing said


@pytest.mark.parametrize(
    ("answer", "completion"),
    [
        ("Paris", "Answer: Paris"),
        ("Paris", "Answer:\nParis"),
        ("Paris", "**Answer:** Paris"),
        ("Paris", "# Answer\nParis"),
        ("Paris", "> Paris"),
        ("Paris", "`Paris`"),
        ("Paris", "The capital of France is:\n\nParis"),
        ("Paris", "Sure! The capital is Paris."),
        ("Paris", "That's a great question. It is Paris."),
        ("Paris", "What is the capital of France? Paris."),
        ("Paris", "Q: What is the capital of France?\nA: Paris"),
        ("Paris", "The capital of France\n\nParis"),
        ("Paris", "Paris. It is not Lyon."),
        ("Paris", "Paris\n\nParis or Lyon?"),
        ("Paris", "Paris? Yes, Paris."),
        ("St. Louis", "It is in St. Louis, Missouri."),
        ("Missouri", "It is in St. Louis, Missouri."),
        ("Dr. Watson", "He is Dr. Watson."),
        ("Watson", "It is Dr. John H. Watson."),
        ("No. 5", "It is Chanel No. 5."),
        ("Dr. No", "The film is Dr. No."),
        ("Martin Luther King Jr.", "Martin Luther King Jr. was the leader."),
        ("Washington, D.C.", "It is Washington, D.C. It lies on the Potomac."),
        ("Who's Afraid of Virginia Woolf?", "Who's Afraid of Virginia Woolf? is the play."),
        ("Yahoo!", "Yahoo! was founded by him."),
        ("Hughes,\nLangston", "Hughes, Langston"),
        ("H", "It is H. It is light."),
    ],
)
def test_the_first_thing_said_counts(answer: str, completion: str) -> None:
    assert right(answer, completion, "What is the capital of France?")


@pytest.mark.parametrize(
    ("answer", "completion"),
    [
        ("Paris", "Lyon. Paris is bigger."),
        ("Paris", "Lyon\nParis"),
        ("Paris", "I don't know. Paris is a city."),
        ("Paris", "Paris? No, Lyon."),
        ("Paris", "It was Dr. Smith. Paris is a city."),
        ("H", "The symbol is K. H is hydrogen."),
        ("14", "It has 15. The castle has 14 towers."),
        ("1", "1. First, we look at the price.\n2. Then we add."),
    ],
)
def test_what_comes_later_does_not(answer: str, completion: str) -> None:
    assert not right(answer, completion, "What is the capital of France?")


def test_what_only_repeats_the_question_is_no_answer() -> None:
    white = "Which colour is the White House?"
    assert not right("white", "The White House is in Washington.", white)
    assert right("white", "The White House is white.", white)
    assert not right("Lyon", "It is Paris. Lyon is bigger.", "Is it Paris or Lyon?")
    assert right("Madrid", "Madrid is the capital of Spain.", "Is Madrid or Lisbon the capital of Spain?")


# Denied, guessed


@pytest.mark.parametrize(
    "completion",
    [
        "It is not Paris, it is Lyon",
        "It isn't Paris but Lyon.",
        "Not Paris, Lyon.",
        "Lyon, not Paris",
        "Lyon (not Paris)",
        "Lyon and not Paris",
        "Paris is not the capital.",
        "Paris isn't it.",
        "Paris is wrong.",
        "Neither Lyon nor Paris",
        "Lyon rather than Paris",
        "Anything but Paris.",
        "No longer Paris",
        "Nobody says that it is Paris.",
        "I don't think it is Paris.",
        "It was never Paris",
        "It can't be Paris",
        "It is not, as many believe, Paris.",
        "Contrary to what many think, it is not Paris.",
        "There is no information about Paris.",
        "I'm sorry, but I can't say whether Paris is right.",
        "Paris, no, Lyon",
        "Es ist nicht Paris, sondern Lyon",
        "Ce n'est pas Paris, c'est Lyon",
        "No es Paris, es Lyon",
        "Non è Paris, né Lyon",
    ],
)
def test_what_is_denied_is_not_given(completion: str) -> None:
    assert not right("Paris", completion)


def test_denials_in_scripts_without_spaces() -> None:
    assert not right("パリ", "パリではなく、リヨンです") and right("リヨン", "パリではなく、リヨンです")
    assert not right("巴黎", "不是巴黎，是里昂") and right("里昂", "不是巴黎，是里昂")


@pytest.mark.parametrize(
    "completion",
    [
        "It is not Lyon, it is Paris",
        "Not Lyon but Paris.",
        "Paris, not Lyon",
        "Paris, not Lyon or Nice.",
        "Paris, which is not far from Versailles",
        "I'm not sure, but I think it is Paris.",
        "It's Paris, no doubt.",
        "It is none other than Paris.",
        "Nothing but Paris.",
        "Not only Lyon, also Paris.",
        "Paris is not only the capital.",
        "It was not called Lutetia until later, it is Paris",
        "Paris, France",
        "Paris (France)",
    ],
)
def test_what_is_denied_of_another_is(completion: str) -> None:
    assert right("Paris", completion)


def test_a_question_may_hold_a_negation() -> None:
    asked = "Which planet has no moons?"
    assert right("Mercury", "The planet that has no moons is Mercury.", asked)
    assert not right("Mercury", "It is not Mercury.", asked)
    film = "Who wrote Not Without My Oven?"
    assert right("Ilse Tarrant", "Not Without My Oven was written by Ilse Tarrant.", film)


@pytest.mark.parametrize(
    ("answer", "completions"),
    [
        ("17", "group 17, 18 or 16|17 or 18|17, 18|16, 17 or 18|either 17 or 18|between 16 and 17|16-17|17 and 18"),
        ("17", "maybe 17, maybe 18|17 or eighteen|eighteen or 17|17/18|- 17\n- 18|17 (or 18)"),
        ("18", "group 17, 18 or 16"),
        ("16", "group 17, 18 or 16"),
        ("3", "(2, 3, 7)"),
        ("1945", "1944 or 1945|in 1944, 1945 or 1946|1945, 1946"),
        ("$5", "$5 or $6"),
        ("100 km", "100 km or 150 km"),
        ("seven", "seven or eight"),
        ("Paris", "Paris or Lyon|Lyon or Paris|Paris, Lyon or Nice|Lyon, Nice, or Paris|Either Paris or Lyon."),
        ("Paris", "Paris/Lyon|Paris, or maybe Lyon|It could be Lyon or in Paris.|Paris, possibly Lyon|Paris oder Lyon"),
        ("Ben & Jerry's", "Ben & Jerry's or another"),
        ("The Crocodile", 'The Bear or "The Crocodile"|"The Crocodile" or "The Bear"'),
        ("Paris", "1. Paris\n2. Lyon\n3. Nice|- Lyon\n- Paris|Some are:\n\n* Paris\n* Lyon"),
        ("Au", "Au or Ag|Au/Ag|Au, Ag, Cu|Ag and Au"),
        ("I", "I or H|H or I"),
    ],
)
def test_one_of_several_guesses_is_not_an_answer(answer: str, completions: str) -> None:
    for completion in completions.split("|"):
        assert not right(answer, completion), completion


@pytest.mark.parametrize(
    ("answer", "completion"),
    [
        ("Bosnia and Herzegovina", "It is Bosnia and Herzegovina."),
        ("No Country for Old Men", "It is No Country for Old Men."),
        ("Not Without My Daughter", "Not Without My Daughter"),
        ("Not Without My Daughter", 'The film is called "Not Without My Daughter".'),
        ("The Fox or the Moon", "The opera The Fox or the Moon was first."),
        ("To be, or not to be", '"To be, or not to be"'),
        ("I Don't Know", "The song is 'I Don't Know'."),
        ("Unknown", "It is Unknown."),
        ("Sorry", "The song is Sorry."),
        ("Never yield", "The motto is: Never yield."),
        ("mint, sage and thyme", "It is made of mint, sage, and thyme."),
        ("May 2, 1969", "On May 2, 1969."),
        ("1612-1634", "1612–1634"),
        ("3/4", "It is 3/4."),
        ("24/7", "24/7"),
        ("AC/DC", "It is AC/DC."),
        ("Washington", "Washington, D.C."),
        ("Marie Curie", "Marie Curie and Pierre Curie"),
        ("14", "It has 14 towers and 3 gates."),
        ("14", "14 or so"),
        ("1945", "In 1945, 50 nations met."),
        ("20", "20 July 1969"),
        ("100 °C", "100 °C or 212 °F"),
        ("100", "100 °C or 212 °F"),
        ("12 kg", "12 kg (26 lb)"),
        ("12", "The square root of 144 is equal to 12."),
        ("1969", "It was not opened until 1969."),
    ],
)
def test_an_answer_may_hold_or_not_and_numbers(answer: str, completion: str) -> None:
    assert right(answer, completion)


def test_two_right_answers_are_no_guesses() -> None:
    assert right("1984", "1984 or Nineteen Eighty-Four", "q", "Nineteen Eighty-Four")
    assert right("helium", "It is helium, or He.", "q", "He")
    assert right("New York", "New York City", "q", "New York City")
    assert not right("helium", "helium or neon", "q", "He")


def test_any_alias_counts() -> None:
    assert matches("It is helium, I think", HELIUM) and not matches("It is neon", HELIUM)
    assert not matches("anything", Fact("q", "He", aliases=("",)))


# Beside it


def test_exact_is_the_answer_and_nothing_else() -> None:
    for completion in ("He", " He.\n", '"He"', "**He**", "Helium", "the helium"):
        assert exact(completion, HELIUM), completion
    for completion in ("he", "He is", "It is He", "H", "", "He helium"):
        assert not exact(completion, HELIUM), completion
    assert exact("A dog", Fact("q", "dog")) and exact("dog", Fact("q", "a dog")) and exact("a dog", Fact("q", "A dog"))
    assert exact("$", Fact("q", "$")) and not exact("$5", Fact("q", "$")) and not exact("€", Fact("q", "$"))
    assert not exact("", Fact("q", " ")) and not exact("minor", Fact("q", "A minor"))
    assert exact("1 000", Fact("q", "1,000.0")) and not exact("€5", Fact("q", "$5"))


def squad_f1(prediction: str, truth: str) -> float:
    """The published way: lower case, no punctuation, no articles, then the overlap of tokens."""

    def normal(text: str) -> list[str]:
        text = "".join(c for c in text.lower() if c not in string.punctuation)
        return re.sub(r"\b(a|an|the)\b", " ", text).split()

    a, b = normal(prediction), normal(truth)
    common = sum((Counter(a) & Counter(b)).values())
    if not common:
        return 0.0
    precision, recall = common / len(a), common / len(b)
    return 2 * precision * recall / (precision + recall)


def test_f1_is_that_of_squad() -> None:
    for row in hand_marked():
        answers = (row["answer"], *row.get("aliases", ()))
        expected = max(squad_f1(row["said"], answer) for answer in answers)
        if (row["said"] + "".join(answers)).isascii():
            assert f1(row["said"], fact_of(row)) == pytest.approx(expected), row
    assert f1("The capital is Paris.", Fact("q", "Paris")) == pytest.approx(0.5)
    assert f1("Paris", Fact("q", "Lyon", ("the Paris",))) == 1.0
    assert f1("", Fact("q", "Lyon")) == 0.0
    assert f1("日本の東京", Fact("q", "東京")) == pytest.approx(4 / 7)


def test_a_mention_is_no_answer() -> None:
    assert mentions("Is Paris not the capital? It is Lyon.", Fact("q", "Paris")) and not mentions(
        "Pari", Fact("q", "Paris")
    )


# By hand


def hand_marked() -> list[dict]:
    file = Path(__file__).parent / "data" / "marked_answers.jsonl"
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def fact_of(row: dict) -> Fact:
    return Fact(row["question"], row["answer"], tuple(row.get("aliases", ())))


def test_it_agrees_with_a_person_who_read_the_answers() -> None:
    """Looking for the answer anywhere, as words, took 23 of the wrong ones for right and 10 of the right for wrong."""
    rows = hand_marked()
    marked = [(matches(row["said"], fact_of(row)), row["right"]) for row in rows]
    assert len(rows) == 556 and sum(row["right"] for row in rows) == 274
    assert sum(found and not told for found, told in marked) <= 6
    assert sum(told and not found for found, told in marked) <= 3


def test_what_is_exact_is_right() -> None:
    for row in hand_marked():
        if exact(row["said"], fact_of(row)):
            assert matches(row["said"], fact_of(row)) and f1(row["said"], fact_of(row)) > 0
