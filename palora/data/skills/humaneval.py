'''HumanEval: 164 functions to complete from their docstring. https://github.com/openai/human-eval (MIT)

Chen et al., arXiv 2107.03374. A row looks like this, shortened:

    task_id: HumanEval/1       entry_point: count_vowels
    prompt:             def count_vowels(word: str) -> int:
                            """ Return how many vowels a word has
                            >>> count_vowels('')
                            0
                            """
    canonical_solution:     return sum(letter in 'aeiou' for letter in word)
    test:               def check(candidate):
                            assert candidate('') == 0

Both ways to complete are scored: the body alone, as a base model continues it, or the whole function, as a
chat model writes it. There is a test split only. Runs code that a model wrote: see `code.py`, and set
PALORA_ALLOW_CODE=1.
'''

import json
import re
from pathlib import Path

from palora.common.errors import InputError
from palora.data.skills.base import Problem, Skill, Split, check_request, take
from palora.data.skills.code import defines, extract_code, require_permission, run_tests
from palora.data.skills.rows import Row, read_folder, read_hub

REQUEST = "Complete this Python function. Write the whole function in one ```python code block."
RUN_ON = re.compile(r"(?:def|class|import|from|assert|print|if __name__)\b|[@#]")  # what follows a function


def score(completion: str, problem: Problem) -> bool:
    """Whether the function of the completion passes the tests."""
    context = json.loads(problem.context)
    prompt, function = context["prompt"], context["function"]
    code = extract_code(completion, function)
    # A prompt ends with the docstring, so it is a valid module by itself: a whole function can simply follow
    # it, and replaces the stub while the imports and helpers of the prompt stay.
    program = f"{prompt}\n{code}" if defines(code, function) else prompt + body(code)
    return run_tests(program, context["tests"], function=function, given=prompt)  # tests use helpers of the prompt


def body(code: str) -> str:
    """The function body that `code` starts with, indented.

    It ends at the first line that is not indented: a base model runs on into other functions. A first line
    without indentation has lost it alone (tokenizers and templates strip it), or all lines have: then others
    stand at the margin too, or the block that the first line opens is indented by no more than a body is.
    """
    lines = code.strip("\n").rstrip().split("\n")
    if not lines[0].startswith((" ", "\t")):
        rest = [line for line in lines[1:] if line.strip()]
        shallow = lines[0].rstrip().endswith(":") and bool(rest) and not rest[0].startswith(" " * 5)
        if shallow or any(not line[0].isspace() and not RUN_ON.match(line) for line in rest):
            lines[1:] = ["    " + line for line in lines[1:]]
        lines[0] = "    " + lines[0]
    end = next((i for i, line in enumerate(lines) if line.strip() and not line[0].isspace()), len(lines))
    return "\n".join(lines[:end]) + "\n"


def _problem(row: Row) -> Problem:
    prompt, function = row.text("prompt"), row.text("entry_point")
    code = prompt + row.text("canonical_solution").rstrip()
    return Problem(
        prompt=f"{REQUEST}\n\n```python\n{prompt.strip()}\n```",
        answer=code,
        solution=f"```python\n{code}\n```",
        context=json.dumps({"prompt": prompt, "function": function, "tests": f"{row.text('test')}\ncheck({function})"}),
    )


def skill(folder: Path | None = None) -> Skill:
    """HumanEval from `folder` (humaneval.jsonl or HumanEval.jsonl), or from the hub."""

    def problems(split: Split, n: int | None, seed: int) -> list[Problem]:
        require_permission()
        check_request(split, n)
        if split != "test":
            raise InputError(f"humaneval has only a test split, no {split} split; train on mbpp instead")
        if folder is None:
            rows = read_hub("humaneval", "openai/openai_humaneval", None, "test")
        else:
            rows = read_folder("humaneval", folder, ["humaneval.jsonl", "HumanEval.jsonl"])
        return take([_problem(row) for row in rows], n, seed)

    return Skill("humaneval", max_new_tokens=512, problems=problems, score=score)
