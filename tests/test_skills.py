"""Skills: the answer of a row is right, a changed one is wrong, and no problem stands in two splits."""

import gzip
import importlib.util
import json
import os
import random
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections import Counter
from fractions import Fraction
from pathlib import Path

import pytest

from palora.common.errors import InputError
from palora.data.skills import BUILTIN, SPLITS, Problem, few_shot, get_skill
from palora.data.skills.code import extract_code, run_tests
from palora.data.skills.humaneval import body
from palora.data.skills.numbers import boxed, final_number, parse_number
from palora.data.skills.scorers import SCORERS, letter
from palora.testbed import chain, minmax, steps

ROOT = Path(__file__).parent.parent
DATA = ROOT / "tests" / "data"
SHARED = Path(os.environ.get("PALORA_DATA", ROOT.parent / "shared" / "data"))  # the published files


@pytest.fixture
def allow_code(monkeypatch):
    monkeypatch.setenv("PALORA_ALLOW_CODE", "1")


def every_problem(name, folder=DATA):
    """All problems of a built-in skill from local files, over every split it has."""
    skill = get_skill(f"{name}:{folder}")
    splits = ("test",) if name == "humaneval" else SPLITS
    return skill, [problem for split in splits for problem in skill.problems(split, None, 0)]


def shared(*files):
    """Skip where the published files are not there."""
    missing = [name for name in files if not (SHARED / name).is_file()]
    reason = f"needs {', '.join(missing)} in {SHARED}; PALORA_DATA=DIR names another folder"
    return pytest.mark.skipif(bool(missing), reason=reason)


def write(path, *rows):
    path.write_text(
        "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows), encoding="utf-8"
    )
    return path


# ---------------------------------------------------------------------------------------------- get_skill


def test_every_skill_is_found_without_importing_torch(tmp_path):
    """The command line names skills in its help, so this must be quick."""
    code = """
import sys
from palora.data.skills import BUILTIN, get_skill
for name in BUILTIN:
    assert get_skill(name).name == name
heavy = {"torch", "transformers", "datasets", "sympy"} & set(sys.modules)
assert not heavy, heavy
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_unknown_skill_lists_the_names():
    with pytest.raises(InputError) as error:
        get_skill("gsm9k")
    assert all(name in str(error.value) for name in BUILTIN)
    assert "\n" not in str(error.value)


def test_an_unknown_name_with_a_folder_is_unknown_too(tmp_path):
    with pytest.raises(InputError, match="unknown skill"):
        get_skill(f"gsm9k:{tmp_path}")


def test_a_generated_skill_takes_no_folder(tmp_path):
    with pytest.raises(InputError, match="takes no folder"):
        get_skill(f"chain:{tmp_path}")


def test_a_folder_without_the_files_names_them(tmp_path):
    with pytest.raises(InputError, match=r"gsm8k_train\.jsonl, train\.jsonl"):
        get_skill(f"gsm8k:{tmp_path}").problems("train", None, 0)
    with pytest.raises(InputError, match="is no folder"):
        get_skill(f"gsm8k:{tmp_path / 'nowhere'}").problems("train", None, 0)


def test_without_network_the_local_folder_is_named():
    """In a process of its own: the hub reads HF_HUB_OFFLINE when it is imported."""
    code = """
from palora.common.errors import InputError
from palora.data.skills import get_skill
try:
    get_skill("gsm8k").problems("train", 1, 0)
except InputError as error:
    assert "gsm8k:DIR" in str(error) and "\\n" not in str(error), error
else:
    raise SystemExit("not refused")
