"""The command line. Nothing heavy is imported before a command is known to be well-formed: --help is instant."""

import json
import logging
import os
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from palora import __version__
from palora.common.errors import InputError, PaloraError

app = typer.Typer(
    name="palora",
    help="Teach a language model new facts without losing the skills it has (PALoRA, arXiv 2605.24549).",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Model = Annotated[str, typer.Option("--model", help="A model folder or hub name.")]
Skills = Annotated[
    list[str] | None,
    typer.Option("--skill", help="A built-in skill, name:DIR with its files, or a JSONL file. Can be repeated."),
]
Facts = Annotated[
    str | None, typer.Option("--facts", help="New facts: JSONL, CSV or Parquet with question and answer.")
]
KnownFacts = Annotated[str | None, typer.Option("--known-facts", help="Facts the model knows, in the same form.")]
Text = Annotated[str | None, typer.Option("--text", help="Plain text to keep, a passage a line.")]
Prompts = Annotated[
    str | None, typer.Option("--prompts", help="Prompts, one a line: what the model answers to them is to be kept.")
]
KeepSkills = Annotated[float, typer.Option(help="Weight of the skills in what is kept.")]
KeepKnownFacts = Annotated[
    float | None, typer.Option(help="Weight of the known facts. Default: 1; for protect with a --skill 0.")
]
KeepText = Annotated[float | None, typer.Option(help="Weight of the text. Default: as of the known facts.")]
KeepPrompts = Annotated[float | None, typer.Option(help="Weight of the prompts. Default: as of the known facts.")]
Examples = Annotated[int, typer.Option("--examples", min=1, help="Examples taken of each thing to keep.")]
Answers = Annotated[
    str,
    typer.Option(
        "--answers",
        help="To a --skill's problems: gold (solutions), right (the model's own right answers) or own (all of them).",
    ),
]
ExpertDir = Annotated[Path | None, typer.Option("--expert", help="An expert folder.")]
Out = Annotated[Path, typer.Option("--out", help="The folder to write.")]
Seed = Annotated[int, typer.Option("--seed", min=0, max=2**32 - 1, help="Of everything random.")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON on standard output.")]
Targets = Annotated[
    str | None,
    typer.Option("--targets", help="Endings of the targeted matrices, with commas. Default: the MLP matrices."),
]
Dtype = Annotated[str, typer.Option("--dtype", help="Of the base weights: auto, float32, bfloat16 or float16.")]
Device = Annotated[str | None, typer.Option("--device", help="cpu, cuda, … Default: the first GPU if there is one.")]


def _version(value: bool) -> None:
    if value:
        print(f"palora {__version__}")
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    pass


@app.command()
def demo(
    out: Annotated[Path, typer.Option("--out", help="The run directory.")] = Path("runs/demo"),
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """The whole method on the embedded small model, with no network: two to three minutes on two cores."""
    from palora.front.pipeline import run as run_recipe
    from palora.testbed import demo_recipe

    _show_run(run_recipe(demo_recipe(seed), out), out, as_json)


@app.command()
def run(
    recipe: Annotated[Path, typer.Argument(help="A YAML recipe; see recipes/.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="Changes to it: key=value, e.g. inject.r=8.")] = None,
    out: Annotated[Path | None, typer.Option("--out", help="The run directory. Default: runs/<recipe>.")] = None,
    as_json: Json = False,
) -> None:
    """Run a recipe from model, skill and facts to adapter and report. Run it again and it resumes."""
    from palora.front.recipe import load_recipe

    loaded = load_recipe(recipe, overrides)
    from palora.front.pipeline import run as run_recipe

    out = out or Path("runs") / recipe.stem
    _show_run(run_recipe(loaded, out), out, as_json)


@app.command()
def expert(
    model: Model,
    skill: Annotated[str, typer.Option("--skill", help="The skill to train on.")],
    out: Out,
    objective: Annotated[str, typer.Option(help="reward (REINFORCE) or next_token (cheap).")] = "reward",
    parametrisation: Annotated[str, typer.Option(help="Of the scales: sigmoid or linear.")] = "sigmoid",
    basis: Annotated[
        str,
        typer.Option(help="What is scaled: weights (W's components), skill (in the basis of its inputs)."),
    ] = "weights",
    basis_examples: Annotated[int, typer.Option(help="Problems that --basis skill is made of.")] = 512,
    iterations: Annotated[int, typer.Option(help="Optimizer steps.")] = 200,
    batch_size: Annotated[int, typer.Option(help="Problems a step.")] = 256,
    learning_rate: Annotated[float, typer.Option(help="Of Adam.")] = 2e-3,
    max_grad_norm: Annotated[float, typer.Option(help="Gradient clip.")] = 1e-3,
    temperature: Annotated[float, typer.Option(help="Of the rollouts; 0 is greedy.")] = 0.0,
    baseline: Annotated[bool, typer.Option(help="Subtract the mean reward.")] = False,
    rollout_batch_size: Annotated[int, typer.Option(help="Answers generated at once.")] = 64,
    micro_batch_size: Annotated[int, typer.Option(help="Answers in memory at once for the gradient.")] = 8,
    validate_every: Annotated[int, typer.Option(help="Steps between validations; the best one is kept.")] = 10,
    validation_size: Annotated[int, typer.Option(help="Validation problems.")] = 256,
    train_size: Annotated[int | None, typer.Option(help="Training problems. Default: all.")] = None,
    targets: Targets = None,
    dtype: Dtype = "auto",
    device: Device = None,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Stage 1: train the singular value fine-tuning expert of a skill."""
    from palora.common.settings import ExpertSettings

    settings = _settings(
        ExpertSettings,
        objective=objective,
        parametrisation=parametrisation,
        basis=basis,
        basis_examples=basis_examples,
        iterations=iterations,
        batch_size=batch_size,
        learning_rate=learning_rate,
        max_grad_norm=max_grad_norm,
        temperature=temperature,
        baseline=baseline,
        rollout_batch_size=rollout_batch_size,
        micro_batch_size=micro_batch_size,
        validate_every=validate_every,
        validation_size=validation_size,
        train_size=train_size,
    )
    from palora.front import stages

    stages.train_expert(_base(model, dtype, device, targets), settings, out, skill, seed)
    _show_folder(out, as_json)


@app.command()
def protect(
    model: Model,
    out: Out,
    rule: Annotated[
        str,
        typer.Option(
            "--rule",
            help="svf, svf_weighted, sigma, random, activation, covariance, svf_covariance, whitened or none.",
        ),
    ] = "covariance",
    expert: ExpertDir = None,
    skill: Skills = None,
    known_facts: KnownFacts = None,
    text: Text = None,
    prompts: Prompts = None,
    facts: Facts = None,
    k: Annotated[int | None, typer.Option("--k", help="Protected directions a matrix.")] = None,
    fraction: Annotated[float | None, typer.Option("--fraction", help="Protected fraction of the rank.")] = None,
    share: Annotated[
        float | None,
        typer.Option("--share", help="Protected share of importance or input energy."),
    ] = None,
    strength: Annotated[float | None, typer.Option("--strength", help="Of the soft rules. Default: 1.")] = None,
    sides: Annotated[str | None, typer.Option("--sides", help="both, input or output.")] = None,
    keep_skills: KeepSkills = 1.0,
    keep_known_facts: KeepKnownFacts = None,
    keep_text: KeepText = None,
    keep_prompts: KeepPrompts = None,
    examples: Examples = 512,
    answers: Answers = "gold",
    base: Annotated[
        str, typer.Option("--base", help="Weights that inject will train on: expert (if there is one) or original.")
    ] = "expert",
    targets: Targets = None,
    dtype: Dtype = "auto",
    device: Device = None,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Find the protected subspace of every targeted matrix, by the inputs of the skills (without a skill: of everything
    that is kept; --keep-… weigh otherwise). The statistics of everything are stored, for the loss of `palora inject`.
    --facts is for their coverage only."""
    from palora.common.settings import ProtectSettings

    settings = _settings(
        ProtectSettings,
        rule=rule,
        k=k,
        fraction=fraction,
        share=share,
        strength=strength,
        sides=sides,
        keep=_keep(0.0 if skill else 1.0, keep_skills, keep_known_facts, keep_text, keep_prompts, examples, answers),
    )
    if base not in ("expert", "original"):
        raise InputError(f"--base: it is expert or original, not {base!r}")
    from palora.front import stages

    on = _base(model, dtype, device, targets)
    sources = stages.Sources(tuple(skill or ()), known_facts, text, prompts)
    stages.protect(on, settings, out, expert, sources, facts, seed, train_on=base)
    _show_folder(out, as_json)


@app.command()
def inject(
    model: Model,
    facts: Annotated[str, typer.Option("--facts", help="The facts to teach: JSONL, CSV or Parquet.")],
    out: Out,
    expert: ExpertDir = None,
    protection: Annotated[
        Path | None, typer.Option("--protection", help="A protection folder; without it: plain LoRA, the control.")
    ] = None,
    control: Annotated[
        bool, typer.Option("--control", help="Train plain LoRA; measure its leak and drift against --protection.")
    ] = False,
    base: Annotated[
        str | None, typer.Option("--base", help="Weights to train on: expert (default with --expert) or original.")
    ] = None,
    r: Annotated[int, typer.Option("--r", help="Rank of the adapter.")] = 16,
    lora_alpha: Annotated[int, typer.Option(help="The update is scaled by lora_alpha / r.")] = 32,
    lora_dropout: Annotated[float, typer.Option(help="On the adapter's input.")] = 0.05,
    learning_rate: Annotated[float, typer.Option(help="Of AdamW.")] = 2e-4,
    weight_decay: Annotated[float, typer.Option(help="Of AdamW.")] = 0.01,
    epochs: Annotated[int, typer.Option(help="At most this many passes over the facts.")] = 10,
    batch_size: Annotated[int, typer.Option(help="Facts a step.")] = 8,
    stop_at_recall: Annotated[float | None, typer.Option(help="Stop when recall on the facts reaches this.")] = None,
    recall_every: Annotated[int, typer.Option(help="Epochs between those checks.")] = 2,
    lose_at_most: Annotated[
        float | None,
        typer.Option(help="Share of a --skill that may be lost: drift is doubled where more is, and undone."),
    ] = None,
    lose_problems: Annotated[int, typer.Option(help="Validation problems a skill to measure that on.")] = 200,
    paraphrases: Annotated[bool, typer.Option(help="Train on the paraphrases too.")] = False,
    lr_scheduler: Annotated[str, typer.Option(help="constant, linear or cosine.")] = "constant",
    max_grad_norm: Annotated[float, typer.Option(help="Gradient clip.")] = 1.0,
    checkpoint_every: Annotated[int | None, typer.Option(help="Steps between checkpoints. Default: an epoch.")] = None,
    gradient_checkpointing: Annotated[bool, typer.Option(help="Less memory, more time.")] = False,
    bf16: Annotated[bool, typer.Option(help="bfloat16 autocast while training.")] = False,
    teach: Annotated[
        str | None, typer.Option("--teach", help="Endings of the targeted matrices that are taught. Default: all.")
    ] = None,
    drift: Annotated[
        float,
        typer.Option(help="Weight of drift² on what --protection saw, beside the facts' loss × number. Try 20000."),
    ] = 0.0,
    replay: Annotated[float, typer.Option(help="Weight of the loss on rows of what is kept.")] = 0.0,
    distil: Annotated[float, typer.Option(help="Weight of KL(start || now) on rows of what is kept.")] = 0.0,
    kept_batch_size: Annotated[int, typer.Option(help="Such rows a step, for --replay and --distil.")] = 50,
    skill: Skills = None,
    known_facts: KnownFacts = None,
    text: Text = None,
    prompts: Prompts = None,
    keep_skills: KeepSkills = 1.0,
    keep_known_facts: KeepKnownFacts = None,
    keep_text: KeepText = None,
    keep_prompts: KeepPrompts = None,
    examples: Examples = 512,
    answers: Answers = "gold",
    targets: Targets = None,
    dtype: Dtype = "auto",
    device: Device = None,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Stage 2: teach the facts with LoRA under the constraint. Writes a plain LoRA adapter."""
    from palora.common.settings import InjectSettings

    settings = _settings(
        InjectSettings,
        base=base or ("expert" if expert else "original"),
        r=r,
        lora_alpha=lora_alpha,
        lora_dropout=lora_dropout,
        learning_rate=learning_rate,
        weight_decay=weight_decay,
        epochs=epochs,
        batch_size=batch_size,
        stop_at_recall=stop_at_recall,
        recall_every=recall_every,
        lose_at_most=lose_at_most,
        lose_problems=lose_problems,
        paraphrases=paraphrases,
        lr_scheduler=lr_scheduler,
        max_grad_norm=max_grad_norm,
        checkpoint_every=checkpoint_every,
        gradient_checkpointing=gradient_checkpointing,
        bf16=bf16,
        targets=_endings(teach),
        drift=drift,
        replay=replay,
        distil=distil,
        kept_batch_size=kept_batch_size,
        keep=_keep(1.0, keep_skills, keep_known_facts, keep_text, keep_prompts, examples, answers),
    )
    from palora.front import stages

    sources = stages.Sources(tuple(skill or ()), known_facts, text, prompts)
    arm = "palora" if protection and not control else "lora"
    on = _base(model, dtype, device, targets)
    stages.inject(on, settings, out, facts, expert, protection, control, seed, arm, sources)
    _show_folder(out, as_json)


@app.command()
def evaluate(
    model: Model,
    out: Out,
    adapter: Annotated[
        list[str] | None,
        typer.Option("--adapter", help="An adapter folder, or NAME=DIR for an arm of that name. Can be repeated."),
    ] = None,
    expert: ExpertDir = None,
    facts: Facts = None,
    known_facts: KnownFacts = None,
    skill: Skills = None,
    problems: Annotated[int, typer.Option(help="Test problems a skill.")] = 400,
    batch_size: Annotated[int, typer.Option(help="Prompts a batch.")] = 64,
    max_answer_tokens: Annotated[int, typer.Option(help="Length limit of an answer to a fact.")] = 32,
    dtype: Dtype = "auto",
    device: Device = None,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Measure every arm: facts learned, skill kept. Writes evaluation.json and report.html."""
    from palora.common.settings import EvaluateSettings

    if not (facts or skill or known_facts):
        raise InputError("nothing to measure: give --facts, --skill or --known-facts")
    settings = _settings(
        EvaluateSettings, problems=problems, batch_size=batch_size, max_answer_tokens=max_answer_tokens
    )
    from palora.front import stages

    arms: dict[str, Path] = {}
    for given in adapter or []:
        name, equals, folder = given.partition("=")
        if not equals or Path(given).exists():  # a folder may have = in its name
            name, folder = "palora", given
        if name in arms:
            raise InputError(f"two adapters are called {name}; name them: --adapter NAME=DIR")
        arms[name] = Path(folder)
    base = _base(model, dtype, device, None)
    result = stages.evaluate_arms(base, settings, out, arms, skill or [], expert, facts, known_facts, seed)
    _show_run(result, out, as_json)


@app.command()
def compare(
    file: Annotated[Path, typer.Argument(help="A YAML comparison; see benchmarks/.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="Changes to it: key=value, e.g. seeds=[0,1].")] = None,
    out: Annotated[Path | None, typer.Option("--out", help="The folder to write. Default: runs/<file>.")] = None,
    workers: Annotated[int, typer.Option("--workers", min=1, help="Cells at work at once, one thread each.")] = 1,
    as_json: Json = False,
) -> None:
    """Train and measure methods side by side at matched recall, each with learning rates of its own, over seeds. Writes
    compare.json, compare.md and compare.html. Run it again and it continues; only=[a,b] runs some of the methods."""
    from palora.bench.comparison import load_comparison

    loaded = load_comparison(file, overrides)
    from palora.bench.compare import compare as run_comparison

    out = out or Path("runs") / file.stem
    result = run_comparison(loaded, out, workers)
    if as_json:
        print(json.dumps(result, indent=2, ensure_ascii=False))
        return
    print((out / "compare.md").read_text(encoding="utf-8"))
    print(f"Page: {out / 'compare.html'}")


@app.command()
def export(
    adapter: Annotated[Path, typer.Option("--adapter", help="An adapter folder.")],
    out: Out,
    kind: Annotated[str, typer.Option("--as", help="adapter, merged or combined.")] = "adapter",
    model: Annotated[str | None, typer.Option("--model", help="Where the model is now, if it has moved.")] = None,
    expert: Annotated[Path | None, typer.Option("--expert", help="Where the expert is now, if it has moved.")] = None,
    protection: Annotated[
        Path | None, typer.Option("--protection", help="Where the protection is now, if it has moved.")
    ] = None,
    dtype: Annotated[str, typer.Option("--dtype", help="Of a merged checkpoint; auto is the model's own.")] = "auto",
    max_leak: Annotated[float, typer.Option(min=0, help="Refuse a merge whose leak after rounding is larger.")] = 0.01,
    k: Annotated[int | None, typer.Option("--k", min=1, help="Expert components in a combined adapter.")] = None,
    as_json: Json = False,
) -> None:
    """Write an adapter as itself, merged into a checkpoint, or combined with the expert into one LoRA."""
    from palora.results.export import export as export_adapter

    _show(export_adapter(adapter, kind, out, model, expert, protection, dtype, max_leak, k), as_json)


@app.command()
def spectrum(
    model: Model,
    skill: Annotated[str, typer.Option("--skill", help="The skill to look for.")],
    out: Out,
    expert: ExpertDir = None,
    adapter: Annotated[Path | None, typer.Option("--adapter", help="An adapter, for where its update lies.")] = None,
    protection: Annotated[
        Path | None, typer.Option("--protection", help="A protection folder. Default: the adapter's own.")
    ] = None,
    known_facts: KnownFacts = None,
    text: Annotated[str | None, typer.Option("--text", help="Plain text for its perplexity, a passage a line.")] = None,
    fractions: Annotated[str, typer.Option(help="Widths of the bands, with commas.")] = "0.05,0.1,0.25,0.5",
    scale: Annotated[float, typer.Option(help="What a band is multiplied by; 0 removes it.")] = 0.0,
    slices: Annotated[int, typer.Option(help="Slices that the whole spectrum is removed in.")] = 8,
    draws: Annotated[int, typer.Option(help="Random bands of each width.")] = 3,
    problems: Annotated[int, typer.Option(help="Test problems, and known facts, at most.")] = 400,
    examples: Annotated[int, typer.Option(help="Texts for gradient and overlap, at most.")] = 512,
    batch_size: Annotated[int, typer.Option(help="Prompts a batch.")] = 64,
    max_answer_tokens: Annotated[int, typer.Option(help="Length limit of an answer to a fact.")] = 32,
    targets: Targets = None,
    dtype: Dtype = "auto",
    device: Device = None,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Where a skill lives in the singular spectrum. Writes spectrum.json and spectrum.html."""
    try:
        widths = tuple(sorted({float(f) for f in fractions.split(",")}))
    except ValueError:
        raise InputError(f"--fractions must be numbers with commas, not {fractions!r}") from None
    from palora.bench.spectrum import SpectrumSettings

    settings = SpectrumSettings(widths, scale, slices, draws, problems, examples, batch_size, max_answer_tokens)
    from palora.front import stages

    base = _base(model, dtype, device, targets)
    result = stages.spectrum(base, settings, out, skill, expert, adapter, protection, known_facts, text, seed)
    if as_json:
        print(json.dumps(result, indent=2, ensure_ascii=False))
        return
    from palora.results.table import spectrum_table

    spectrum_table(result)
    print(f"Page: {out / 'spectrum.html'}")


@app.command()
def inspect(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A folder that palora wrote, or any LoRA adapter.")],
    as_json: Json = False,
) -> None:
    """What a folder is, on which base, its leak, norm, rule and k."""
    _show_folder(folder, as_json)


def _keep(default: float, skills: float, *others: Any) -> dict[str, Any]:
    """The settings of what is to be kept, from the options: known facts, text, prompts (where not given: `default`),
    the number of examples, and whose answers."""
    *weights, examples, answers = others
    given = zip(("known_facts", "text", "prompts"), weights, strict=True)
    kinds = {kind: default if weight is None else weight for kind, weight in given}
    return {"skills": skills, **kinds, "examples": examples, "answers": answers}


def _endings(names: str | None) -> list[str] | None:
    """Endings of matrices given with commas."""
    return None if names is None else [name.strip() for name in names.split(",") if name.strip()]


def _base(model: str, dtype: str, device: str | None, targets: str | None) -> Any:
    from palora.front.stages import Base

    endings = _endings(targets)
    if endings == []:
        raise InputError("--targets names no matrix; leave it out for the MLP matrices")
    return Base(model, dtype, device, tuple(endings) if endings else None)


def _settings(kind: Callable[..., Any], **values: Any) -> Any:
    """Settings from options; a wrong value is the user's mistake, named as the option it came from."""
    from pydantic import ValidationError

    from palora.front.recipe import describe

    try:
        return kind(**values)
    except ValidationError as error:
        raise InputError(describe(error, _option)) from None


def _option(key: str) -> str:
    """The option that a setting comes from: keep.known_facts -> --keep-known-facts."""
    key = key if key not in ("keep.examples", "keep.answers") else key.removeprefix("keep.")
    return "--" + key.replace("_", "-").replace(".", "-")


def _show_run(evaluation: dict[str, Any], out: Path, as_json: bool) -> None:
    if as_json:
        print(json.dumps(evaluation, indent=2, ensure_ascii=False))
        return
    from palora.results.table import evaluation_table

    evaluation_table(evaluation)
    print(f"Report: {out / 'report.html'}")


def _show_folder(folder: Path, as_json: bool) -> None:
    from palora.results.inspection import inspect_folder

    _show(inspect_folder(folder), as_json)


def _show(values: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print(json.dumps(values, indent=2, ensure_ascii=False))
        return
    from palora.results.table import value_text

    for key, value in values.items():
        if key != "layers":
            print(f"{key:<20} {value_text(value)}")


def main() -> None:
    """Entry point: exit 0 done, 1 the run failed, 2 wrong input; one line for what is not a bug of ours."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TQDM_DISABLE", "1")  # the libraries' bars; ours tell the whole story
    warnings.filterwarnings("ignore", category=FutureWarning)  # of the libraries among themselves
    logging.basicConfig(format="%(message)s", level=logging.ERROR)  # of the libraries
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
        print(f"palora: {message}", file=sys.stderr)
    if code == _INTERRUPTED:
        print("palora: stopped; run the same command again to continue", file=sys.stderr)
        code = 1
    sys.exit(code)


_INTERRUPTED = 130  # what typer makes of a KeyboardInterrupt
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
