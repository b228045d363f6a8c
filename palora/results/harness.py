"""An outside judge: tasks of lm-eval (EleutherAI's lm-evaluation-harness) on every arm, by lm-eval's own code.

    model in memory -> HFLM -> lm_eval.simple_evaluate -> {task: {metrics: {acc: {value, stderr}}, n, version}}

Its prompts, its few-shot examples and its way of marking, as `lm_eval --model hf` would have them. No code is taken
from a folder of tasks or from a data set: Python in the YAML is refused, templates are rendered in Jinja's sandbox.
"""

import logging
from collections.abc import Iterator, Mapping
from functools import lru_cache
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import yaml

from palora.common.errors import InputError
from palora.common.hashes import hash_file
from palora.common.progress import waiting
from palora.common.settings import EvaluateSettings
from palora.language.prompts import chat_kwargs

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PLAIN = "tag:yaml.org,2002:"  # the tags of plain YAML
RESAMPLED = 1000  # times, for the standard error of what is no mean


def check_harness(settings: EvaluateSettings) -> None:
    """What can be told before anything is loaded or trained: lm-eval is there, and knows the tasks. Raises
    InputError."""
    if not settings.harness:
        return
    if find_spec("lm_eval") is None:
        raise InputError("evaluate.harness needs lm-eval: pip install 'palora[lm-eval]'")
    if settings.harness_tasks is not None:
        check_folder(Path(settings.harness_tasks))
    with waiting("Looking through the tasks of lm-eval"):
        known = set(_tasks(settings.harness_tasks).all_tasks)
    for name in settings.harness:
        if name not in known:
            raise InputError(f"lm-eval {version('lm-eval')} has no task {name!r}; lm-eval ls tasks lists them")


def check_folder(folder: Path) -> None:
    """Raises InputError where a folder of tasks is none, or would have Python run."""
    files = task_files(folder)
    if not files:
        raise InputError(f"{folder}: no folder with tasks of lm-eval (*.yaml)")
    for file in files:
        try:
            nodes = list(_nodes(yaml.compose(file.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)))
        except (yaml.YAMLError, UnicodeDecodeError, RecursionError):
            raise InputError(f"{file}: not valid YAML; lm-eval reads a task of it") from None
        for node in nodes:
            if not node.tag.startswith(PLAIN) or "python" in node.tag:
                raise InputError(f"{file}: it has Python run ({node.tag}), which is not done; write the task without")
        for key, value in (pair for node in nodes if isinstance(node, yaml.MappingNode) for pair in node.value):
            for named in _nodes(value) if key.value == "include" else ():
                # Another place's files are not looked through.
                if isinstance(named, yaml.ScalarNode) and (file.parent / named.value).resolve() not in files:
                    raise InputError(f"{file}: include may only name a task file of the folder, not {named.value!r}")


def _nodes(root: Any) -> Iterator[Any]:
    """Every node of a YAML text, once."""
    left, seen = [root], set()
    while left:
        node = left.pop()
        if node is None or id(node) in seen:
            continue
        seen.add(id(node))
        yield node
        if isinstance(node, yaml.MappingNode):
            left += [part for pair in node.value for part in pair]
        elif isinstance(node, yaml.SequenceNode):
            left += node.value


def task_files(folder: Path) -> list[Path]:
    """The YAML files in a folder of tasks."""
    found = (file for file in Path(folder).rglob("*") if file.suffix in (".yaml", ".yml") or "_yaml" in file.name)
    return sorted(file.resolve() for file in found if file.is_file())


def harness_identity(settings: EvaluateSettings) -> Any:
    """What tells what lm-eval is asked from other things: its version, and the files of the tasks."""
    own = Path(settings.harness_tasks) if settings.harness_tasks else None
    files = [file for file in sorted(own.rglob("*")) if file.is_file()] if own else []
    return [version("lm-eval"), [[file.name, hash_file(file)] for file in files]]


def judge(model: Any, tokenizer: "PreTrainedTokenizerBase", settings: EvaluateSettings, arm: str) -> dict[str, Any]:
    """What lm-eval finds of a model in memory.

    Args:
        model: a transformers model, with an adapter on it or without.
        arm: its name, for the terminal.

    Returns: by task (and group of tasks): `metrics`, each with its value and standard error, `n` questions, and the
    task's `version`.

    Raises: InputError where a task or its data cannot be had.
    """
    import lm_eval
    from lm_eval.models.huggingface import HFLM

    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    side, training = tokenizer.padding_side, model.training
    judged = HFLM(
        pretrained=model,
        tokenizer=tokenizer,
        backend="causal",
        batch_size=settings.batch_size,
        trust_remote_code=False,
        chat_template_args=chat_kwargs(tokenizer),
    )
    try:
        with waiting(f"lm-eval judges {arm} ({', '.join(settings.harness)})", after=0):
            found = lm_eval.simple_evaluate(
                judged,
                tasks=list(settings.harness),
                num_fewshot=settings.num_fewshot or None,
                limit=settings.harness_limit,
                bootstrap_iters=RESAMPLED,
                log_samples=False,
                apply_chat_template=settings.harness_chat,
                system_instruction=getattr(tokenizer, "system_message", None),
                task_manager=_tasks(settings.harness_tasks),
                confirm_run_unsafe_code=False,
            )
    except (torch.OutOfMemoryError, MemoryError):
        raise
    except Exception as error:  # of tasks, their data and their templates: of no common type
        said = " ".join(str(error).split())[:300] or type(error).__name__
        raise InputError(f"lm-eval cannot ask {', '.join(settings.harness)}: {said}") from error
    finally:
        tokenizer.padding_side = side
        model.train(training)
    return figures(found)


def figures(found: Mapping[str, Any]) -> dict[str, Any]:
    """The figures in what `lm_eval.simple_evaluate` returns. There `acc,none` is a metric and the filter of the answers
    that it was taken from; one that was filtered is called `exact_match (strict-match)`."""
    results = {}
    for task, values in found["results"].items():
        metrics = {}
        for key, value in values.items():
            name, comma, taken = key.partition(",")
            if not comma or name.endswith("_stderr") or not isinstance(value, int | float):
                continue
            error = values.get(f"{name}_stderr,{taken}")
            shown = name if taken == "none" else f"{name} ({taken})"
            metrics[shown] = {"value": float(value), "stderr": float(error) if isinstance(error, int | float) else None}
        asked = (found.get("n-samples") or {}).get(task) or {}
        if metrics:
            results[task] = {
                "metrics": metrics,
                "n": asked.get("effective", values.get("sample_len")),
                "version": (found.get("versions") or {}).get(task),
            }
    return results


@lru_cache(maxsize=1)  # it reads thousands of files
def _tasks(folder: str | None) -> Any:
    """lm-eval's task manager, with the tasks of a folder of one's own before its own; one for all arms."""
    import lm_eval.utils
    from jinja2.sandbox import ImmutableSandboxedEnvironment
    from lm_eval.tasks import TaskManager

    old = lm_eval.utils.env  # renders what stands in a task; a template outside of a sandbox can run anything
    if not isinstance(old, ImmutableSandboxedEnvironment):
        safe = ImmutableSandboxedEnvironment(loader=None, undefined=old.undefined, keep_trailing_newline=True)
        safe.filters.update(old.filters)
        lm_eval.utils.env = safe
    return TaskManager(include_path=folder)