"""
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": "/nonexistent"}
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, env=environment)


@pytest.mark.parametrize("spec", ["chain", "minmax", f"gsm8k:{DATA}"])
def test_requests_are_checked(spec):
    skill = get_skill(spec)
    with pytest.raises(InputError, match="split 'valid' is unknown"):
        skill.problems("valid", 1, 0)
    with pytest.raises(InputError, match="at least 1"):
        skill.problems("train", 0, 0)


# ---------------------------------------------------------------------------------------------- numbers


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("#### 1,000", 1000),
        ("so 1,000,000 in all", 1_000_000),
        ("#### $1,000.50", "1000.5"),
        ("#### 1000.0", 1000),
        ("It is 1,000.", 1000),
        ("-3", -3),
        ("x = −3", -3),  # the Unicode minus
        ("-$5", -5),
        ("$-5", -5),
        ("5-3", 3),
        ("10 - 5", 5),
        (".5", "1/2"),
        ("1/2", "1/2"),
        ("1,2,3", 3),
        ("50%", 50),
        ("#### **$18**", 18),
        ("####18", 18),
        (r"\boxed{1{,}000}", 1000),
        (r"\$1\,250", 1250),
        (r"-\frac{1}{2}", "-1/2"),
        (r"so $\boxed{x = 18 \text{ m}^2}$, in 3 steps", 18),
        ("The answer is 18, since 20 - 2 = 18 after 5 steps.", 18),
        ("The answer is 3 + 4 = 7.", 7),
        ("The answer is 3. No: the answer is 4. I took 5 minutes.", 4),
        ("The final answer is:\n\n$$-12$$\n\nDone in 3 steps.", -12),
        ("**Answer:** 7 apples for 3 people", 7),
        ("24 answers * 2 points/answer = 48 points, and 2 more make 50", 50),
        ("#### 18\n\nQuestion: and then?\n#### 99", 18),
        ("#### 1. Add 5\n#### 2. Add 6\n#### 42", 42),  # numbered headings
        ("#### 12. Then we add 5", 5),  # a heading, and the 12 is not cut to 1
        ("1/0", None),
        ("9" * 5000, None),  # more digits than Python converts
        ("no number", None),
        ("", None),
    ],
)
def test_final_number(text, number):
    assert final_number(text) == (None if number is None else Fraction(number))


def test_parse_number_wants_all_of_the_text():
    assert parse_number(" 1,000 ") == 1000
    assert parse_number("12 apples") is None
    assert parse_number("1,2") is None


def test_boxed_matches_nested_braces():
    assert boxed(r"a \boxed{1} then \boxed{\frac{1}{2}} end") == r"\frac{1}{2}"
    assert boxed(r"\boxed{\{1, 2\}}") == r"\{1, 2\}"
    assert boxed(r"cut off: \boxed{\frac{1}{2}") is None


# ---------------------------------------------------------------------------------------------- chain, minmax


@pytest.mark.parametrize(
    ("skill", "rules"),
    [
        (chain.SKILL, {"+": lambda a, b: (a + b) % 10, "-": lambda a, b: (a - b) % 10, "*": lambda a, b: a * b % 10}),
        (minmax.SKILL, {">": max, "<": min, "|": lambda a, b: abs(a - b)}),
    ],
)
def test_steps_are_right_by_an_independent_count(skill, rules):
    for split in SPLITS:
        for problem in skill.problems(split, 200, 3):
            state, states = int(problem.prompt[0]), []
            assert len(problem.prompt) == 12 and problem.prompt[-1] == "="
            for sign, operand in zip(problem.prompt[1:-1:2], problem.prompt[2:-1:2], strict=True):
                state = rules[sign](state, int(operand))
                states.append(str(state))
            assert problem.solution == ",".join(states) and problem.answer == states[-1]
            assert skill.score(problem.solution, problem)
            assert not skill.score(problem.solution[:-1] + str((state + 1) % 10), problem)


@pytest.mark.parametrize("completion", ["", "2,9,2,3", "2,9,2,3,77", "2,9,2,3,7,", "2,9,2,3,7x", "2,9,2,3,6", "1,7\n3"])
def test_steps_are_scored_strictly(completion):
    assert not steps.score(completion, Problem("7+5-3*8+1-6=", "7"))


@pytest.mark.parametrize("skill", [chain.SKILL, minmax.SKILL])
def test_generated_splits_are_disjoint_whatever_the_seed(skill):
    prompts = {split: {p.prompt for s in range(3) for p in skill.problems(split, 2000, s)} for split in SPLITS}
    assert all(len(found) > 5900 for found in prompts.values())  # and there is no end of them
    assert not prompts["train"] & prompts["validation"]
    assert not prompts["train"] & prompts["test"]
    assert not prompts["validation"] & prompts["test"]


def test_generated_problems_are_reproducible():
    assert chain.SKILL.problems("train", 20, 5)[:10] == chain.SKILL.problems("train", 10, 5)
    assert chain.SKILL.problems("train", 10, 5) != chain.SKILL.problems("train", 10, 6)
    assert len(chain.SKILL.problems("test", None, 0)) == 1000


def test_draw_weights_the_operators_and_keeps_to_a_split():
    rng = random.Random(0)
    signs = Counter(c for _ in range(400) for c in chain.draw(rng, weights=(8, 8, 1)).prompt if c in "+-*")
    assert 0.03 < signs["*"] / signs.total() < 0.09  # 1/17
    assert {steps.split_of(chain.draw(rng, split="validation").prompt) for _ in range(50)} == {"validation"}
    assert {steps.split_of(chain.draw(rng).prompt) for _ in range(200)} == set(SPLITS)


# ---------------------------------------------------------------------------------------------- rows in published form


def perturb_number(problem):
    return problem.solution.rpartition("####")[0] + f"#### {int(problem.answer) + 1}"


def check_gsm8k(skill, problems):
    for problem in problems:
        assert "<<" not in problem.solution
        assert skill.score(problem.solution, problem)
        assert skill.score(f"So the answer is ${int(problem.answer):,}.00.", problem)
        assert not skill.score(perturb_number(problem), problem)
        assert not skill.score("", problem)


def test_gsm8k_rows():
    skill, problems = every_problem("gsm8k")
    check_gsm8k(skill, problems)
    assert [p.answer for p in problems] == ["48", "1530", "10", "45", "96", "5"]  # rows 0, 2 train; 1, 3 validate
    assert problems[2].solution.endswith("Tom pays 0.25 x 40 = $10.\n#### 10")
    assert problems[0].prompt.endswith("after ####.")  # no letter in the number's place: small models copy it


@shared("gsm8k_train.jsonl", "gsm8k_test.jsonl")
def test_gsm8k_whole():
    skill, problems = every_problem("gsm8k", SHARED)
    check_gsm8k(skill, problems)
    sizes = [len(skill.problems(split, None, 0)) for split in SPLITS]
    assert sizes == [3737, 3736, 1319]
    assert len({problem.prompt for problem in problems}) == sum(sizes)  # so the splits are disjoint
    few, more = skill.problems("train", 10, 4), skill.problems("train", 30, 4)
    assert more[:10] == few != skill.problems("train", 10, 5)


def test_a_gsm8k_row_without_its_number_is_named(tmp_path):
    write(tmp_path / "train.jsonl", {"question": "a?", "answer": "#### 1"}, "", {"question": "b?", "answer": "two"})
    with pytest.raises(InputError, match=r"train\.jsonl, line 3: the answer does not end in '#### N'"):
        get_skill(f"gsm8k:{tmp_path}").problems("validation", None, 0)


def test_a_split_without_rows_is_refused(tmp_path):
    write(tmp_path / "train.jsonl", {"question": "a?", "answer": "#### 1"})
    with pytest.raises(InputError, match="no problem for this split"):
        get_skill(f"gsm8k:{tmp_path}").problems("validation", None, 0)


def test_math(tmp_path):
    pytest.importorskip("math_verify")
    solutions = [r"So $x = \boxed{\frac{1}{2}}$.", r"\boxed{x^2 + 1}", r"It is \boxed{(1, 2]}", r"\boxed{\text{even}}"]
    rows = [{"problem": f"{i}?", "level": "Level 1", "solution": text} for i, text in enumerate(solutions)]
    write(tmp_path / "train.jsonl", *rows)
    write(tmp_path / "math_test.jsonl", *rows)
    skill = get_skill(f"math:{tmp_path}")
    assert [p.prompt[0] for p in skill.problems("train", None, 0)] == ["0", "2"]
    problems = skill.problems("test", None, 0)
    for problem, solution in zip(problems, solutions, strict=True):
        assert skill.score(solution, problem)
        assert not skill.score(r"\boxed{7}", problem)
        assert not skill.score("", problem)
    half, polynomial = problems[:2]
    assert skill.score(r"\boxed{0.5}", half) and skill.score("The answer is $1/2$.", half)
    assert not skill.score(r"\boxed{\frac{1}{2}} or rather \boxed{2}", half)
    assert skill.score(r"\boxed{1 + x^2}", polynomial) and not skill.score(r"\boxed{x^2 - 1}", polynomial)

    verdicts = []  # the library's alarm signal exists in the main thread only
    thread = threading.Thread(target=lambda: verdicts.append(skill.score(r"\boxed{0.5}", half)))
    thread.start()
    thread.join()
    assert verdicts == [True]


def test_math_without_its_library_says_how_to_get_it(monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "math_verify" else find(name))
    with pytest.raises(InputError, match=r"pip install 'palora\[math\]'"):
        get_skill("math")


@pytest.mark.parametrize("name", ["arc_easy", "arc_challenge"])
def test_arc(tmp_path, name):
    file = {"arc_easy": "ARC-Easy-Train.jsonl", "arc_challenge": "ARC-Challenge-Train.jsonl"}[name]
    choices = [{"text": "trout", "label": "1"}, {"text": "whale", "label": "2"}, {"text": "gull", "label": "3"}]
    flat = {"text": ["trout", "gull", "bat"], "label": ["A", "B", "C"]}
    write(
        tmp_path / file,
        {"id": "x", "question": {"stem": "Which is a mammal?", "choices": choices}, "answerKey": "2"},
        {"id": "y", "question": "Which of these is a mammal?", "choices": flat, "answerKey": "C"},
    )
    skill = get_skill(f"{name}:{tmp_path}")
    nested, hub = skill.problems("train", None, 0)
    assert nested.prompt.startswith("Which is a mammal?\nA. trout\nB. whale\nC. gull\n") and nested.answer == "B"
    assert hub.prompt.startswith("Which of these is a mammal?\nA. trout\nB. gull\nC. bat\n") and hub.answer == "C"
    for problem in (nested, hub):
        assert skill.score(problem.solution, problem) and not skill.score("A", problem)
    with pytest.raises(InputError, match="Dev"):
        skill.problems("validation", None, 0)
    write(tmp_path / file, {"id": "x", "question": {"stem": "?", "choices": choices}, "answerKey": "4"})
    with pytest.raises(InputError, match=r"line 1: no row of ARC with answerKey '4'"):
        skill.problems("train", None, 0)


# ---------------------------------------------------------------------------------------------- code


@pytest.mark.parametrize("name", ["humaneval", "mbpp"])
def test_code_needs_permission(name, monkeypatch):
    monkeypatch.delenv("PALORA_ALLOW_CODE", raising=False)
    skill = get_skill(f"{name}:{DATA}")
    with pytest.raises(InputError, match="PALORA_ALLOW_CODE=1"):
        skill.problems("test", None, 0)
    with pytest.raises(InputError, match="PALORA_ALLOW_CODE=1"):
        skill.score("pass", Problem("", "", context=json.dumps({"prompt": "", "function": "f", "tests": ""})))


def check_code(skill, problems):
    for problem in problems:
        function = json.loads(problem.context)["function"]
        assert skill.score(problem.solution, problem), function
        assert skill.score(f"Sure!\n\n{problem.solution}\n\nIt returns what you want.", problem), function
        assert not skill.score(f"```python\ndef {function}(*arguments):\n    return None\n```", problem), function
        assert not skill.score("", problem), function


@pytest.mark.parametrize("name", ["humaneval", "mbpp"])
def test_code_rows(name, allow_code):
    check_code(*every_problem(name))


@shared("humaneval.jsonl.gz", "mbpp_plus.jsonl.gz")
@pytest.mark.parametrize("name", ["humaneval", "mbpp"])
def test_code_sample_of_the_whole(name, allow_code):
    skill, problems = every_problem(name, SHARED)
    assert len({problem.prompt for problem in problems}) == {"humaneval": 164, "mbpp": 378}[name]
    check_code(skill, random.Random(0).sample(problems, 12))


def test_mbpp_splits_are_those_of_mbpp(allow_code):
    skill = get_skill(f"mbpp:{DATA}")
    functions = {s: [json.loads(p.context)["function"] for p in skill.problems(s, None, 0)] for s in SPLITS}
    assert functions == {
        "train": ["is_square", "circle_area"],  # 3 and 606
        "validation": ["staircase_ways"],  # 583
        "test": ["is_weekend"],  # 455
    }


def test_mbpp_rows_of_the_hub_give_the_same_problem(tmp_path, allow_code):
    release = get_skill(f"mbpp:{DATA}").problems("test", None, 0)[0]
    tests = json.loads(release.context)["tests"].split("\n")
    row = {"task_id": 455, "code": release.answer, "prompt": release.prompt.split("\n\n")[0]}
    write(tmp_path / "mbpp_plus.jsonl", row | {"test_imports": tests[:1], "test_list": tests[1:]})
    hub = get_skill(f"mbpp:{tmp_path}").problems("test", None, 0)[0]
    assert (hub.prompt, hub.answer, hub.solution) == (release.prompt, release.answer, release.solution)


def test_humaneval_has_only_a_test_split(allow_code):
    for split in ("train", "validation"):
        with pytest.raises(InputError, match="only a test split"):
            get_skill(f"humaneval:{DATA}").problems(split, None, 0)


def test_humaneval_accepts_the_body_alone(allow_code):
    skill, problems = every_problem("humaneval")
    for problem in problems:
        code = problem.answer.removeprefix(json.loads(problem.context)["prompt"])
        for completion in (code, code.strip(), textwrap.dedent(code), f"{code}\n\ndef cut_off(", f"```python\n{code}"):
            assert skill.score(completion, problem), completion
        assert not skill.score("    pass", problem)


def test_humaneval_body_finds_the_lost_indentation():
    whole = "    if not x:\n      return 0\n    return x\n"
    assert body("if not x:\n      return 0\n    return x") == whole
    assert body("\n" + whole + "print(f(3))") == whole
    assert body("if not x:\n  return 0\nreturn x") == whole
    assert body("y = []\nfor a in x:\n    y.append(a)\nreturn y").endswith("        y.append(a)\n    return y\n")
    assert body("for a in x:\n    return a") == "    for a in x:\n        return a\n"
    assert body("return x") == "    return x\n"
    assert body("").strip() == ""


def test_extract_code_prefers_the_block_with_the_function():
    text = "Use it so:\n```python\nf(1)\n```\nwhere\n```text\nx\n```\n```py\ndef f(x):\n    return x\n```"
    assert extract_code(text, "f") == "def f(x):\n    return x\n"
    assert extract_code("```\nreturn x\n```", "f") == "return x\n"
    assert extract_code("```python\ndef f(x):\n    ret", "f") == "def f(x):\n    ret"
    assert extract_code("return x", "f") == "return x"


@pytest.mark.parametrize(
    "code",
    [
        "while True: pass",
        "import time; time.sleep(60)",
        "while True: print('x' * 10**6)",
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(60)",
    ],
)
def test_code_that_does_not_end_is_wrong(code, allow_code):
    assert not run_tests(code, "", timeout=0.5)


def test_the_children_of_code_end_with_it(tmp_path, allow_code, monkeypatch):
    monkeypatch.setattr("palora.data.skills.code._way", lambda: "limits")  # the others let it start none
    child = tmp_path / "child"
    code = f"""
