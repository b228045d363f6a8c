"""Code that a model wrote: honest code is scored as Python runs it, and none scores right by a trick or gets out."""

import json
import math
import os
import random
import subprocess
import sys
import time
from collections import Counter, OrderedDict
from decimal import Decimal
from enum import IntEnum
from fractions import Fraction
from pathlib import Path

import pytest

from palora.common.errors import InputError
from palora.common.progress import say_once
from palora.data.sandbox import plain
from palora.data.skills import Problem, code, humaneval, mbpp
from palora.data.skills.code import run_tests

ROOT = Path(__file__).parent.parent


@pytest.fixture(autouse=True)
def allow_code(monkeypatch):
    monkeypatch.setenv("PALORA_ALLOW_CODE", "1")


@pytest.fixture
def namespaces():
    """Skip where the machine has none: what runs here may only be tried in them."""
    if code._way() != "namespaces":
        pytest.skip("needs Linux namespaces, which this machine does not allow")


@pytest.fixture
def limits(monkeypatch):
    """Run as on a machine that allows nothing but limits."""
    monkeypatch.setattr(code, "_way", lambda: "limits")


# ---------------------------------------------------------------------------------------------- values


class Colour(IntEnum):
    RED = 3


@pytest.mark.parametrize(
    "value",
    [
        *(None, True, False, 0, -7, 2**63, -(10**5000), 0.1, math.inf, -math.inf, "", "a\n\0é\ud800", 1j, b"\xff\0"),
        *(bytearray(b"x"), [], [1, [2.0, (3, None)]], (), {1, 2}, set(), frozenset({(1, "a")})),
        *({}, {"a": [1], (1, 2): {"b": {3}}}, {1: 1, 1.5: 2}),
    ],
    ids=lambda value: repr(value)[:20] if not isinstance(value, int) or abs(value) < 2**70 else "large",
)
def test_a_plain_value_arrives_with_its_type(value):
    arrived = plain.unpack(json.loads(json.dumps(plain.pack(value))))
    assert arrived == value and type(arrived) is type(value)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (Counter("aab"), {"a": 2, "b": 1}),
        (OrderedDict(a=1), {"a": 1}),
        (Colour.RED, 3),
        (Fraction(1, 2), 0.5),
        (Decimal("0.25"), 0.25),
    ],
)
def test_a_subclass_arrives_as_the_plain_type(value, expected):
    arrived = plain.unpack(json.loads(json.dumps(plain.pack(value))))
    assert arrived == expected and type(arrived) is type(expected)


def test_of_other_values_only_the_truth_arrives():
    for value, truth in ((object(), True), (len, True), (type("Empty", (), {"__len__": lambda self: 0})(), False)):
        arrived = plain.unpack(plain.pack(value))
        assert bool(arrived) is truth and arrived != value and arrived != truth and arrived is not None


PLAIN = (
    type(None),
    type(iter([])),
    bool,
    int,
    float,
    str,
    complex,
    bytes,
    bytearray,
    list,
    tuple,
    set,
    frozenset,
    dict,
    plain.Other,
)


def is_plain(value):
    items = [*value, *value.values()] if type(value) is dict else value
    return type(value) in PLAIN and (
        type(value) not in (list, tuple, set, frozenset, dict) or all(map(is_plain, items))
    )


def test_of_whatever_arrives_plain_values_are_made_or_none():
    rng, made = random.Random(0), 0

    def draw(depth):
        if depth == 0 or rng.random() < 0.3:
            return rng.choice([None, True, 3, 1e999, "ff", "list", -1, "__class__", {"a": 1}])
        if rng.random() < 0.8:
            return [rng.choice([*plain.MAKE, "eval"]), [draw(depth - 1) for _ in range(rng.randrange(3))]]
        return [draw(depth - 1) for _ in range(rng.randrange(4))]

    for _ in range(5000):
        try:
            value = plain.unpack(draw(4))
        except Exception:
            continue
        made += 1
        assert is_plain(value), value
    assert made > 500


# ---------------------------------------------------------------------------------------------- honest code


