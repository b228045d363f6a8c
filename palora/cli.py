"""The command line. Nothing heavy is imported before a command is known to be well-formed: --help is instant.

Every stage takes its options from the settings (`front/options.py`), and a recipe with changes, as `palora run` does.
"""

import logging
import os
import shlex
import sys
import warnings
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import typer

from palora import __version__
from palora.common.errors import InputError, PaloraError
from palora.common.progress import waiting
from palora.common.ranks import alone, first_speaks
from palora.common.settings import (
    PLAIN,
    EvaluateSettings,
    ExpertSettings,
    ExportSettings,
    InjectSettings,
    ProtectSettings,
)
from palora.common.wording import json_text, one_line, printable
from palora.front.options import FACTS, PUBLIC, SCORER, Option, command, computing, options, plan_of, settings_of
from palora.front.recipe import Plan

app = typer.Typer(
    name="palora",
    help="Teach a language model new facts without losing the skills it has (PALoRA, arXiv 2605.24549).",
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Changes = Annotated[
    list[str] | None,
    typer.Argument(metavar="[RECIPE.yaml] [key=value …]", help="A recipe to take settings from, and changes to it."),
]
Out = Annotated[Path, typer.Option("--out", resolve_path=True, help="The folder to write.")]
ExpertDir = Annotated[Path | None, typer.Option("--expert", help="An expert folder.")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON on standard output.")]
Preset = Annotated[str | None, typer.Option("--preset", help="paper: the published settings in place of our defaults.")]
Push = Annotated[
    str | None, typer.Option("--push-to-hub", metavar="NAME", help="Upload the adapter with its card; private.")
]
CHAT = ("chat_template_kwargs", "system_message")
MODEL = ("model", "dtype", "load", "device", "seed", *CHAT, "targets")
KEPT = ("skills", "known_facts", "text", "prompts")


def _version(value: bool) -> None:
    if value:
        print(f"palora {__version__}")
        raise typer.Exit


@app.callback()
def _main(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    if context.invoked_subcommand != "inject":
        alone()


@app.command()
@computing
def demo(
    out: Annotated[Path, typer.Option("--out", help="The run directory.")] = Path("runs/demo"),
    seed: Annotated[int, typer.Option("--seed", min=0, max=2**32 - 1, help="Of everything random.")] = 0,
    as_json: Json = False,
) -> None:
    """The whole method on the embedded small model, with no network: two to three minutes on two cores."""
    _load_libraries()
    from palora.front.pipeline import run as run_recipe
    from palora.testbed import demo_recipe

    _show_run(run_recipe(demo_recipe(seed), out), out, as_json)


def run(
    given: Any,
    recipe: Annotated[Path, typer.Argument(help="A YAML recipe, or the name of one: default, 8b, 24gb, paper.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="Changes to it: key=value, e.g. inject.r=8.")] = None,
    out: Annotated[Path | None, typer.Option("--out", help="The run directory. Default: runs/<recipe>.")] = None,
    answers: Annotated[int, typer.Option("--answers", min=0, help="Answers of every arm to show side by side.")] = 0,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what will be done, in what memory and time, and what fits.")
    ] = False,
    push_to_hub: Push = None,
    as_json: Json = False,
) -> None:
    """Run a recipe from model, skill and facts to adapter and report. Run it again and it resumes."""
    from palora.front.recipe import load_recipe

    loaded = load_recipe(recipe, overrides)
    _load_libraries()
    if dry_run:
        from palora.front.dry_run import dry_run as plan_run
        from palora.front.dry_run import plan_text

        planned = plan_run(loaded)
        print(json_text(planned) if as_json else printable(plan_text(planned)))
        return
    from palora.front.pipeline import run as run_recipe

    out = out or Path("runs") / recipe.stem
    public = bool(given.get(PUBLIC, False))
    repository = _repository(push_to_hub, public)
    evaluation = run_recipe(loaded, out)
    if repository:
        _push(out / "adapter", repository, evaluation, public)
    _show_run(evaluation, out, as_json, answers=answers)


app.command()(computing(command(run, [PUBLIC])))


def expert(given: Any, out: Out, recipe: Changes = None, preset: Preset = None, as_json: Json = False) -> None:
    """Stage 1: train the singular value fine-tuning expert of a skill. Its weights are a model folder, OUT/model."""
    plan = plan_of(recipe, given, preset, ("model", "skills"))
    plan = plan if plan.expert else plan.model_copy(update={"expert": ExpertSettings()})  # type: ignore[call-arg]
    _load_libraries()
    from palora.front import stages

    stages.train_expert(plan, out)
    _show_folder(out, as_json)


def protect(
    given: Any, out: Out, recipe: Changes = None, expert: ExpertDir = None, preset: Preset = None, as_json: Json = False
) -> None:
    """Find the protected subspace of every targeted matrix, by the inputs of the skills (without a skill: of everything
    that is kept; --keep-… weigh otherwise). The statistics of everything are stored, for the loss of `palora inject`.
    --facts is for their coverage only; --expert for the rule svf, which reads its scales."""
    plan = plan_of(recipe, given, preset)
    if not plan.skills:
        keep = plan.protect.keep
        unsaid = {"known_facts", "text", "prompts"} - keep.model_fields_set
        keep = keep.model_copy(update=dict.fromkeys(unsaid, 1.0))
        plan = plan.model_copy(update={"protect": plan.protect.model_copy(update={"keep": keep})})
    _load_libraries()
    from palora.front import stages

    stages.protect(plan, out, expert)
    _show_folder(out, as_json)


def inject(
    given: Any,
    out: Out,
    recipe: Changes = None,
    protection: Annotated[
        Path | None, typer.Option("--protection", help="A protection folder; without it: plain LoRA, the control.")
    ] = None,
    control: Annotated[
        bool,
        typer.Option(
            "--control", help="Plain LoRA on the bare answers; measure its leak and drift against --protection."
        ),
    ] = False,
    preset: Preset = None,
    as_json: Json = False,
) -> None:
    """Stage 2: teach the facts with LoRA under the constraint. Writes a plain LoRA adapter for the model."""
    plan = plan_of(recipe, given, preset, ("model", "facts"))
    if control or not protection:  # plain LoRA, whatever a recipe says of palora's arm
        said = {option.key.removeprefix("inject.") for option in given} | (set() if control else {"targets_by"})
        plain = plan.inject.model_copy(update={key: value for key, value in PLAIN.items() if key not in said})
        plan = plan.model_copy(update={"inject": plain})
    with first_speaks(out) as mine:
        _load_libraries()
        from palora.front import stages

        stages.inject(plan, mine, protection, control, "palora" if protection and not control else "lora")
        if mine == out:
            _show_folder(out, as_json)


def evaluate(
    given: Any,
    out: Out,
    recipe: Changes = None,
    adapter: Annotated[
        list[str] | None,
        typer.Option("--adapter", help="An adapter folder, or NAME=DIR for an arm of that name. Can be repeated."),
    ] = None,
    expert: ExpertDir = None,
    as_json: Json = False,
) -> None:
    """Measure every arm: facts learned, skill kept. Writes evaluation.json and report.html."""
    plan = plan_of(recipe, given)
    if not (plan.facts or plan.skills or plan.known_facts or plan.evaluate.harness):
        raise InputError("nothing to measure: give --facts, --skill, --known-facts or --harness")
    arms: dict[str, Path] = {}
    for named in adapter or []:
        name, equals, folder = named.partition("=")
        if not equals or Path(named).exists():  # a folder may have = in its name
            name, folder = "palora", named
        if name in arms:
            raise InputError(f"two adapters are called {name}; name them: --adapter NAME=DIR")
        arms[name] = Path(folder)
    _load_libraries()
    from palora.front import stages

    _show_run(stages.evaluate_arms(plan, out, arms, expert), out, as_json, last=False)


_OF_STAGE: dict[Callable[..., None], list[Option]] = {
    expert: [
        *options(Plan, only=(*(name for name in MODEL if name != "load"), "skills")),
        SCORER,
        *options(ExpertSettings, "expert"),
    ],
    protect: [*options(Plan, only=(*MODEL, *KEPT, "facts")), *FACTS, SCORER, *options(ProtectSettings, "protect")],
    inject: [*options(Plan, only=(*MODEL, *KEPT, "facts")), *FACTS, SCORER, *options(InjectSettings, "inject")],
    evaluate: [
        *options(Plan, only=("model", "dtype", "load", "device", "seed", *CHAT, "skills", "facts", "known_facts")),
        *(*FACTS, SCORER),
        *options(EvaluateSettings, "evaluate"),
    ],
}
for stage, made in _OF_STAGE.items():
    app.command()(computing(command(stage, made)))
# The research bench stands beside the library, which imports nothing of it.
bench = import_module("palora.bench.commands")
app.command()(bench.compare)  # one thread a worker
app.command()(computing(bench.spectrum))


facts = typer.Typer(help="Facts, before they are taught.", rich_markup_mode=None)
app.add_typer(facts, name="facts")


def rephrase(
    given: Any,
    out: Annotated[Path, typer.Option("--out", help="The file to write, *.jsonl: facts, as --facts takes them.")],
    as_json: Json = False,
) -> None:
    """Let the model say every fact in its own words, which is what is taught. Read the file, change it, and give it to
    inject or run as the facts."""
    plan = plan_of(None, given, needs=("model", "facts"))
    _load_libraries()
    from palora.front.words import rephrase as rephrase_facts

    _show({"facts": str(out), "taught": rephrase_facts(plan, out)}, as_json)


FactFile = Annotated[str, typer.Argument(metavar="FILE", help="The facts: a file, a folder or a hub name.")]


def check(
    given: Any,
    file: FactFile,
    fix: Annotated[
        str | None, typer.Option("--fix", help="Write those that can be taught to a new file: merge, first or drop.")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", help="That file, *.jsonl. Default: FILE.fixed.jsonl.")] = None,
    as_json: Json = False,
) -> None:
    """List all that is wrong or odd with facts, by its row: repeated ones, several answers to a question, empty or long
    ones. --fix writes a new file in which no two ask the same: merge joins their answers, first keeps the first, drop
    keeps none that contradict each other. FILE stays as it is."""
    from palora.front.fact_files import check_file, check_text

    found = check_file(_facts_of(file, given), fix, out)  # type: ignore[arg-type]
    print(json_text(found) if as_json else printable(check_text(found)))


def classify(
    given: Any,
    file: FactFile,
    out: Annotated[Path | None, typer.Option("--out", help="The folder to write in. Default: that of FILE.")] = None,
    as_json: Json = False,
) -> None:
    """Ask the model every fact in several ways, greedily and sampled, and write three files: those it never answers
    right (unknown: to be taught), sometimes (maybe), always (known: to be kept)."""
    plan = plan_of(None, {_FACTS: file} | given, needs=("model", "facts"))
    _load_libraries()
    from palora.front.fact_files import classify_file

    _show(classify_file(plan, out), as_json)


def templates(
    given: Any,
    file: Annotated[str | None, typer.Argument(metavar="[FILE]", help="A file of triples.")] = None,
    out: Annotated[Path | None, typer.Option("--out", help="A YAML file to write, to be changed.")] = None,
) -> None:
    """Show the questions that triples are asked by; of a file of triples, those of its relations. Change them, and give
    them back with --templates."""
    from palora.front.fact_files import templates_of

    named = _facts_of(file, {o: v for o, v in given.items() if o.flag != "--templates"}) if file else None
    text = templates_of(named, next((v for o, v in given.items() if o.flag == "--templates"), None), out)
    print(printable(f"templates            {out}" if out else text.rstrip()))


def _facts_of(file: str, given: Any) -> Any:
    """A file of facts with its options, as a recipe has it."""
    return plan_of(None, {_FACTS: file} | given, needs=("facts",)).facts


_FACTS = next(options(Plan, only=("facts",)))
_WORDS = ("targets_by", "wordings", "samples")
facts.command()(command(check, FACTS))
facts.command()(computing(command(classify, [*options(Plan, only=("model", "dtype", "device", "seed")), *FACTS])))
facts.command()(command(templates, FACTS))
_REPHRASE = [*options(Plan, only=(*MODEL[:-1], "facts")), *FACTS, *options(InjectSettings, "inject", only=_WORDS)]
facts.command()(computing(command(rephrase, _REPHRASE)))


RunDir = Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a finished run.")]
Moved = Annotated[str | None, typer.Option("--model", help="Where the model is now, if it has moved.")]
Longest = Annotated[int, typer.Option("--max-new-tokens", min=1, help="Where an answer is cut.")]


@app.command()
def ask(
    run: RunDir,
    questions: Annotated[
        list[str] | None, typer.Argument(metavar="[QUESTION …]", help="By default the lines of standard input.")
    ] = None,
    model: Moved = None,
    max_new_tokens: Longest = 256,
    as_json: Json = False,
) -> None:
    """Ask a finished run: what the model as it was, plain LoRA and palora answer, side by side."""
    if not questions and sys.stdin.isatty():
        raise InputError('nothing to ask: palora ask RUN "a question", or pipe one a line; palora chat RUN for more')
    asked = [line.strip() for line in questions or sys.stdin if line.strip()]
    _load_libraries()
    from palora.front.asking import Arms
    from palora.front.chatting import talk

    arms = Arms(run, model)
    if as_json:
        _show({"answers": [{"question": q, "arms": arms.ask(q, max_new_tokens)} for q in asked]}, as_json)
    else:
        talk(lambda question: arms.ask(question, max_new_tokens), asked)


@app.command()
def chat(
    run: RunDir,
    page: Annotated[bool, typer.Option("--page", help="As a page in the browser, on this machine alone.")] = False,
    model: Moved = None,
    max_new_tokens: Longest = 256,
) -> None:
    """Ask the arms of a finished run one question after the other, in the terminal or on a local page."""
    _load_libraries()
    from palora.front.asking import Arms
    from palora.front.chatting import serve, talk, typed

    arms = Arms(run, model)

    def ask(question: str) -> dict[str, str]:
        return arms.ask(question, max_new_tokens)

    if page:
        serve(ask, run)
    else:
        print(f"{len(arms.names)} arms answer, each question by itself. Ctrl-D ends.")
        talk(ask, typed())


def export(
    given: Any,
    adapter: Annotated[Path, typer.Option("--adapter", help="An adapter folder.")],
    out: Out,
    kind: Annotated[str, typer.Option("--as", help="adapter, merged or combined.")] = "adapter",
    model: Annotated[str | None, typer.Option("--model", help="Where the model is now, if it has moved.")] = None,
    expert: Annotated[Path | None, typer.Option("--expert", help="Where the expert is now, if it has moved.")] = None,
    protection: Annotated[Path | None, typer.Option("--protection", help="Likewise, of the protection.")] = None,
    push_to_hub: Push = None,
    as_json: Json = False,
) -> None:
    """Write an adapter as itself, merged into a checkpoint, or (of one that goes on an expert) expert and facts as one
    LoRA for the original model."""
    public = bool(given.pop(PUBLIC, False))
    settings = settings_of(ExportSettings, given)
    _load_libraries()
    from palora.results.export import Places
    from palora.results.export import export as export_adapter

    if push_to_hub and kind == "merged":
        raise InputError("--push-to-hub sends adapters; a merged checkpoint is sent by hf upload NAME DIR")
    repository = _repository(push_to_hub, public)
    found = export_adapter(adapter, kind, out, settings, Places(model, expert, protection))
    if repository:
        from palora.results.hub import run_evaluation

        _push(out, repository, run_evaluation(adapter), public)
    _show(found, as_json)


app.command()(computing(command(export, [*options(ExportSettings), PUBLIC])))


@app.command()
def inspect(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A folder that palora wrote, or any LoRA adapter.")],
    as_json: Json = False,
) -> None:
    """What a folder is, on which base, its leak, norm, rule and k."""
    _show_folder(folder, as_json)


@app.command()
def cache(
    clear: Annotated[bool, typer.Option("--clear", help="Delete it; it is made again where it is needed.")] = False,
    as_json: Json = False,
) -> None:
    """Where the decompositions of matrices are kept for the next run, how many and how large."""
    from palora.common.cache import cached

    _show(cached(clear), as_json)


def _load_libraries() -> None:
    """What takes seconds, and is said to."""
    if "torch" not in sys.modules:
        with waiting(f"palora {__version__}: loading torch and transformers", after=0):
            import_module("palora.front.pipeline")


def _show_run(evaluation: dict[str, Any], out: Path, as_json: bool, last: bool = True, answers: int = 0) -> None:
    if as_json:
        print(json_text(evaluation))
        return
    from palora.results.table import evaluation_table, print_answers, summary

    print_answers(evaluation, answers)
    evaluation_table(evaluation)
    if told := summary(evaluation):
        print(printable(told))
    print(printable(f"Report: {out / 'report.html'}"))
    if last:
        from palora.front.pipeline import how_to_use

        print(printable(f"Ask it: palora chat {shlex.quote(str(out))}"))
        print(printable(how_to_use(out)))


def _repository(name: str | None, public: bool) -> str | None:
    """The repository that --push-to-hub names, before any work is done. Raises InputError where it cannot be had."""
    if name is None:
        if public:
            raise InputError("--public goes with --push-to-hub NAME")
        return None
    from palora.results.hub import check_push

    return check_push(name)


def _push(adapter: Path, repository: str, evaluation: dict[str, Any] | None, public: bool) -> None:
    from palora.results.hub import push

    if not adapter.exists():
        raise PaloraError(f"nothing was sent: expert and facts are no single adapter here ({adapter} is not there)")
    print(printable(f"Uploaded: {push(adapter, repository, evaluation, public)}"), file=sys.stderr)


def _show_folder(folder: Path, as_json: bool) -> None:
    from palora.results.inspection import inspect_folder

    _show(inspect_folder(folder), as_json)


def _show(values: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print(json_text(values))
        return
    from palora.results.table import value_text

    for key, value in values.items():
        if key != "layers":
            print(one_line(f"{key:<20} {value_text(value)}"))


def main() -> None:
    """Entry point: exit 0 done, 1 the run failed, 2 wrong input, 130 interrupted; one line for what is not a bug."""
    _open_what_is_closed()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TQDM_DISABLE", "1")  # the libraries' bars; ours tell the whole story
    warnings.filterwarnings("ignore", category=FutureWarning)  # of the libraries among themselves
    logging.basicConfig(format="%(message)s", level=logging.ERROR)  # of the libraries
    for handler in logging.getLogger().handlers:
        handler.setFormatter(_OneLine("%(message)s"))
    logging.getLogger("palora").setLevel(logging.INFO)
    try:
        # Not standalone: typer would print errors in a form of its own, and swallow the interruption.
        code = app(sys.argv[1:] or ["--help"], prog_name="palora", standalone_mode=False)
    except (KeyboardInterrupt, typer.Abort):
        code = _INTERRUPTED
    except Exception as error:
        message, code = _explain(error)
        if message is None:
            raise
        print(f"palora: {one_line(message)}", file=sys.stderr)
    if code == _INTERRUPTED:
        print("palora: stopped; run the same command again to continue", file=sys.stderr)
    sys.exit(code)


class _OneLine(logging.Formatter):
    """What is told of, without what a file's name or content could do to a terminal."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))


def _open_what_is_closed() -> None:
    """`palora … >&-`: the first file that is opened would take the number of a standard stream, and what a library
    writes there would go into it."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, "w" if number else "r", closefd=False))  # noqa: SIM115


_INTERRUPTED = 130  # what typer makes of a KeyboardInterrupt, and a shell expects
_UsageError: Any = typer.BadParameter.__base__  # typer has no public name for it


def _explain(error: Exception) -> tuple[str | None, int]:
    """What to tell the user, and the exit code; no message for a bug of ours, which keeps its traceback."""
    if isinstance(error, PaloraError):
        return str(error), error.exit_code
    if isinstance(error, _UsageError):
        command = error.ctx.command_path if error.ctx else "palora"
        message = " ".join(error.format_message().split()).replace("Input should", "it must")
        return f"{message} (see {command} --help)", 2
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":  # torch's; not imported here
        return "out of memory; make the batch smaller, or use a smaller model or dtype", 1
    if isinstance(error, OSError):  # a disk or a permission that nothing else has noticed
        return f"{error.filename}: {error.strerror}" if error.filename else f"{error}", 1
    return None, 1


if __name__ == "__main__":
    main()