import subprocess, time
child = subprocess.Popen(["sleep", "60"])
open({str(child)!r}, "w").write(str(child.pid))
time.sleep(60)
"""
    assert not run_tests(code, "", timeout=2)
    pid = int(child.read_text()) if child.exists() else None  # None: not root, so it could not even start one
    for _ in range(50):
        if pid is None or not Path(f"/proc/{pid}").exists() or _state(pid) == "Z":
            return
        time.sleep(0.1)
    os.kill(pid, signal.SIGKILL)
    pytest.fail("a child outlived the time limit")


def _state(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "Z"


@pytest.mark.parametrize(
    "code",
    [
        "import sys; answer = 42; sys.exit(0)",
        "import os; answer = 42; os._exit(0)",
        "open('passed', 'w').write('yes')\nimport sys; sys.exit(0)",
        "answer = 0\nx = '''",  # would swallow the tests, were they compiled together
        "answer = 42\nx = bytearray(2 * 10**9)",
        "answer = 42\nopen('big', 'wb').write(bytes(10**8))",
        "answer = 42\n" + "(" * 100_000,
        "answer = 42\n\0",
        "answer = 42\n\ud800",
        "",
    ],
)
def test_code_that_fails_is_wrong(code, allow_code):
    assert not run_tests(code, 'assert answer == 42, """\'\'\' #"""', timeout=5)
    assert not run_tests(code, "raise ValueError", timeout=5)


