"""The command line: instant help, the contract's commands and flags, clean output, exit codes."""

import json
import os
import re
import shutil
import subprocess
import sys

import pytest
import torch
import typer
import yaml
from command import QUICK, palora, tree

from palora import __version__, cli
from palora.common.errors import InputError, PaloraError
from palora.common.settings import ProtectSettings
from palora.front import options, pipeline, stages
from palora.front.recipe import Plan, load_recipe

# The flags of every command. `--json` where results are printed.
FLAGS = {
    "demo": "--out --seed --json",
    "run": "--out --json",
    "expert": "--model --skill --out --seed --targets --json",
    "protect": "--model --rule --expert --k --fraction --share --strength --sides --targets --skill --known-facts "
    "--facts --out --seed --json",
    "inject": "--model --protection --facts --targets --preset --out --seed --json",
    "evaluate": "--model --expert --adapter --facts --known-facts --skill --out --seed --json",
    "export": "--adapter --as --model --expert --protection --out --json",
    "inspect": "--json",
}


def shell(*arguments, **settings):
    """`palora arguments…` as a user starts it."""
    command = [sys.executable, "-m", "palora.cli", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, **settings)


# --- help and version -----------------------------------------------------------------------------


@pytest.mark.parametrize("flag", ["--help", "--version"])
def test_help_and_version_say_it_and_no_more(flag):
    done = shell(flag)
    assert done.returncode == 0 and done.stdout and not done.stderr


LIGHT = (
    "typer annotated_doc shellingham pydantic pydantic_core annotated_types typing_extensions typing_inspection yaml"
)


def test_help_and_mistakes_are_instant(tmp_path):
    """They import what makes the options and reads a recipe, and nothing else: a third of a second of CPU, most of it
    pydantic's and typer's own. Counted, since seconds are another machine's business."""
    (tmp_path / "bad.yaml").write_text("model: [")
    bad = ["run", str(tmp_path / "bad.yaml")]
    for arguments in (["--help"], ["--version"], ["protect", "--help"], ["protect", "--k", "3"], bad):
        program = (
            "import json, sys\nbefore = {*sys.modules}\nfrom palora import cli\n"
            f"sys.argv = ['palora', *{arguments!r}]\n"
            "try:\n    cli.main()\nexcept SystemExit:\n    pass\n"
            "print(json.dumps([*{*sys.modules} - before]))"
        )
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
        found = json.loads(done.stdout.splitlines()[-1])
        packages = {name.partition(".")[0] for name in found if not name.startswith(("_", "cython"))}
        assert packages - sys.stdlib_module_names <= {"palora", *LIGHT.split()}, arguments
        rooms = {name.split(".")[1] for name in found if name.startswith("palora.")}
        assert rooms <= {"cli", "common", "data", "front", "bench"}, arguments
        assert len(found) < 260, (arguments, len(found))  # 240, and each takes about a millisecond


@pytest.mark.parametrize(
    ("typed", "offered", "not_offered"),
    [
        ("palora inj", ["inject"], ["protect", "run"]),
        ("palora inject --stop", ["--stop-at-recall"], ["--skill"]),
        ("palora facts ", ["check", "classify", "rephrase", "templates"], ["run"]),
    ],
)
def test_the_tab_key_completes_commands_and_options(typed, offered, not_offered):
    asked = {"_PALORA_COMPLETE": "complete_bash", "COMP_WORDS": typed, "COMP_CWORD": str(len(typed.split(" ")) - 1)}
    program = "import sys; from palora import cli; sys.argv = ['palora']; cli.main()"
    done = subprocess.run(
        [sys.executable, "-c", program], env=os.environ | asked, capture_output=True, text=True, timeout=60
    )
    found = done.stdout.split()
    assert not done.stderr and set(offered) <= set(found) and not set(not_offered) & set(found)


def test_version():
    assert palora("--version").out == f"palora {__version__}\n"


def test_without_a_command_it_helps():
    result = palora()
    assert result.code == 0 and result.out == palora("--help").out
    assert all(re.search(rf"^  {command}\s+\w", result.out, re.MULTILINE) for command in FLAGS), "each has a line"


@pytest.mark.parametrize("command", sorted({*FLAGS, *typer.main.get_command(cli.app).commands}))
def test_every_command_explains_itself_and_has_the_flags_of_the_contract(command):
    result = palora(command, "--help")
    assert result.code == 0 and not result.err
    usage, said = result.out.split("\n\n")[:2]
    assert usage.startswith(f"Usage: palora {command}") and len(said.strip()) > 20
    options = re.split(r"\n  (?=-)", result.out.partition("Options:")[2])[1:]
    for option in options:
        assert re.search(r"[a-z]{3,}", re.sub(r"--?[\w-]+|<\w+>|\[default:[^]]*\]", "", option)), f"no help: {option}"
    have = set(re.findall(r"--[\w-]+", result.out))
    assert not set(FLAGS.get(command, "").split()) - have
    assert palora(command, "-h").out == result.out


# --- what is printed ------------------------------------------------------------------------------