@pytest.mark.parametrize(
    ("solution", "tests"),
    [
        ("def f(x): return x", "assert f(2) == 2 and f('2') == '2' and f([1]) != (1,) and type(f(True)) is bool"),
        ("def f(*a, b=1, **c): return [a, b, c]", "assert f(1, 2, b=3, d=4) == [(1, 2), 3, {'d': 4}]"),
        ("f = lambda x: -x", "assert list(map(f, [1, 2])) == [-1, -2]"),
        ("def f(x): x.append(1); x[0].add(5)", "l = [{4}]; assert f(l) is None and l == [{4, 5}, 1]"),
        ("def f(x, y): x.clear(); y['a'] = 1", "s, d = {1}, {}; f(s, d); assert s == set() and d == {'a': 1}"),
        ("def f(x): x.sort(); raise KeyError", "l = [2, 1]\ntry: f(l)\nexcept KeyError: assert l == [1, 2]"),
        ("def f(x): yield from range(x)", "assert list(f(3)) == [0, 1, 2] and f(3) != [0, 1, 2]"),
        ("import itertools\ndef f(): return itertools.count()", "i = f(); assert next(i) == 0 and next(i) == 1"),
        ("def f(x): return x[1]", "try: f([1])\nexcept IndexError as e: assert 'range' in str(e)\nelse: assert 0"),
        (
            "class Own(ValueError): pass\ndef f(): raise Own('no')",
            "try: f()\nexcept ValueError as e: assert e.args == ('no',)\nelse: assert 0",
        ),
        ("import re\ndef f(s): return re.search('b', s)", "assert f('abc') and not f('xyz') and f('b') is not None"),
        ("def f(): return 7 ** 9000", "assert f() == 7 ** 9000"),
        ("def f(): return float('nan')", "assert f() != f() and [f()] != [f()]"),
        ("answer, _x = [1], 2\ndef f(): return answer.append(2)", "f(); assert answer == [1]"),  # as it was made
        ("n = 0\ndef f():\n    global n\n    n += 1\n    return n", "assert [f(), f(), f()] == [1, 2, 3]"),
        ("def f(x): print('passed', x); return input", "assert f(1)"),
        ("open('a', 'w').write('b')\ndef f(): return open('a').read()", "assert f() == 'b'"),
    ],
)
def test_honest_code_is_right(solution, tests):
    if "open(" in solution and code._way() != "namespaces":
        pytest.skip("elsewhere a solution has no folder to write to")
    assert run_tests(solution, tests)


def test_the_tested_function_may_be_called_as_one_of_pythons():
    solution = "def sum(x): return 0"
    assert not run_tests(solution, "assert sum([1, 2]) == 3", function="sum")
    assert run_tests(solution, "assert sum([1, 2]) == 0", function="sum")


def test_processor_time_counts_and_not_the_clock():
    assert run_tests("import time\ndef f(): time.sleep(1); return 1", "assert f() == 1", timeout=0.5)
    turning = "import time\ndef f():\n    while time.process_time() < 3: pass\n    return 1"
    assert not run_tests(turning, "assert f() == 1", timeout=1)
    assert run_tests(turning, "assert f() == 1", timeout=5)


def test_limits_alone_score_as_well(limits):
    assert run_tests("import os\ndef f(x): return [x, 'PALORA_ALLOW_CODE' in os.environ]", "assert f(1) == [1, False]")
    assert not run_tests("def f(x): return 3", "assert f(1) == 2")
    assert not run_tests("import time\ndef f(x): time.sleep(60)", "assert f(1) is None", timeout=0.5)
    assert not run_tests("def f(x):\n    while True: pass", "f(1)", timeout=1)
    assert not run_tests("open('left', 'w')\ndef f(x): return 1", "assert f(1)")  # no folder is left either


def test_root_without_namespaces_becomes_nobody(monkeypatch):
    monkeypatch.setattr(code, "_way", lambda: "user")
    if os.geteuid() or not run_tests("import math\ndef f(): return 1", "assert f() == 1"):
        pytest.skip("needs root, and a Python that everybody can read")
    assert run_tests("import os\ndef f(): return os.getuid()", "assert f() == 65534")
    assert run_tests("import os\ndef f(): os.fork()", "try: f()\nexcept OSError: pass\nelse: assert 0")


# ---------------------------------------------------------------------------------------------- tricks