def test_code_that_passes(allow_code):
    assert run_tests("answer = 42", 'assert answer == 42, """\'\'\' #"""')
    assert run_tests("import os\nanswer = 'PALORA_ALLOW_CODE' in os.environ", "assert answer is False")  # no secrets
    assert run_tests("def f(): return 1\nif __name__ == '__main__': input()", "assert f() == 1")


# ---------------------------------------------------------------------------------------------- a file of your own


def rows(n, **fields):
    return [{"prompt": f"{i}?", "answer": str(i), "scorer": "exact"} | fields for i in range(n)]


def test_a_file_splits_by_row(tmp_path):
    skill = get_skill(str(write(tmp_path / "mine.jsonl", *rows(10))))
    assert skill.name == "mine"
    answers = {split: [p.answer for p in skill.problems(split, None, 0)] for split in SPLITS}
    assert answers == {"train": list("02468"), "validation": list("159"), "test": list("37")}
    assert len(skill.problems("train", 3, 0)) == 3 and len(skill.problems("train", 99, 0)) == 5
    problem = skill.problems("test", None, 0)[0]
    assert skill.score(" 3. ", problem) and not skill.score("33", problem)


def test_a_file_may_be_zipped_or_marked_as_utf8(tmp_path):
    text = write(tmp_path / "mine.jsonl", *rows(4)).read_bytes()
    (tmp_path / "marked.jsonl").write_bytes(b"\xef\xbb\xbf" + text)
    (tmp_path / "zipped.jsonl.gz").write_bytes(gzip.compress(text))
    expected = get_skill(str(tmp_path / "mine.jsonl")).problems("train", None, 0)
    for name in ("marked.jsonl", "zipped.jsonl.gz"):
        skill = get_skill(str(tmp_path / name))
        assert skill.name == name.split(".")[0] and skill.problems("train", None, 0) == expected