def every_command(made, out):
    model = ("--model", made.model)
    return {
        "expert": ("expert", *model, "--skill", "chain", *QUICK["expert"], "--out", out / "expert"),
        "protect": ("protect", *model, "--rule", "sigma", "--fraction", 0.25, "--out", out / "protection"),
        "inject": ("inject", *model, "--facts", made.facts, *QUICK["inject"], "--out", out / "adapter"),
        "evaluate": ("evaluate", *model, "--skill", "chain", *QUICK["evaluate"], "--out", out),
        "adapter": ("export", "--adapter", made.adapter, "--out", out / "adapter"),
        "merged": ("export", "--adapter", made.adapter, "--as", "merged", "--out", out / "merged"),
        "combined": ("export", "--adapter", made.adapter, "--as", "combined", "--out", out / "combined", "--k", 32),
        "inspect": ("inspect", made.run),
    }


KINDS = {
    "expert": ("kind", "expert"),
    "protect": ("rule", "sigma"),
    "inject": ("rule", "none"),
    "evaluate": ("retention", {"base": {"chain": {"vs_expert": None, "vs_base": None}}}),
    "adapter": ("kind", "adapter"),
    "merged": ("dtype", "float32"),
    "combined": ("r", 2 + 32),
    "inspect": ("finished", True),
}


@pytest.mark.parametrize("name", KINDS)
def test_json_is_all_there_is_on_standard_output(made, tmp_path, name):
    key, value = KINDS[name]
    result = palora(*every_command(made, tmp_path)[name], "--json")
    assert result.code == 0 and not result.complaints
    assert json.loads(result.out)[key] == value


@pytest.mark.parametrize("name", KINDS)
def test_without_json_it_is_text(made, tmp_path, name):
    result = palora(*every_command(made, tmp_path)[name])
    assert result.code == 0 and not result.complaints
    assert len(result.out.splitlines()) >= 4 and not result.out.startswith("{")
    assert "Traceback" not in result.out


def test_in_a_shell_libraries_keep_quiet(made, tmp_path):
    """Loading, training and saving, with nothing but our own words and bars."""
    done = shell(
        "inject", "--model", made.model, "--facts", made.facts, *QUICK["inject"], "--out", tmp_path / "a", "--json"
    )
    assert done.returncode == 0
    assert json.loads(done.stdout)["facts"]["n"] == 6
    first, *lines = [line for line in done.stderr.splitlines() if line.strip()]
    assert first == f"palora {__version__}: loading torch and transformers …"
    assert lines == [
        line for line in lines if line.startswith(("CPU: 1 thread", "Teaching the facts")) or line.endswith(" …")
    ]


def test_what_is_up_to_date_is_not_done_again(made, tmp_path, monkeypatch):
    commands = every_command(made, tmp_path)
    for name in ("expert", "protect", "inject", "evaluate"):
        assert palora(*commands[name]).code == 0
    before = tree(tmp_path)
    monkeypatch.setattr(stages, "load_model", lambda *arguments: pytest.fail("nothing is to be done"))
    for name in ("expert", "protect", "inject", "evaluate"):
        assert palora(*commands[name]).code == 0
    assert tree(tmp_path) == before


def test_stages_by_hand_make_a_run_folder(made):
    names = {path.name for path in made.run.iterdir()}
    assert names == {"expert", "protection", "adapter", "answers.jsonl", "evaluation.json", "report.html"}
    update = json.loads((made.run / "evaluation.json").read_text())["update"]["palora"]
    assert update["rule"] == "svf" and update["leak"] <= 1e-5


# --- run and demo ---------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def recipe(made):
    return {
        "model": str(made.model),
        "skills": ["chain"],
        "facts": str(made.facts),
        "expert": {"objective": "next_token", "iterations": 2, "batch_size": 8, "validation_size": 4},
        "protect": {"rule": "sigma", "k": 4, "keep": {"examples": 8}},
        "inject": {"epochs": 1, "r": 2},
        "evaluate": {"problems": 4, "max_answer_tokens": 4},
    }


def test_run_with_overrides(recipe, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(recipe))
    result = palora("run", "mine.yaml", "inject.r=3", "seed=5", "--json")
    assert result.code == 0, result.err
    assert list(json.loads(result.out)["arms"]) == ["base", "expert", "lora", "palora"]
    written = yaml.safe_load((tmp_path / "runs" / "mine" / "recipe.yaml").read_text())
    assert written["inject"]["r"] == 3 and written["seed"] == 5
    before = tree(tmp_path / "runs")
    again = palora("run", tmp_path / "runs" / "mine" / "recipe.yaml", "--out", "runs/mine")
    assert again.code == 0 and "Report: runs/mine/report.html" in again.out
    assert tree(tmp_path / "runs") == before, "the recipe of a run resumes that run"