EQUAL = """
class Equal({base}):
    __eq__ = __le__ = __ge__ = lambda self, other: True
    __ne__ = __lt__ = lambda self, other: False
    __sub__ = __rsub__ = __abs__ = __getitem__ = __iter__ = lambda self, *other: self
    __hash__ = lambda self: {hash}
"""
SEARCH = """
import gc, glob, os, re, sys
def texts():
    frame = sys._getframe()
    while frame:
        yield from map(repr, [*frame.f_locals.values(), *frame.f_globals.values()])
        frame = frame.f_back
    yield from (repr(thing) for thing in gc.get_objects() if isinstance(thing, (str, list, tuple, dict)))
    yield repr([vars(module) for module in list(sys.modules.values()) if "numpy" not in repr(module)])
    yield repr([sys.argv, sys.orig_argv, os.environ, sys.excepthook, vars(sys.modules["__main__"])])
    files = [*glob.glob("/proc/*/cmdline"), *glob.glob("/proc/*/environ"), *glob.glob("**"), *glob.glob("/tmp/*")]
    for file in [*files, *range(3, 20)]:
        try:
            os.set_blocking(file, False) if isinstance(file, int) else None
            yield open(file, errors="replace", closefd=False if isinstance(file, int) else True).read(10**6)
        except (OSError, ValueError):
            pass
def f(x):
    for text in texts():
        if found := re.search(r"86420\\d+", text.replace("86420" + "\\\\d", "")):
            return int(found[0])
"""
TRICKS = {
    "empties the tests": "open('tests.py', 'w').write('')\nopen('/tmp/tests.py', 'w').write('')\nf = lambda x: 0",
    "replaces compile": "import builtins; old = compile\n"
    "builtins.compile = lambda s, name, *a: old('' if 'test' in name else s, name, *a)\ndef f(x): return 0",
    "replaces exec": "import builtins; builtins.exec = lambda *a: None\ndef f(x): return 0",
    "replaces open": "import builtins, io; old = open\n"
    "builtins.open = lambda n, *a, **k: io.StringIO('') if 'test' in str(n) else old(n, *a, **k)\ndef f(x): return 0",
    "finds a word in __main__": "import os, __main__\nopen('passed', 'w').write(__main__.word); os._exit(0)",
    "finds a word by frames": "import os, sys\nword = sys._getframe(1).f_globals['word']\n"
    "open('passed', 'w').write(word); os._exit(0)",
    "finds a word by gc": "import gc, os\nfor d in gc.get_objects():\n    if isinstance(d, dict) and 'word' in d:\n"
    "        open('passed', 'w').write(str(d['word'])); os._exit(0)",
    "finds a word in excepthook": "import sys\ndef hook(kind, error, trace):\n"
    "    open('passed', 'w').write(trace.tb_frame.f_globals['word'])\nsys.excepthook = hook\ndef f(x): return 0",
    "replaces json": "import json; json.dumps = lambda *a: '[\"return\", true, [null]]'\ndef f(x): return 0",
    "replaces the runner": "import sys, gc\nfor m in list(sys.modules.values()):\n"
    "    for n in ('pack', 'unpack', 'answer'):\n        hasattr(m, n) and setattr(m, n, "
    "lambda *a: ['return', True, [None]])\ndef f(x): return 0",
    "replaces AssertionError": "import builtins; builtins.AssertionError = KeyError\ndef f(x): return 0",
    "searches": SEARCH,
    "excepthook": "import os, sys\nsys.excepthook = lambda *a: os._exit(0)\ndef f(x): raise AssertionError",
    "atexit": "import atexit, os\natexit.register(os._exit, 0)\ndef f(x): return 0",
    "exits at once": "import os; os._exit(0)",
    "exits in the call": "import os\ndef f(x): os._exit(0)",
    "raises SystemExit": "import sys\ndef f(x): sys.exit(0)",
    "raises SystemExit at once": "def f(x): return 0\nraise SystemExit(0)",
    "raises an exit of its own": "class SystemExit(Exception): pass\ndef f(x): raise SystemExit(0)",
    "prints a verdict": "import os\nfor fd in range(1, 30):\n    for word in (b'passed', b'true', b'0'):\n"
    "        try: os.write(fd, word + b'\\n')\n        except OSError: pass\ndef f(x): return 0",
    "answers before": 'import os\nfor fd in range(3, 30):\n    try: os.write(fd, b\'{"f": ["value", true]}\\n\' * 3)\n'
    "    except OSError: pass\ndef f(x): return 0",
    "links and pipes": "import os\nfor name in ('passed', 'tests.py'):\n    os.mkfifo(name)\n"
    "os.symlink('passed', 'verdict')\ndef f(x): return 0",
    "NaN": "def f(x): return float('nan')",
    "huge number": "def f(x): return 10 ** 10 ** 8",
    "deep result": "def f(x):\n    r = []\n    for _ in range(10**6): r = [r]\n    return r",
    "result that holds itself": "def f(x):\n    r = []; r.append(r)\n    return r",
    "deep recursion": "import sys\nsys.setrecursionlimit(10**9)\ndef f(x): return f(x)",
    "deep JSON": "import os\ndef f(x):\n    for fd in range(3, 9):\n        try: os.write(fd, b'[' * 10**5 + b'\\n')\n"
    "        except OSError: pass",
    "no JSON": "import os\ndef f(x):\n    for fd in range(3, 9):\n        try: os.write(fd, b'\\xff\\xfe{}\\n')\n"
    "        except OSError: pass",
    "endless answer": "import os\ndef f(x):\n    while True:\n        for fd in range(3, 9):\n"
    "            try: os.write(fd, b'1' * 10**6)\n            except OSError: pass",
    "endless output": "def f(x):\n    while True: print('4' * 10**6)",
    "endless loop": "def f(x):\n    while True: pass",
    "endless sleep": "import time, signal\nsignal.alarm(0)\nfor s in range(1, 30):\n"
    "    try: signal.signal(s, signal.SIG_IGN)\n    except OSError: pass\ndef f(x): time.sleep(60)",
    "endless end": "import atexit, time\natexit.register(time.sleep, 60)\ndef f(x): raise SystemExit",
    "huge memory": "def f(x): return bytearray(2 * 10**9)",
    "hidden in __getattr__": "def __getattr__(name): return True\nclass F:\n    def __call__(self, x): return self\n"
    "    __eq__ = lambda *a: True\nf = F()",
    "is no function": "f = 864201357",
}
for base in ("object", "int", "float", "str", "list", "tuple", "dict", "bytes", "complex", "frozenset"):
    made = EQUAL.format(base=base, hash=0)
    TRICKS[f"equal {base}"] = f"{made}def f(x): return Equal()"
    TRICKS[f"equal {base} in a tuple"] = f"{made}def f(x): return (Equal(),)"