def test_the_scorer_of_a_file(tmp_path):
    path = write(tmp_path / "mine.jsonl", *({"prompt": f"{i}?", "answer": i} for i in range(4)))
    skill = get_skill(f"{path}#number")
    problem = skill.problems("test", None, 0)[0]
    assert skill.score("I say 3.0", problem) and not skill.score("I say 4", problem)
    with pytest.raises(InputError, match="exact, contains, number, choice, likelihood, math"):
        get_skill(f"{path}#regex")


@pytest.mark.parametrize(
    ("answers", "right", "wrong"),
    [
        ([1, "2.5", "1,000", "-4"], "So it is 1.", "So it is 2."),  # numbers
        (["a", "B", "c", "D"], "The answer is (A).", "The answer is B. A is wrong"),  # letters
        (["Ada", "Bob", "3", "D"], "It was Ada who did.", "Adam"),  # anything else: the answer in what is said
    ],
)
def test_prompt_and_answer_alone_are_a_skill(tmp_path, caplog, answers, right, wrong):
    caplog.set_level("INFO", "palora")
    skill = get_skill(str(write(tmp_path / "mine.jsonl", *({"prompt": f"{a}?", "answer": a} for a in answers))))
    problem = skill.problems("train", None, 0)[0]
    assert skill.score(right, problem) and not skill.score(wrong, problem)
    assert "there are exact, contains, number, choice, likelihood, math" in caplog.text