def test_demo_is_run_with_the_shipped_recipe(recipe, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(pipeline, "run", lambda *given: seen.append(given) or {"arms": {}})
    result = palora("demo", "--seed", 3, "--out", tmp_path, "--json")
    assert result.code == 0 and json.loads(result.out) == {"arms": {}}
    ((shipped, out),) = seen
    assert out == tmp_path and shipped.seed == 3 and shipped.model.endswith("model")


# --- how it ends ----------------------------------------------------------------------------------


def test_usage_errors_are_one_line():
    for arguments, said in {
        ("expert", "--model", "m", "--out", "o"): "Missing option '--skill'.",
        ("inspect",): "Missing argument 'DIR'.",
        ("frobnicate",): "No such command 'frobnicate'.",
        ("inspect", "--folder", "x"): "No such option: --folder",
        ("protect", "--model", "m", "--out", "o", "--k", "many"): "Invalid value for '--k': it must be a valid integer",
    }.items():
        result = palora(*arguments)
        assert result.code == 2 and not result.out
        (line,) = result.err.splitlines()
        assert line.startswith(f"palora: {said}") or said in line, line
        assert line.endswith("--help)")


def test_an_interruption_says_how_to_go_on(made, tmp_path, monkeypatch):
    def stop(*arguments, **named):
        raise KeyboardInterrupt

    monkeypatch.setattr("palora.training.expert.train_expert", stop)
    result = palora(*every_command(made, tmp_path)["expert"])
    assert result.code == 130 and result.err == "palora: stopped; run the same command again to continue\n"
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (PaloraError("it went wrong"), "it went wrong"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to\nallocate"), "out of memory; make the batch smaller"),
        (MemoryError(), "out of memory"),
        (PermissionError(13, "Permission denied", "/x/y"), "/x/y: Permission denied"),
        (OSError(5, "Input/output error"), "Input/output error"),
    ],
)
def test_what_the_machine_refuses_is_one_line(made, monkeypatch, error, said):
    def fail(*arguments):
        raise error

    monkeypatch.setattr("palora.results.inspection.inspect_folder", fail)
    result = palora("inspect", made.run)
    assert result.code == 1 and not result.out
    (line,) = result.err.splitlines()
    assert line.startswith("palora: ") and said in line


def test_a_bug_keeps_its_traceback(made, monkeypatch):
    def fail(*arguments):
        raise KeyError("oops")

    monkeypatch.setattr("palora.results.inspection.inspect_folder", fail)
    with pytest.raises(KeyError):
        palora("inspect", made.run)


# --- recipes, presets and options together --------------------------------------------------------


def test_a_control_is_plain_lora_whatever_the_recipe_says(made, tmp_path):
    """`recipes/default.yaml` states the drift of palora's arm."""
    (tmp_path / "r.yaml").write_text(yaml.safe_dump({"inject": {"drift": 20000, "distil": 1.0}}))
    on = ("--model", made.expert_model, "--facts", made.facts, *QUICK["inject"])
    for name, more in {"against": ("--protection", made.protection, "--control"), "alone": ()}.items():
        done = palora("inject", tmp_path / "r.yaml", *on, *more, "--out", tmp_path / name, "--json")
        assert done.code == 0, done.err
        found = json.loads(done.out)
        assert found["rule"] == "none" and found["loss"] == {}


def test_an_adapter_is_written_the_same_each_time(made, tmp_path):
    config = json.loads((made.adapter / "adapter_config.json").read_text())
    assert config["target_modules"] == ["down_proj", "gate_proj", "up_proj"]
    assert config["base_model_name_or_path"] == str(made.expert_model)


def test_a_preset_gives_way_to_options_and_does_not_meet_a_recipe():
    def rule(**given):
        made = {o.key.removeprefix("protect."): o for o in options.options(ProtectSettings, "protect")}
        model = {next(options.options(Plan, only=["model"])): "m"}
        found = options.plan_of(None, model | {made[key]: value for key, value in given.items()}, "paper").protect
        return found.rule, found.k, found.fraction, found.sides

    assert rule() == ("svf", 64, None, "both")
    assert rule(fraction=0.25) == ("svf", None, 0.25, None)
    assert rule(rule="covariance") == ("covariance", None, None, None)
    assert rule(k=8) == ("svf", 8, None, None)
    with pytest.raises(InputError, match="both say the settings"):
        options.plan_of(["r.yaml"], {}, "paper")


def test_an_expert_is_asked_for_by_an_override_of_the_default_recipe(tmp_path):
    (tmp_path / "r.yaml").write_text("model: m\nskills: [chain]\nfacts: f\nexpert: null\n")
    assert load_recipe(tmp_path / "r.yaml", ["expert.iterations=4"]).expert.iterations == 4


def test_out_can_be_the_folder_one_is_in(made, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert palora("protect", "--model", made.model, "--rule", "sigma", "--k", 4, "--out", ".").code == 0
    assert (tmp_path / "protection.json").exists()


def test_anybodys_adapter_is_measured_beside_an_expert(made, tmp_path):
    shutil.copytree(made.adapter, tmp_path / "a")
    (tmp_path / "a" / "palora.json").unlink()
    asked = ("--model", made.model, "--expert", made.expert, "--skill", "chain", *QUICK["evaluate"])
    assert palora("evaluate", *asked, "--adapter", tmp_path / "a", "--out", tmp_path / "out").code == 0