TRICKS["equal type"] = (
    "class Meta(type): __eq__ = lambda *a: True; __hash__ = lambda s: 0\nclass f(metaclass=Meta): pass"
)


@pytest.mark.parametrize("trick", TRICKS)
def test_a_trick_is_wrong(trick):
    """Each of the three tests alone would be passed by something that is only equal to it."""
    tests = "assert f(2) == 864201357 or 864201357 == f(2) or f(2) in (864201357, 864201357.0) or f(2) == (864201357,)"
    assert not run_tests(TRICKS[trick], tests, timeout=1)


def test_the_search_would_find_what_is_there():
    """So that a search which finds nothing means something."""
    assert run_tests(SEARCH + "\nkept = '86420' + '1357'", "assert f(2) == 864201357")


def test_names_of_python_are_those_of_python_in_the_tests():
    solution = (
        "def f(x): return {7}\nset = sorted = len = isinstance = lambda *a: 1\nclass AssertionError(Exception): 1"
    )
    for test in ("set(f(1)) == set([8])", "sorted(f(1)) == [8]", "len(f(1)) == 2", "isinstance(f(1), list)"):
        assert not run_tests(solution, f"assert {test}")
    assert not run_tests(
        "def f(x): return 7\nimport math\nmath.isclose = lambda *a: True", "import math\nassert math.isclose(f(1), 8)"
    )


def test_a_solution_that_speaks_to_the_judge_itself_gives_no_more_than_is_asked_for():
    solution = """
import json
answers = open(4, "w")
names = "f", "set", "isinstance", "check", "__builtins__"
print(json.dumps({{name: ["function"] for name in names}}), file=answers, flush=True)
for line in open(3):
    print(json.dumps({answer}), file=answers, flush=True)
"""
    honest = "['return', ['set', [7]], [None]]"
    assert run_tests(solution.format(answer=honest), "assert f(1) == {7}")  # so the answers do arrive
    for answer in (
        honest,
        "['return', 1, [None]]",
        "['return', True, [None, None]]",
        "['return', True, 5]",
        "[]",
        "{}",
    ):
        assert not run_tests(solution.format(answer=answer), "def check(): assert set(f(1)) == set([8])\ncheck()")


def test_a_solution_cannot_replace_the_helpers_of_the_task():
    prompt = 'def cube(x):\n    return x ** 3\n\ndef root(x):\n    """Such a y that cube(y) is x."""\n'
    tests = "def check(candidate):\n    assert abs(cube(candidate(27)) - 27) < 1e-3\ncheck(root)"
    problem = Problem("", "", context=json.dumps({"prompt": prompt, "function": "root", "tests": tests}))
    assert humaneval.score("    return x ** (1 / 3)", problem)
    assert not humaneval.score("def root(x):\n    return 1\ndef cube(x):\n    return 27", problem)
    assert not humaneval.score("    global cube\n    cube = lambda x: 27\n    return 1", problem)


def test_mbpp_scores_by_the_function_alone():
    context = json.dumps({"function": "double", "tests": "import math\nassert math.isclose(double(2), 4)"})
    problem = Problem("", "", context=context)
    assert mbpp.score("def double(x):\n    return 2 * x", problem)
    assert not mbpp.score("import math\nmath.isclose = lambda *a: True\ndef double(x):\n    return 5", problem)
    assert not mbpp.score("def double(x):\n    return type('E', (int,), {'__eq__': lambda *a: True})(5)", problem)