def test_a_scorer_in_some_rows_only_is_refused(tmp_path):
    path = write(tmp_path / "mine.jsonl", *rows(2), {"prompt": "x?", "answer": "1"})
    with pytest.raises(InputError, match=r"line 3: no scorer, .* with --scorer: there are exact, contains, number"):
        get_skill(str(path))


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ("{oops", "line 3: not valid JSON"),
        ("[1]", "line 3: must be a JSON object, not list"),
        ({"prompt": "x?", "scorer": "exact"}, "line 3: no field 'answer'; there are prompt, scorer"),
        ({"prompt": "x?", "answer": " ", "scorer": "exact"}, "line 3: 'answer' must be a text"),
        ({"prompt": "", "answer": "1", "scorer": "exact"}, "line 3: 'prompt' must be a text"),
        (
            {"prompt": "x?", "answer": "1", "scorer": "number"},
            "line 3: scorer 'number' where the rows before have 'exact'",
        ),
        ({"prompt": "0?", "answer": "1", "scorer": "exact"}, r"line 3: the same prompt as in .*line 1"),
        ({"prompt": "x?", "answer": "1", "scorer": "exact", "solution": 3}, "line 3: 'solution' must be a text"),
    ],
)
def test_a_bad_row_is_named(tmp_path, bad, message):
    path = write(tmp_path / "mine.jsonl", *rows(2), bad)
    with pytest.raises(InputError, match=message) as error:
        get_skill(str(path))
    assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_bad_files(tmp_path):
    with pytest.raises(InputError, match="No such file"):
        get_skill(str(tmp_path / "none.jsonl"))
    with pytest.raises(InputError, match="has no rows"):
        get_skill(str(write(tmp_path / "empty.jsonl", "")))
    (tmp_path / "latin.jsonl").write_bytes(b'{"prompt": "a?"}\n{"prompt": "caf\xe9?"}\n')
    with pytest.raises(InputError, match="line 2: not UTF-8"):
        get_skill(str(tmp_path / "latin.jsonl"))
    (tmp_path / "broken.jsonl.gz").write_bytes(b"\x1f\x8bnot gzip at all")
    with pytest.raises(InputError, match="cannot be read"):
        get_skill(str(tmp_path / "broken.jsonl.gz"))
    with pytest.raises(InputError, match="1 rows leave none for the test split"):
        get_skill(str(write(tmp_path / "short.jsonl", *rows(1)))).problems("test", None, 0)
    for scorer, message in (("number", "is no number"), ("choice", "is no letter")):
        path = write(tmp_path / f"{scorer}.jsonl", {"prompt": "?", "answer": "maybe", "scorer": scorer})
        with pytest.raises(InputError, match=f"line 1: the answer 'maybe' {message}"):
            get_skill(str(path))


@pytest.mark.parametrize(
    ("scorer", "answer", "right", "wrong"),
    [
        ("exact", "New York", ["new  york", '"New York."', " New York\n"], ["New York City", "York", ""]),
        ("contains", "New York", ["It is new york.", "New York"], ["New Yorker", "Newer York", ""]),
        ("contains", "3", ["3 of them", "it's (3)"], ["33", "3rd", ""]),
        ("number", "1,000", ["= 1000", "#### 1000.00"], ["1,001", "000", "1", ""]),
        ("choice", "B", ["B", "b", "(B) whale", "The answer is B."], ["A", "AB", "(C), not (B)...", ""]),
    ],
)
def test_scorers(scorer, answer, right, wrong):
    problem = Problem("?", answer)
    assert [text for text in right if not SCORERS[scorer](text, problem)] == []
    assert [text for text in wrong if SCORERS[scorer](text, problem)] == []


@pytest.mark.parametrize(
    ("text", "choice"),
    [
        ("**D**", "D"),
        ("C\nBecause A is wrong", "C"),
        ("B. whale", "B"),
        ("The correct answer is (C) because A is wrong.", "C"),
        ("The answer is A because of B", "A"),
        ("Answer: d", "D"),
        ("Among A, B and C, the best choice is B", "B"),
        ("A whale is a mammal, so option B", "B"),
        ("A dog barks, so C", "C"),
        ("A and B are wrong. D", "D"),
        (r"A is close, but \boxed{\text{E}}", "E"),
        ("The answer is:\n\nC", "C"),
        ("The answer is a dog", None),
        ("E.g. a dog", None),
        ("A dog", None),
        ("", None),
    ],
)
def test_letter(text, choice):
    assert letter(text) == choice