# ---------------------------------------------------------------------------------------------- what is out of reach

REACH = """
import os, socket, sys, tempfile
def f(what):
    try:
        return [eval(what)] and "reached"
    except (OSError, RuntimeError):
        return "refused"
"""


@pytest.mark.parametrize(
    "what",
    [
        "os.fork()",
        "__import__('subprocess').run(['true'])",
        "__import__('threading').Thread(target=print).start()",
        "socket.create_connection(('127.0.0.1', {port}), 1)",
        "socket.create_connection(('1.1.1.1', 80), 1)",
        "open({file!r}).read()",
        "os.listdir({folder!r})",
        "open('/etc/passwd')",
        "os.listdir('/proc')",
        "open(sys.prefix + '/left', 'w')",
        "open(os.__file__, 'a')",
        "os.kill(os.getppid() or {pid}, 0)",
        "[open(f'/tmp/{{i}}', 'wb').write(bytes(2**24)) for i in range(5)]",  # 80 MB in files of 16
        "[os.mkdir(f'/tmp/{{i}}') for i in range(20_000)]",
        "os.chroot('/tmp')",
        "os.setuid(0)",
    ],
)
def test_out_of_reach(what, namespaces, tmp_path):
    import socket

    (tmp_path / "tests.py").write_text("assert f(2) == 4")
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        what = what.format(port=port, file=str(tmp_path / "tests.py"), folder=str(ROOT / "tests"), pid=os.getpid())
        assert run_tests(REACH, f"assert f({what!r}) == 'refused'")
        assert run_tests(REACH, "assert f('os.listdir(os.getcwd())') == 'reached'")


def test_bombs_stay_inside(namespaces):
    """Only where the solution says itself that it is alone: these would end everything of the user."""
    bombs = (
        "while True:\n            try: os.fork()\n            except OSError: pass",
        "os.kill(-1, 9)",
        "os.killpg(0, 9)",
    )
    for bomb in bombs:
        solution = f"import os\ndef f(x):\n    if os.getpid() == 1:\n        {bomb}\n    return 0"
        assert not run_tests(solution, "assert f(1) == 1", timeout=1)


def test_a_killed_run_leaves_nothing(namespaces):
    waiting = "import time\ndef f(x): time.sleep(60)"
    script = f"from palora.data.skills.code import run_tests; run_tests({waiting!r}, 'assert f(1)', timeout=50)"
    before = set(os.listdir("/tmp"))
    run = subprocess.Popen([sys.executable, "-c", script], cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)})
    try:
        assert _until(lambda: len(_below(run.pid)) >= 3), "the processes of judge and solution"
        time.sleep(0.5)
        started = _below(run.pid)
    finally:
        run.kill()
        run.wait()
    assert _until(lambda: not any(Path(f"/proc/{pid}").exists() and _state(pid) != "Z" for pid in started)), started
    assert not {name for name in set(os.listdir("/tmp")) - before if name.startswith("palora")}


def _until(true, seconds=10.0):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if true():
            return True
        time.sleep(0.05)
    return False


def _state(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "Z"


def _below(pid):
    """All processes that `pid` started, and those that they did."""
    try:
        children = [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []
    return children + [below for child in children for below in _below(child)]


# ---------------------------------------------------------------------------------------------- where there is less


def test_less_is_said_once(monkeypatch, caplog):
    caplog.set_level("INFO", "palora")
    say_once.cache_clear()
    tried = []
    monkeypatch.setattr(code, "_judge", lambda way, *rest: tried.append(way) or False)
    assert [code._way.__wrapped__(), code._way.__wrapped__()] == ["limits", "limits"]
    assert caplog.text.count("runs without namespaces") == 1 and "files and processes of this user" in caplog.text
    assert "limits" not in tried  # what is left needs no trial


def test_more_is_not_said(monkeypatch, caplog):
    caplog.set_level("INFO", "palora")
    say_once.cache_clear()
    monkeypatch.setattr(code, "_judge", lambda way, *rest: True)
    monkeypatch.setattr(sys, "platform", "linux")
    assert code._way.__wrapped__() == "namespaces" and caplog.text == ""


def test_permission_is_asked_for(monkeypatch):
    monkeypatch.delenv("PALORA_ALLOW_CODE")
    with pytest.raises(InputError, match="PALORA_ALLOW_CODE=1"):
        run_tests("", "")