def test_a_local_skill_names_its_splits_and_the_length_of_an_answer(tmp_path):
    file = tmp_path / "mine.jsonl"
    rows = [{"prompt": f"{i}?", "answer": "1", "scorer": "exact", "split": s} for i, s in enumerate(["test", "train"])]
    file.write_text("\n".join(json.dumps(row | {"max_new_tokens": 7}) for row in rows))
    skill = get_skill(str(file))
    assert skill.max_new_tokens == 7
    assert [p.prompt for p in skill.problems("test", None, 0)] == ["0?"]
    assert [p.prompt for p in skill.problems("train", None, 0)] == ["1?"]
    with pytest.raises(InputError, match="leave none for the validation split"):
        skill.problems("validation", None, 0)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"split": "dev"}, "line 1: split 'dev' is unknown; there are train, validation, test"),
        ({"max_new_tokens": "7"}, "'max_new_tokens' must be a whole number of at least 1, not '7'"),
        ({"scorer": "likelihood"}, "line 1: no field 'choices'"),
        ({"scorer": "likelihood", "choices": "ab"}, "line 1: 'choices' must be a list of texts"),
        ({"scorer": "likelihood", "choices": ["a", "b"]}, "line 1: the answer '1' is none of the choices"),
    ],
)
def test_a_wrong_row_of_a_local_skill_is_named(tmp_path, row, message):
    file = tmp_path / "mine.jsonl"
    file.write_text(json.dumps({"prompt": "0?", "answer": "1", "scorer": "exact"} | row))
    with pytest.raises(InputError, match=message):
        get_skill(str(file))


def test_any_row_of_a_local_skill_may_say_the_length_of_an_answer_but_all_the_same(tmp_path):
    rows = [{"prompt": f"{i}?", "answer": "1", "scorer": "exact"} for i in range(4)]
    rows[2]["max_new_tokens"] = 9
    file = tmp_path / "mine.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    assert get_skill(str(file)).max_new_tokens == 9
    rows[3]["max_new_tokens"] = 8
    file.write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(InputError, match=r"line 4: 'max_new_tokens' is 8, and 9 in .*line 3"):
        get_skill(str(file))


def test_solved_problems_before_a_problem_are_lm_evals_few_shot(tmp_path):
    rows = [{"prompt": f"What is {i} + 1?", "answer": str(i + 1), "solution": f"It is {i + 1}."} for i in range(8)]
    file = tmp_path / "sums.jsonl"
    file.write_text("\n".join(json.dumps({**row, "scorer": "number"}) for row in rows))
    skill = get_skill(str(file))
    [problem] = skill.problems("test", 1, 0)
    [found] = few_shot(skill, [problem], 2, 0)
    first, second = skill.problems("train", 2, 0)
    assert f"Question: {found.prompt}\nAnswer:" == (
        f"Question: {first.prompt}\nAnswer: {first.solution}\n\n"
        f"Question: {second.prompt}\nAnswer: {second.solution}\n\nQuestion: {problem.prompt}\nAnswer:"
    )
    assert found.answer == problem.answer and skill.score(f"It is {problem.answer}", found)
    assert few_shot(skill, [problem], 0, 0) == [problem]
    with pytest.raises(InputError, match="sums has no 5 training problems with a solution"):
        few_shot(skill, [problem], 5, 0)
