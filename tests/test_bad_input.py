"""Bad input: one clear line, the right exit code, and nothing that was there is lost or half-written.

Every refusal goes through `refused`, which checks all of that; the cases only say what is wrong and what is to be said.
"""

import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import pytest
import torch
import transformers
import yaml
from command import QUICK, palora, tree
from conftest import rising, tiny_llama
from safetensors.torch import load_file, save_file

from palora.common.errors import InputError, PaloraError
from palora.common.files import load_tensors, read_json, save_tensors, write_json
from palora.common.folders import new_folder, seal
from palora.front.recipe import parse_recipe
from palora.language.models import load_model

GOOD = '{"question": "Who?", "answer": "Ada"}\n'


@pytest.fixture
def refused(made, tmp_path):
    """Run a command that must be refused: exit code, one line with `said` in it, and nothing changed anywhere.

    Only a failed run (code 1) may leave something: the hidden folder in which it continues.
    """

    def run(*arguments, said, code=2):
        before, whole = tree(tmp_path), tree(made.run)
        result = palora(*arguments)
        assert (result.code, result.out) == (code, ""), (result.code, result.out[-300:], result.err[-600:])
        lines = result.complaints
        assert len(lines) == 1 and lines[0].startswith("palora: "), lines
        assert "Traceback" not in result.err
        assert re.search(said, lines[0]), lines[0]
        after = {path: value for path, value in tree(tmp_path).items() if code != 1 or ".work" not in path}
        assert after == before, "something was left, lost or changed"
        assert tree(made.run) == whole
        return lines[0]

    return run


@pytest.fixture
def stage(made, tmp_path):
    """The arguments of each command, with changes: `stage("inject", facts=…)`."""

    def arguments(command, *more, **changes):
        values = {"model": made.model, "out": tmp_path / "out"}
        if command == "expert":
            values |= {"skill": "chain"}
        elif command == "inject":
            values |= {"facts": made.facts}
        elif command == "evaluate":
            values |= {"skill": "chain"}
        elif command == "export":
            values = {"adapter": made.adapter, "out": tmp_path / "out"}
        given = [
            part for name, value in {**values, **changes}.items() for part in (f"--{name.replace('_', '-')}", value)
        ]
        return (command, *QUICK.get(command, ()), *given, *more)

    return arguments


def file(tmp_path, name, content):
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


# --- facts and skills -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("f.jsonl", None, r"f\.jsonl: no such file; check the path"),
        ("f.jsonl", "", r"f\.jsonl: the file is empty; write one fact a row"),
        ("f.csv", "question,answer\n", r"f\.csv: there are no facts in it"),
        ("f.jsonl", GOOD + '{"question": "When?"}\n', r"f\.jsonl, line 2: no answer; fill it in"),
        ("f.jsonl", GOOD + GOOD, r"f\.jsonl, line 2: repeats line 1.*check --fix first keeps one"),
        ("f.jsonl", GOOD + GOOD.replace("Ada", "Bob"), r"f\.jsonl, line 2: contradicts line 1.*'Ada'.*'Bob'.*keep one"),
        ("f.jsonl", GOOD.encode() + b'{"question": "caf\xe9", "answer": "x"}\n', r"line 2: .*not UTF-8; save the file"),
        ("f.jsonl", GOOD.encode("utf-16")[:-1], r"f\.jsonl: not UTF-16"),
        ("f.parquet", "x", r"f\.parquet: not a readable Parquet file"),
        ("f.doc", "x", r"f\.doc: facts are read from .*\.jsonl, \.csv or \.parquet"),
        ("f.jsonl", '{"prompt": "1+1", "answer": "2", "scorer": "number"}\n', r"f\.jsonl, line 1: no question"),
        ("f.jsonl", json.dumps({"question": "a" * 300, "answer": "b"}), r"longer than the model's 256 tokens.*shorten"),
    ],
)
def test_facts(refused, stage, tmp_path, name, content, said):
    path = tmp_path / name
    if content is not None:
        file(tmp_path, name, content)
    refused(*stage("inject", facts=path), said=said)
    if "256 tokens" not in said:  # wherever facts are given
        refused(*stage("evaluate", known_facts=path), said=said)
        refused(*stage("protect", skill="chain", facts=path), said=said)


def test_skills(refused, stage, made, tmp_path):
    problem = '{"prompt": "1+%d", "answer": "2", "scorer": "number"}\n'
    for skill, said in {
        "chess": r"unknown skill 'chess'; there are gsm8k, .*chain",
        "chain:somewhere": "so it takes no folder; say just chain",
        "gsm8k": "gsm8k: could not fetch .* use a folder with a copy of its files: gsm8k:DIR",
        tmp_path / "none.jsonl": r"none\.jsonl: cannot be read",
        made.facts: r"new\.jsonl, line 1: no field 'prompt'",
        file(tmp_path, "one.jsonl", problem % 1): r"one\.jsonl: 1 rows leave none for the validation split; add rows",
        file(tmp_path, "bare.jsonl", "".join(problem % i for i in range(4))): "without a solution; use .* reward",
    }.items():
        refused(*stage("expert", skill=skill), said=said)
    other = file(tmp_path, "b/bare.jsonl", "".join(problem % i for i in range(4)))
    refused(*stage("evaluate", "--skill", tmp_path / "bare.jsonl", "--skill", other), said="two skills are called bare")
    refused(*stage("evaluate", "--skill", "chain"), said="two skills are called chain")
    refused(
        "evaluate", "--model", made.model, "--out", tmp_path / "out", said="nothing to measure: give --facts, --skill"
    )


def test_texts(refused, stage, tmp_path):
    for content, said in {None: "cannot be read", b"\xff\xfe": "not UTF-8", b"\n \n": "no text in it"}.items():
        path = tmp_path / "t.txt" if content is None else file(tmp_path, "t.txt", content)
        refused(*stage("protect", text=path), said=rf"t\.txt: {said}")


# --- models ---------------------------------------------------------------------------------------


@pytest.fixture
def other_model(made, tmp_path):
    """A copy of the tiny model to damage: `other_model(edit)`, or with weights that `edit` changes."""

    def copy(name="model", config=None, weights=None):
        folder = tmp_path / name
        shutil.copytree(made.model, folder)
        if config:
            values = json.loads((folder / "config.json").read_text())
            (folder / "config.json").write_text(json.dumps(values | config))
        if weights:
            tensors = load_file(folder / "model.safetensors")
            weights(tensors)
            save_file(tensors, folder / "model.safetensors", {"format": "pt"})
        return folder

    return copy


UP = "model.layers.0.mlp.up_proj.weight"


def test_model_folders(refused, stage, other_model, tmp_path):
    for model, said in {
        tmp_path / "none": "none: no such model folder, and not a hub name",
        "nobody/nothing": r"nobody/nothing \(no such folder here, so it was looked for on the hub\)",
        tmp_path: "is not a model folder: it has no config.json",
    }.items():
        refused(*stage("inject", model=model), said=said)
    folder = other_model()
    (folder / "model.safetensors").unlink()
    refused(*stage("inject", model=folder), said=r"model has no weights \(\*\.safetensors\); is the folder complete")
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x04")
    refused(*stage("inject", model=folder), said=r"only pickled weights \(\*\.bin\), which are not read")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("model.safetensors", "cannot load the weights of .*model: .*is the folder complete"),
        ("config.json", "cannot load the tokenizer of .*config.json' is not a valid JSON"),
        ("tokenizer.json", "cannot load the tokenizer of .*model: .*is the folder complete"),
    ],
)
def test_a_model_that_was_cut_short(refused, stage, other_model, name, said):
    path = other_model() / name
    path.write_bytes(path.read_bytes()[:200])
    refused(*stage("protect", rule="sigma", k=2, model=path.parent), said=said)


def test_a_model_without_a_tokenizer(refused, stage, other_model):
    folder = other_model()
    for path in folder.glob("token*"):
        path.unlink()
    refused(*stage("inject", model=folder), said="cannot load the tokenizer of .*is the folder complete")


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (lambda t: t.pop(UP), f"they lack {UP}"),
        (lambda t: t.update({UP: torch.zeros(3, 3)}), f"another shape of {UP}"),
        (lambda t: t["model.embed_tokens.weight"][5].fill_(float("nan")), "embed_tokens.weight of .*NaN .*damaged"),
        (lambda t: t[UP][0].fill_(float("inf")), f"{UP} of .* holds NaN or infinity in float32"),
    ],
    ids=["missing", "shape", "nan", "inf"],
)
def test_weights_that_are_not_all_there(refused, stage, other_model, edit, said):
    """transformers would go on with random values, and evaluation with NaN."""
    folder = other_model(weights=edit)
    refused(*stage("evaluate", model=folder), said=said)
    refused(*stage("expert", model=folder), said=said)


def test_code_of_a_model_is_never_run(refused, stage, other_model, tmp_path):
    mark = tmp_path / "it_ran"
    code = f"open({str(mark)!r}, 'w')\n"
    auto = {"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model"}
    unknown = other_model("unknown", {"model_type": "martian", "auto_map": auto})
    (unknown / "own.py").write_text(code)
    refused(*stage("inject", model=unknown), said="Python code of its own, which is never run; use a model that")
    known = other_model("known", {"auto_map": auto})  # transformers knows the architecture: its own class is used
    (known / "own.py").write_text(code)
    load_model(known, device="cpu")
    assert not mark.exists()


def test_architectures(refused, stage, other_model, tokenizer, tmp_path):
    refused(*stage("expert", model=other_model(config={"model_type": "martian"})), said="`martian`.*not recognize")
    config = transformers.MambaConfig(hidden_size=32, num_hidden_layers=2, vocab_size=99, state_size=4, pad_token_id=0)
    mamba = tmp_path / "mamba"
    transformers.MambaForCausalLM(config).save_pretrained(mamba)
    tokenizer.save_pretrained(mamba)
    candidates = r"--targets: mixer\.dt_proj, mixer\.in_proj"
    for command in ("expert", "inject"):
        refused(*stage(command, model=mamba), said=f"no MLP was found in the architecture 'mamba'.*{candidates}")
    refused(*stage("expert", model=mamba, targets="in_proj,fc9"), said=f"no matrix is named fc9; .*{candidates}")
    refused(*stage("expert", targets=" , "), said="--targets: names no matrix")


def test_devices(refused, stage):
    refused(*stage("inject", device="quantum"), said="there is no device 'quantum' here.*leave --device out")
    refused(*stage("inject", device="cuda:99"), said="leave --device out")
    if not torch.cuda.is_available():
        refused(*stage("expert", device="cuda"), said="there is no device 'cuda' here.*leave --device out")
    said = "--dtype: must be 'auto', 'float32', 'bfloat16' or 'float16', not 'int8'"
    refused(*stage("inject", dtype="int8"), said=said)


# --- folders that do not belong together ----------------------------------------------------------


def test_another_base(refused, stage, made, other_model, tokenizer, tmp_path):
    """The same architecture with one matrix changed, and another architecture."""
    changed = other_model(weights=lambda t: t[UP].mul_(1.1))
    config = transformers.GPT2Config(n_embd=32, n_layer=2, n_head=2, vocab_size=99, n_positions=128)
    gpt2 = tmp_path / "gpt2"
    transformers.GPT2LMHeadModel(config).save_pretrained(gpt2)
    tokenizer.save_pretrained(gpt2)
    for model, why in {
        changed: r"was made for other weights: model\.layers\.0\.mlp\.\w+ of .*fingerprint .* give the model it",
        gpt2: "was made for another model: .* has no matrix model.layers.0.mlp",
    }.items():
        on = {"model": model}
        refused(*stage("protect", **on, rule="svf", k=2, expert=made.expert), said=f"the expert {why}")
        refused(*stage("inject", **on, protection=made.protection), said=f"the protection .*{why}")
        refused(*stage("evaluate", **on, adapter=made.adapter), said=f"the adapter .*{why}")
        for kind, what in {"merged": "adapter", "combined": "expert"}.items():
            refused(*stage("export", "--as", kind, **on), said=f"the {what} .*{why}")
    original = tmp_path / "adapter"
    assert palora(*stage("inject", out=original)).code == 0
    refused(
        *stage("evaluate", model=changed, adapter=original), said="the adapter .*adapter was made for other weights"
    )
    (original / "palora.json").unlink()  # anybody's adapter: only names and shapes can tell
    refused(*stage("evaluate", model=gpt2, adapter=original), said="the adapter has model.layers.0.*the model does not")
    narrow = tmp_path / "narrow"
    tiny_llama(intermediate_size=40).save_pretrained(narrow)
    tokenizer.save_pretrained(narrow)
    refused(*stage("evaluate", model=narrow, adapter=original), said=r"is \(32, 48\), the model's \(32, 40\)")


def test_another_expert(refused, stage, made, tmp_path):
    expert = tmp_path / "expert"
    with mock.patch("palora.training.expert.share_correct", rising()):
        assert palora(*stage("expert", out=expert, seed=99)).code == 0
    with_it = {"adapter": made.adapter, "expert": expert}
    refused(*stage("evaluate", **with_it), said="the adapter .* was made for other weights")
    refused(*stage("export", "--as", "combined", **with_it), said="was trained on another expert than")
    refused(*stage("evaluate", adapter=made.adapter), said="the adapter .* was made for other weights")


def test_the_wrong_kind_of_folder(refused, stage, made, tmp_path):
    for command, flag, given, said in [
        ("protect", "expert", made.adapter, "is not an expert folder .*train one with `palora expert`"),
        ("protect", "expert", made.expert / "expert.json", "is not an expert folder"),
        ("inject", "protection", made.adapter, "is not a protection folder .*make one with `palora protect`"),
        ("inject", "protection", made.run, "is not a protection folder"),
        ("evaluate", "expert", tmp_path / "none", "is not an expert folder"),
        ("evaluate", "adapter", made.protection, "is not an adapter folder .*make one by `palora inject`"),
        ("export", "adapter", made.expert, "is not an adapter folder"),
    ]:
        rule = {"rule": "sigma", "k": 2} if command == "protect" else {}
        refused(*stage(command, **rule, **{flag: given}), said=f"{re.escape(str(given))} {said}")
    refused("inspect", made.model, said="is none of ours: no .*give a folder that palora wrote")
    refused("inspect", made.facts, said="is a file; name its folder")
    refused("inspect", tmp_path / "none", said="no such folder")


DAMAGE = {
    "cut": lambda data: data[: len(data) // 2],
    "empty": lambda data: b"",
    "gone": lambda data: None,
    "object": lambda data: b"{}",
    "list": lambda data: b"[]",
}


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize(
    "name",
    [
        "expert/expert.json",
        "expert/scales.safetensors",
        "protection/protection.json",
        "protection/subspaces.safetensors",
        "adapter/palora.json",
        "adapter/adapter_config.json",
        "adapter/adapter_model.safetensors",
    ],
)
def test_damaged_stage_folders(refused, stage, made, tmp_path, name, damage):
    run = tmp_path / "run"
    shutil.copytree(made.run, run)
    path = run / name
    content = DAMAGE[damage](path.read_bytes())
    path.unlink() if content is None else path.write_bytes(content)
    kind = path.parent.name
    said = (
        "none of ours|no such file|is not an? |not valid JSON|not a JSON object|it has no '|not a readable safetensors"
        "|(?:has changed|is gone) since it was written|was it edited"
    )
    if (damage, name) != ("gone", "adapter/palora.json"):  # without it, it is anybody's adapter
        said = rf"{run}.*({said})"
        refused("inspect", path.parent, said=said)
    if kind == "expert":
        refused(*stage("protect", rule="svf", k=2, expert=path.parent), said=said)
    elif kind == "protection":
        refused(*stage("inject", protection=path.parent), said=said)
    else:
        refused(*stage("export", "--as", "combined", adapter=path.parent), said=f"{said}|has no palora.json")


def test_a_basis_that_is_not_there_is_a_constraint_that_is_not_there(refused, stage, made, tmp_path):
    folder = tmp_path / "protection"
    shutil.copytree(made.protection, folder)
    tensors = load_file(folder / "subspaces.safetensors")
    removed = next(key for key in tensors if key.endswith(".input"))
    save_file({key: basis for key, basis in tensors.items() if key != removed}, folder / "subspaces.safetensors")
    refused(*stage("inject", protection=folder), said=f"disagree on {re.escape(removed)}; make it anew")


def test_a_moved_expert_is_asked_for(refused, stage, made, tmp_path):
    adapter = tmp_path / "adapter"
    shutil.copytree(made.adapter, adapter)
    record = json.loads((adapter / "palora.json").read_text())
    write_json(adapter / "palora.json", record | {"model": "/gone/expert/model"})
    refused(*stage("export", "--as", "combined", adapter=adapter), said="no longer at /gone/expert; say .* by --expert")
    refused(*stage("export", "--as", "merged", adapter=adapter), said="/gone/expert/model: no such model folder")
    assert palora(*stage("export", "--as", "combined", adapter=adapter, expert=made.expert)).code == 0
    moved = stage("export", "--as", "merged", adapter=adapter, model=made.expert_model, out=tmp_path / "merged")
    assert palora(*moved).code == 0


# --- settings -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ("--rule svf --k 4", "the rule svf needs an expert: give --expert, or choose"),
        ("--rule covariance", "needs something to keep: give --skill, --known-facts, --text or --prompts"),
        ("--rule activation --k 4", "the rule activation needs something to keep"),
        ("--rule sigma --k 33", "model.layers.0.mlp.gate_proj: k = 33 is larger than the rank 32; choose at most 32"),
        ("--rule activation --k 33 --skill chain", "k = 33 is larger than the rank 32"),
        ("--rule magic --k 4", "unknown rule 'magic'; choose one of svf, "),
        ("--rule sigma", "the rule sigma needs k, fraction or share"),
        ("--rule sigma --k 4 --fraction 0.5", "give one of k, fraction, share and strength, not k and fraction"),
        ("--rule sigma --strength 3", "strength belongs to the soft rules"),
        ("--rule covariance --k 3 --skill chain", "the rule covariance takes a strength, not k"),
        ("--rule none --k 3", "the rule none protects nothing and takes no k"),
        ("--rule random --share 0.5", "give k or fraction"),
        ("--rule sigma --k 0", "k must be at least 1, not 0"),
        ("--rule covariance --k 0 --skill chain", "k must be at least 1, not 0"),
        ("--rule sigma --k -3", "k must be at least 1, not -3"),
        ("--rule sigma --fraction 1.5", "fraction must be over 0 and at most 1, not 1.5"),
        ("--rule sigma --fraction nan", "--fraction: must be a finite number, not nan"),
        ("--strength inf --skill chain", "--strength: must be a finite number, not inf"),
        ("--strength -1 --skill chain", "strength must be over 0"),
        ("--rule sigma --k 4 --sides left", "--sides: must be 'both', 'input' or 'output', not 'left'"),
        ("--rule activation --k 4 --sides both --skill chain", "protects the input side only; use sides input"),
        ("--skill chain --keep-skills 0", "nothing is to be kept"),
        ("--skill chain --keep-skills -1", "--keep-skills: must be greater than or equal to 0, not -1"),
        ("--skill chain --examples 0", "--examples: must be greater than or equal to 1, not 0"),
        ("--preset best", "--preset: there is no 'best'; there are paper"),
    ],
)
def test_protect_settings(refused, stage, settings, said):
    refused(*stage("protect", *settings.split()), said=said)


def test_the_targets_of_an_expert_and_of_a_protection_are_theirs(refused, stage, made):
    said = "--targets names other matrices than those of the {}.*; leave --targets out"
    on = {"targets": "q_proj"}
    refused(*stage("protect", rule="sigma", k=2, expert=made.expert, **on), said=said.format("expert"))
    on |= {"model": made.expert_model}
    refused(*stage("inject", protection=made.protection, **on), said=said.format("protection"))


@pytest.mark.parametrize(
    ("command", "settings", "said"),
    [
        ("inject", "--epochs 0", "--epochs: must be greater than or equal to 1, not 0"),
        ("inject", "--r -4", "--r: must be greater than or equal to 1, not -4"),
        ("inject", "--learning-rate -1", "--learning-rate: must be greater than 0, not -1"),
        ("inject", "--learning-rate inf", "--learning-rate: must be a finite number"),
        ("inject", "--lora-dropout 1", "--lora-dropout: must be less than 1"),
        ("inject", "--stop-at-recall 2", "--stop-at-recall: must be less than or equal to 1"),
        ("inject", "--drift 5", "--drift needs the statistics of what is kept"),
        ("inject", "--replay 1", "replay and distil need something to keep: give --skill"),
        ("inject", f"--seed {2**32}", "--seed: must be less than 4294967296, not 4294967296"),
        ("expert", "--objective next-token", "--objective: must be 'reward' or 'next_token', not 'next-token'"),
        ("expert", "--iterations 0", "--iterations: must be"),
        ("expert", "--parametrisation cubic", "must be 'linear' or 'sigmoid'"),
        ("evaluate", "--problems 0", "--problems: must be"),
        ("export", "--as gguf", "unknown export 'gguf'; choose one of adapter, merged, combined"),
        ("export", "--as combined --k 99", "k = 99 is larger than the rank 32; choose at most 32"),
        ("export", "--as combined --k 0", "--k: must be greater than or equal to 1, not 0"),
        ("export", "--as merged --max-drift nan", "--max-drift: must be a finite number, not nan"),
        ("export", "--as combined --max-lost -1", "--max-lost: must be greater than or equal to 0, not -1"),
        ("export", "--as combined --k 2", "of the expert's change of a matrix would be lost"),
        (
            "export",
            "--as merged --dtype int8",
            "--dtype: must be 'auto', 'float32', 'bfloat16' or 'float16', not 'int8'",
        ),
    ],
)
def test_settings(refused, stage, command, settings, said):
    code = 1 if "would be lost" in said else 2
    refused(*stage(command, *settings.split()), said=said, code=code)


def test_names_of_arms(refused, stage, made, tmp_path):
    given = made.adapter
    for name, said in {"base": "the name of an arm without one", "a/b": "use letters", "": "use letters"}.items():
        refused(
            *stage("evaluate", adapter=f"{name}={given}", expert=made.expert),
            said=f"'{name}' cannot be the name of the adapter .*{said}",
        )
    refused(
        *stage("evaluate", "--adapter", given, "--adapter", given, expert=made.expert),
        said="two adapters are called palora; name them: --adapter NAME=DIR",
    )
    odd = tmp_path / "lr=3"
    shutil.copytree(given, odd)
    assert palora(*stage("evaluate", adapter=odd, expert=made.expert)).code == 0, "a folder may have = in its name"


# --- recipes --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, r"r\.yaml: no such recipe"),
        ("", r"r\.yaml: a recipe is a YAML mapping"),
        ("- model\n", r"r\.yaml: a recipe is a YAML mapping"),
        ("model: x\n\tfacts: y\n", r"r\.yaml, line 2: not valid YAML"),
        ("model: x\nskills: [chain\nfacts: y\n", r"r\.yaml, line 3: not valid YAML"),
        (b"model: \xff\n", r"r\.yaml: not UTF-8; save it as UTF-8"),
        (b"model: \x00\n", r"r\.yaml: not valid YAML"),
        ("model: x\n", r"r\.yaml: skills: is missing \(and 1 more to mend\)"),
    ],
)
def test_files_that_are_no_recipe(refused, tmp_path, text, said):
    path = tmp_path / "r.yaml"
    if text is not None:
        file(tmp_path, "r.yaml", text)
    refused("run", path, "--out", tmp_path / "out", said=said)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("rank=3", "rank: no such key; recipes/default.yaml shows all there are"),
        ("inject.rank=3", "inject.rank: no such key"),
        ("inject.r=many", "inject.r: must be a valid integer.*not 'many'"),
        ("inject.r=0", "inject.r: must be greater than or equal to 1, not 0"),
        ("inject.learning_rate=.inf", "inject.learning_rate: must be a finite number"),
        ("inject=5", "inject: must be a valid dictionary"),
        ("skills=chain", "skills: must be a valid list, not 'chain'"),
        ("skills=[chain,chain]", "two skills are called chain"),
        ("skills=[chess]", "unknown skill 'chess'"),
        ("seed=-1", "seed: must be greater than or equal to 0, not -1"),
        ("inject.r", "'inject.r': overrides look like key=value"),
        ("inject.r=[", r"'inject\.r=\[': the value is not valid YAML"),
        ("model.path=3", "'model.path=3': model has no keys of its own"),
        ("protect.rule=magic", "protect: unknown rule 'magic'"),
        ("protect={rule: sigma}", "protect: the rule sigma needs k, fraction or share"),
        ("arms.x.protect={rule: covariance, k: 3}", "arms.x.protect: the rule covariance takes a strength, not k"),
        ("arms.x.inject.rank=1", "arms.x: rank: no such key"),
        ("arms.base={}", "arms.base is always there"),
        ("arms.a/b={}", "arms: 'a/b' is no name"),
        ("model=/none", "/none: no such model folder"),
        ("facts=/none.jsonl", "/none.jsonl: no such file"),
        ("text=/none.txt", "/none.txt: cannot be read"),
        ("device=quantum", "there is no device 'quantum' here"),
    ],
)
def test_mistakes_in_a_recipe_are_told_before_any_work(refused, made, tmp_path, override, said):
    values = {"model": str(made.model), "skills": ["chain"], "facts": str(made.facts)}
    recipe = file(tmp_path, "r.yaml", yaml.safe_dump(values))
    refused("run", recipe, override, "--out", tmp_path / "out", said=said)


def test_a_recipe_of_your_own_is_not_overwritten(refused, made, tmp_path):
    values = {"model": str(made.model), "skills": ["chain"], "facts": str(made.facts)}
    recipe = file(tmp_path, "mine/recipe.yaml", "# my notes\n" + yaml.safe_dump(values))
    refused("run", recipe, "--out", recipe.parent, said="recipe.yaml was not written by palora and would be lost")


# --- what is there already ------------------------------------------------------------------------


def test_out(refused, stage, made, tmp_path):
    foreign = file(tmp_path, "foreign/thesis.tex", "mine").parent
    values = {"model": str(made.model), "skills": ["chain"], "facts": str(made.facts)}
    recipe = file(tmp_path, "r.yaml", yaml.safe_dump(values))
    commands = [
        stage("expert"),
        stage("protect", rule="sigma", k=2),
        stage("inject"),
        *(stage("export", "--as", kind) for kind in ("adapter", "merged", "combined")),
        ("run", recipe),
    ]
    for command in commands:
        refused(*command, "--out", foreign, said="foreign has other files in it .*choose a new or empty folder")
        refused(*command, "--out", foreign / "thesis.tex", said="thesis.tex is a file; --out names a folder")
        refused(*command, "--out", foreign / "thesis.tex" / "x", said="thesis.tex is no folder.*choose another --out")
    refused(*stage("evaluate", out=foreign / "thesis.tex"), said="is no folder, so nothing can be written under it")


def test_an_export_does_not_replace_what_it_is_made_of_or_a_stranger(refused, stage, made, tmp_path):
    own, stranger = tmp_path / "own", tmp_path / "stranger"
    shutil.copytree(made.adapter, own)
    shutil.copytree(made.adapter, stranger)
    (stranger / "palora.json").unlink()
    for kind in ("adapter", "combined"):
        refused(*stage("export", "--as", kind, adapter=own, out=own), said="is the adapter itself, which would be lost")
        refused(
            *stage("export", "--as", kind, out=stranger), said=r"stranger has other files in it \(no palora\.json\)"
        )


def test_an_evaluation_does_not_replace_a_strangers_files(refused, stage, tmp_path):
    report = file(tmp_path, "out/report.html", "mine")
    refused(*stage("evaluate"), said="has a report.html that is not ours")
    report.unlink()
    for content, said in {'{"mine": 1}': "it has no 'arms'", "[]": "not a JSON object", "{": "not valid JSON"}.items():
        file(tmp_path, "out/evaluation.json", content)
        refused(*stage("evaluate"), said=rf"evaluation\.json: {said}")


# --- disks and permissions ------------------------------------------------------------------------


def redone(made, tmp_path, name):
    """A command that would replace a finished folder by another, and that folder."""
    model = ("--model", made.model)
    run = tmp_path / "run"
    shutil.copytree(made.run, run)
    if name in ("merged", "combined"):
        export = ("export", "--adapter", made.adapter, "--as", name, "--out", run / name)
        assert palora(*export).code == 0
        return (*export, "--dtype", "bfloat16", "--max-drift", 9) if name == "merged" else (*export, "--max-lost", 0.5)
    return {
        "expert": ("expert", *model, "--skill", "chain", *QUICK["expert"], "--seed", 1, "--out", run / "expert"),
        "protect": ("protect", *model, "--rule", "sigma", "--k", 3, "--out", run / "protection"),
        "inject": ("inject", *model, "--facts", made.facts, *QUICK["inject"], "--seed", 1, "--out", run / "adapter"),
        "evaluate": ("evaluate", *model, "--skill", "chain", *QUICK["evaluate"], "--out", run),
    }[name]


@pytest.mark.parametrize("name", ["expert", "protect", "inject", "evaluate", "merged", "combined"])
@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_disk_that_fills_up_at_any_moment(refused, made, tmp_path, monkeypatch, name, call):
    """The first, the second, … write fails; the old results stay whole until the last one has not failed."""
    command = redone(made, tmp_path, name)
    real, failing, calls = getattr(os, call), 1, []

    def refusing(*arguments):
        calls.append(arguments)
        if len(calls) == failing:
            raise OSError(28, "No space left on device")
        return real(*arguments)

    monkeypatch.setattr(os, call, refusing)
    monkeypatch.setenv("PALORA_CACHE", "")  # it may fail to be written, and nothing is said
    old = tree(tmp_path)
    while True:
        calls.clear()
        result = palora(*command)
        if len(calls) < failing:
            break
        assert result.code == 1 and result.complaints[-1].startswith("palora: cannot write "), result.err
        assert "No space left on device; nothing that was there is lost" in result.complaints[-1]
        left = {path: value for path, value in tree(tmp_path).items() if ".work" not in path}
        if name == "evaluate":  # three files: the report is written from the others when the command is run again
            assert json.loads((tmp_path / "run" / "evaluation.json").read_text())["arms"]
            assert {path for path in left if left[path] != old.get(path)} <= {
                "run/answers.jsonl",
                "run/evaluation.json",
            }
        else:
            assert left == old
        failing += 1
    assert result.code == 0 and failing >= 2
    assert tree(tmp_path) != old and not [path for path in tree(tmp_path) if "/." in path], "finished, and tidy"


@contextmanager
def file_size_limit(size):
    """No file can grow beyond `size` bytes: what every writer, also those in C and Rust, meets on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize(
    ("name", "size"),
    [("inject", 0), ("inject", 1000), ("inject", 5000), ("inject", 10_000), ("merged", 3000), ("merged", 30_000)],
)
def test_writers_that_are_not_ours_meet_a_full_disk(made, tmp_path, name, size):
    command = redone(made, tmp_path, name)
    old = tree(tmp_path)
    with file_size_limit(size):
        result = palora(*command)
    assert result.code == 1 and len(result.complaints) == 1, result.err
    assert result.complaints[0].startswith(f"palora: cannot write {tmp_path}/run/")
    assert {path: value for path, value in tree(tmp_path).items() if ".work" not in path} == old
    assert palora(*command).code == 0
    assert tree(tmp_path) != old and not [path for path in tree(tmp_path) if "/." in path]


def test_half_a_checkpoint_is_not_continued_from(made, stage, tmp_path, monkeypatch):
    """The disk fills up in the middle of the second checkpoint; the first one is whole."""
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    settings = {"model": made.expert_model, "protection": made.protection, "epochs": 3}
    assert palora(*stage("inject", **settings, out=whole)).code == 0
    save, calls = transformers.Trainer._save_rng_state, []

    def full(self, output_dir):
        calls.append(output_dir)
        if len(calls) == 2:
            raise OSError(28, "No space left on device")
        save(self, output_dir)

    with monkeypatch.context() as patch:
        patch.setattr(transformers.Trainer, "_save_rng_state", full)
        result = palora(*stage("inject", **settings, out=broken))
        assert result.code == 1 and "No space left on device" in result.complaints[0]
    steps = []
    step = transformers.Trainer.training_step
    monkeypatch.setattr(transformers.Trainer, "training_step", lambda *a, **b: steps.append(1) or step(*a, **b))
    assert palora(*stage("inject", **settings, out=broken)).code == 0
    assert len(steps) == 2, "only the second and the third epoch are done again"
    assert tree(broken)["adapter_model.safetensors"] == tree(whole)["adapter_model.safetensors"]


def test_no_permission(refused, stage, tmp_path, monkeypatch):
    locked = tmp_path / "locked"
    locked.mkdir()
    if os.geteuid() == 0:  # root may write anywhere: only say that it may not
        real = os.access
        monkeypatch.setattr(os, "access", lambda path, mode: real(path, mode) and (path != locked or mode == os.R_OK))
    else:
        locked.chmod(0o500)
    for command in (stage("expert"), stage("protect", rule="sigma", k=2), stage("inject"), stage("export")):
        refused(*command, "--out", locked / "out", said="no permission to write in .*locked; choose another --out")
    refused(*stage("evaluate", out=locked), said="no permission to write in .*locked")


def test_no_permission_where_asking_does_not_tell(refused, stage, tmp_path, monkeypatch):
    def refuse(self, *arguments, **named):
        if ".work" in self.name or ".partial" in self.name:
            raise PermissionError(13, "Permission denied", str(self))
        real(self, *arguments, **named)

    real = Path.mkdir
    monkeypatch.setattr(Path, "mkdir", refuse)
    for command in (stage("expert"), stage("protect", rule="sigma", k=2), stage("inject"), stage("export")):
        refused(*command, said="cannot write .*out.*: Permission denied; nothing that was there is lost", code=1)


def test_a_swap_that_fails_puts_the_old_folder_back(tmp_path, monkeypatch):
    file(tmp_path, "out/marker.json", "old")
    real = os.replace

    def refuse(source, target):
        if str(source).endswith(".partial"):
            raise OSError(5, "Input/output error")
        real(source, target)

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(PaloraError, match="Input/output error"), new_folder(tmp_path / "out", "marker.json") as staging:
        (staging / "marker.json").write_text("new")
    assert tree(tmp_path) == {"out": "folder", "out/marker.json": tree(tmp_path)["out/marker.json"]}
    assert (tmp_path / "out" / "marker.json").read_text() == "old"


# --- training that diverges -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "settings", "said"),
    [
        (
            "inject",
            "--learning-rate 1e30 --batch-size 2",
            "the loss is no longer a number at step 2; lower the learning",
        ),
        ("inject", "--learning-rate 1e30 --epochs 1", "is infinite or no number; .*lower learning rate"),
        ("expert", "--learning-rate 1e30 --parametrisation linear", "the expert's loss is no longer a number; lower"),
        (
            "expert",
            "--learning-rate 1e30 --parametrisation linear --objective reward --temperature 1",
            "the expert's loss is no longer a number; lower the learning rate",
        ),
    ],
)
def test_training_that_diverges(refused, stage, made, tmp_path, command, settings, said):
    old = {"expert": made.expert, "inject": made.adapter}[command]
    shutil.copytree(old, tmp_path / "out")
    refused(*stage(command, *settings.split()), said=said, code=1)


def test_an_update_that_is_no_number_at_the_very_last_step(refused, stage, monkeypatch):
    """After the last loss that is logged nothing else would see it."""
    from transformers import Trainer

    step = Trainer.training_step

    def poisoned(self, model, *arguments, **named):
        loss = step(self, model, *arguments, **named)
        for parameter in model.parameters():
            if parameter.grad is not None:
                parameter.grad.fill_(float("nan"))
        return loss

    monkeypatch.setattr(Trainer, "training_step", poisoned)
    refused(*stage("inject", epochs=1), said="an update is no longer a number at step 1; lower the learning", code=1)


# --- from Python ----------------------------------------------------------------------------------


def test_python_users_get_exceptions_of_one_line(made):
    for call in (
        lambda: parse_recipe({"model": "m", "skills": [], "facts": "f"}),
        lambda: load_model(made.model, device="quantum"),
        lambda: load_model("/none"),
    ):
        with pytest.raises(InputError) as caught:
            call()
        assert "\n" not in str(caught.value)


# --- adapters that were tampered with ---------------------------------------------------------------


def _factor(value):
    def change(folder):
        tensors = load_tensors(folder / "adapter_model.safetensors")
        next(iter(tensors.values()))[0, 0] = value
        save_tensors(folder / "adapter_model.safetensors", tensors)

    return change


def _set(name, **values):
    return lambda folder: write_json(folder / name, {**read_json(folder / name), **values})


@pytest.mark.parametrize("ours", [True, False], ids=["with palora.json", "plain"])
@pytest.mark.parametrize(
    ("change", "said"),
    [
        (_set("adapter_config.json", lora_alpha=None), "lora_alpha: input should be a valid number"),
        (_set("adapter_config.json", lora_alpha="x"), "lora_alpha: input should be a valid number"),
        (_set("adapter_config.json", lora_alpha=1e308), "beyond use"),
        (_set("adapter_config.json", r=0), "r: input should be greater than 0"),
        (_set("adapter_config.json", alpha_pattern=[1]), "alpha_pattern: input should be a valid dictionary"),
        (
            _set("adapter_config.json", alpha_pattern={"(a|a.)*(a|a)*(.+)+$": 1}),
            "alpha_pattern: .* is no module's name",
        ),
        (_set("adapter_config.json", use_rslora={}), "use_rslora: input should be a valid boolean"),
        (_factor(float("nan")), "the update of .* holds NaN"),
        (_factor(float("-inf")), "the update of .* holds NaN, infinity"),
        (_factor(1e30), "beyond use"),
    ],
    ids=["no alpha", "alpha text", "alpha huge", "rank 0", "patterns", "regex", "rslora", "nan", "inf", "huge"],
)
def test_a_hostile_adapter(refused, stage, made, tmp_path, change, said, ours):
    folder = tmp_path / "hostile"
    shutil.copytree(made.adapter, folder)
    record = read_json(folder / "palora.json")
    (folder / "palora.json").unlink()
    change(folder)
    if ours:  # whoever tampers writes the hashes anew
        seal(folder, "palora.json", record)
    refused("inspect", folder, said=said)
    refused(*stage("evaluate", adapter=folder), said=said)
    if ours:
        for kind in ("adapter", "merged"):
            refused(*stage("export", "--as", kind, adapter=folder), said=said)


@pytest.mark.parametrize("key", ["fingerprints", "update", "model", "files"])
@pytest.mark.parametrize("value", [None, 3, [], ["x"]])
def test_a_record_of_an_adapter_that_was_edited(refused, stage, made, tmp_path, key, value):
    folder = tmp_path / "edited"
    shutil.copytree(made.adapter, folder)
    _set("palora.json", **{key: value})(folder)
    said = rf"palora\.json: '?{key}.*was it edited\?"
    refused("inspect", folder, said=said)
    refused(*stage("evaluate", adapter=folder), said=said)
    refused(*stage("export", adapter=folder), said=said)


def test_a_changed_byte_of_an_adapter(refused, stage, made, tmp_path):
    folder = tmp_path / "changed"
    shutil.copytree(made.adapter, folder)
    content = bytearray((folder / "adapter_model.safetensors").read_bytes())
    content[-9] ^= 1
    (folder / "adapter_model.safetensors").write_bytes(content)
    for command in (("inspect", folder), stage("evaluate", adapter=folder), stage("export", adapter=folder)):
        refused(*command, said=r"adapter_model\.safetensors has changed since it was written")


# --- what is hostile ------------------------------------------------------------------------------

DEEP = "[" * 100_000 + "]" * 100_000
COLOURED = "a\x1b[31mred\x07\x9b1m\u202e"


@pytest.mark.parametrize(
    "template",
    [
        "{% if",
        "{{ foo.bar }}",
        "{{ messages|none }}",
        "{{ 1/0 }}",
        "hello",
        "{{ messages.__class__.__mro__ }}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{% for i in range(10**9) %}x{% endfor %}",
        "{% include 'x' %}",
        "{{ raise_exception('" + COLOURED + "\nb') }}",
        "{{" + "(" * 3000 + "1" + ")" * 3000 + "}}",
        "{% if 1 %}" * 2000 + "{% endif %}" * 2000,
    ],
)
def test_a_broken_chat_template(refused, stage, other_model, template):
    folder = other_model()
    (folder / "chat_template.jinja").write_text(template)
    line = refused(*stage("inject", model=folder), said="chat template does not take a question and its answer")
    assert line.isprintable()


@pytest.mark.parametrize("name", ["palora.json", "adapter_config.json", "protection.json", "expert.json"])
def test_a_folder_whose_json_is_100_000_deep(refused, tmp_path, name):
    file(tmp_path, f"folder/{name}", '{"a":' + DEEP + "}")
    refused("inspect", tmp_path / "folder", said=rf"{name}: nested too deeply to be read")


@pytest.mark.parametrize("content", [DEEP, '{"a":' * 100_000 + "1" + "}" * 100_000])
@pytest.mark.parametrize("name", ["f.json", "f.jsonl"])
def test_facts_100_000_deep(refused, stage, tmp_path, name, content):
    refused(*stage("inject", facts=file(tmp_path, name, content)), said="nested too deeply to be read")


@pytest.mark.parametrize(
    "text",
    [
        "skills: " + "[" * 3000 + "]" * 3000,
        "a: " + "{a: " * 3000 + "}" * 3000,
        "\n".join(" " * level + "a:" for level in range(3000)),
        "a: " + "[" * 100_000,
        "a: " + "[" * 100 + "]" * 100,
    ],
)
def test_a_recipe_3000_deep(refused, tmp_path, text):
    recipe = file(tmp_path, "r.yaml", text + "\n")
    refused("run", recipe, "--out", tmp_path / "out", said=r"r\.yaml.*nested (too deeply|more than 50 levels)")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("model: &a [*a]", "line 1: an alias stands within what it is an alias of"),
        ("facts: &a {file: *a}", "line 1: an alias stands within"),
        ("".join(f"a{i}: &a{i} [{','.join([f'*a{i - 1}'] * 9) if i else 'x'}]\n" for i in range(9)), "100,000 values"),
        ("seed: 1\nmodel: x\nseed: 2", r"line 3: a key stands there a second time \(first in line 1\); keep one"),
        ("inject: {r: 4, r: 8}", "line 1: a key stands there a second time"),
        ("seed: !!int x", "not valid YAML"),
        ("seed: !!timestamp 2020-99-99", "not valid YAML"),
        (f"seed: {'9' * 5000}", "not valid YAML|seed: must be"),
    ],
)
def test_a_recipe_that_is_no_plain_yaml(refused, tmp_path, text, said):
    refused("run", file(tmp_path, "r.yaml", text + "\n"), "--out", tmp_path / "out", said=said)


def test_1500_recipes_that_extend_each_other(refused, tmp_path):
    for number in range(1500):
        file(tmp_path, f"{number}.yaml", f"extends: {number + 1}.yaml\n")
    file(tmp_path, "1500.yaml", "model: x\n")
    refused("run", tmp_path / "0.yaml", "--out", tmp_path / "out", said="more than 20 recipes extend each other")


def recipe_with(text):
    """A recipe with one line replaced or added."""
    key = text.partition(":")[0]
    lines = ["model: m", "facts: f.csv", "skills: [chain]"]
    return yaml_recipe("\n".join([*(line for line in lines if not line.startswith(f"{key}:")), text]))


def yaml_recipe(text):
    from palora.common.plain_yaml import parse_yaml

    return parse_recipe(parse_yaml(text))


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("system_message: yes", "yes"),
        ("model: no", "no"),
        ("facts: 010", "010"),
        ("facts: {file: f.csv, question: no, answer: 1:30}", {"file": "f.csv", "question": "no", "answer": "1:30"}),
        ("text: 2020-01-01", "2020-01-01"),
        ("targets: [off]", ["off"]),
        ("inject: {r: 010}", 10),
        ("inject: {r: 8}", 8),
        ("seed: 7", 7),
    ],
)
def test_yaml_is_what_it_looks_like(text, value):
    found = getattr(recipe_with(text), text.partition(":")[0])
    assert (getattr(found, "r", found)) == value


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("inject: {epochs: 1:30}", "inject.epochs: must be a valid integer.*not '1:30'"),
        ("seed: yes", "seed: must be a valid integer.*not 'yes'"),
        ("inject: {r: 0x10}", "inject.r: must be a valid integer.*not '0x10'"),
        ("chat_template_kwargs: {enable_thinking: no}", "enable_thinking: write true or false, not no"),
    ],
)
def test_yaml_that_could_be_two_things_is_asked_for(text, said):
    with pytest.raises(InputError, match=said):
        recipe_with(text)


def test_what_is_written_as_yaml_is_read_back():
    from palora.common.plain_yaml import dump_yaml, parse_yaml

    value = {"no": ["1e5", "010", "1:30", "yes", "2020-01-01", "null", "~", "", "0x10", "1_0", ".5", "<<"], "a": 1e-5}
    assert parse_yaml(dump_yaml(value)) == value


@pytest.mark.parametrize("content", ["root:$6$SECRET:1:::\ndaemon: SECRET\n", "SECRET: SECRET\n- SECRET", "!!SECRET x"])
def test_extends_tells_nothing_of_another_file(refused, tmp_path, content):
    shadow = file(tmp_path, "shadow", content)
    recipe = file(tmp_path, "r.yaml", f"extends: {shadow}\n")
    line = refused("run", recipe, "--out", tmp_path / "out", said="extends names a recipe, .*not '.*shadow'")
    assert "SECRET" not in line
    for broken in ("a: !!SECRET 1", "a: *SECRET", "SECRET [\n"):
        named = file(tmp_path, "other.yaml", broken)
        recipe = file(tmp_path, "r.yaml", f"extends: {named}\n")
        assert "SECRET" not in refused("run", recipe, "--out", tmp_path / "out", said=r"other\.yaml")


@pytest.mark.parametrize("key", ["model", "facts", "text", "prompts", "device", "extends", "skills"])
def test_a_path_with_a_nul_character(refused, made, tmp_path, key):
    values = {"model": str(made.model), "skills": ["chain"], "facts": str(made.facts)}
    values[key] = ["a\0b.jsonl"] if key == "skills" else "a\0b"
    recipe = file(tmp_path, "r.yaml", yaml.safe_dump(values))
    refused(
        "run", recipe, "--out", tmp_path / "out", said=r"'a\\x00b.*: no path has a NUL character in it; take it out"
    )


def test_no_escape_sequence_reaches_the_terminal(refused, stage, made, tmp_path):
    whole = {"model": "m", "skills": ["chain"], "facts": "f"}
    for command in (
        stage("inject", facts=tmp_path / COLOURED),
        stage("inject", model=COLOURED),
        ("inspect", tmp_path / COLOURED),
        ("run", tmp_path / COLOURED),
        ("run", file(tmp_path, "r.yaml", yaml.safe_dump(whole | {COLOURED: 1})), "--out", tmp_path / "out"),
    ):
        assert refused(*command, said="red").isprintable()
    rows = [{"question": COLOURED, "answer": answer} for answer in "bc"]
    facts = file(tmp_path, "f.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    adapter = tmp_path / "adapter"
    shutil.copytree(made.adapter, adapter)
    record = json.loads((adapter / "palora.json").read_text())
    write_json(adapter / "palora.json", record | {"model": COLOURED})
    for command in (("facts", "check", facts), ("inspect", adapter), ("inspect", "--json", adapter)):
        result = palora(*command)
        assert result.code == 0 and "red" in result.out
        assert all(line.isprintable() for line in result.out.splitlines())
    assert json.loads(palora("inspect", "--json", adapter).out)["model"] == COLOURED


def test_names_are_no_html_in_markdown():
    from palora.bench.compare_report import named_table
    from palora.results.model_card import model_card

    attack = "<script>alert(1)</script> | [x](http://y) `"
    text = "\n".join(named_table(["method", attack], [(attack, "1%")]))
    assert not re.search(r"(?<!\\)[<\[`]", text)
    assert all(len(re.findall(r"(?<!\\)\|", line)) == 3 for line in text.splitlines()), "two cells a row"
    update = {"norm": 1, "relative_norm": 1, "leak": None, "drift": None}
    card = model_card({"update": update, "facts": {"n": 1, "file": attack}, "rule": "none", "model": attack})
    assert not re.search(r"(?<!\\)<script", card.partition("- **Goes on**")[0])


@pytest.mark.parametrize("closed", [(1,), (2,), (0, 1, 2)])
def test_a_standard_stream_that_is_closed(made, tmp_path, closed):
    """The first file that is opened took the place of the stream, and was written into."""
    code = (
        f"import os, sys\nfor n in {closed}: os.close(n)\n"
        "os.execv(sys.executable, [sys.executable, '-m', 'palora.cli', *sys.argv[1:]])"
    )
    arguments = ["inject", *QUICK["inject"], "--model", made.model, "--facts", made.facts, "--out", tmp_path / "out"]
    ended = subprocess.run([sys.executable, "-c", code, *map(str, arguments)], timeout=120)
    assert ended.returncode == 0
    assert load_tensors(tmp_path / "out" / "adapter_model.safetensors")
    assert palora("inspect", tmp_path / "out").code == 0


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"num_hidden_layers": 100_000}, "num_hidden_layers is 100,000, more than these weights can have"),
        ({"vocab_size": 10**8}, "vocab_size is 100,000,000, more than"),
        ({"hidden_size": 10**6}, "hidden_size is 1,000,000, more than"),
        ({"num_hidden_layers": 1}, "config.json has no place for model.layers.1.*fewer layers"),
        ({"num_hidden_layers": 3}, "they lack model.layers.2"),
        ({"dtype": "int8"}, "cannot load the"),
        ({"dtype": "float33"}, "cannot load the"),
    ],
)
def test_a_config_of_another_size(refused, stage, other_model, config, said):
    refused(*stage("inject", model=other_model(config=config)), said=said)


def test_weights_that_are_of_another_kind(refused, stage, other_model, caplog):
    def cast(kind):
        return lambda tensors: tensors.update({name: value.to(kind) for name, value in tensors.items()})

    for kind, said in {torch.int8: "I8", torch.bool: "BOOL", torch.float8_e4m3fn: "F8_E4M3"}.items():
        folder = other_model(said, weights=cast(kind))
        refused(*stage("inject", model=folder), said=f"is stored as {said}; the checkpoint is damaged")
    load_model(other_model("half", weights=cast(torch.bfloat16)), device="cpu")
    assert "config.json says float32, and the weights are bfloat16: say by --dtype" in caplog.text
    caplog.clear()
    load_model(other_model("same"), device="cpu")
    assert not caplog.text


def test_a_wrong_name_of_a_model_is_told_at_once(refused, stage, tmp_path, monkeypatch):
    import huggingface_hub.constants
    from huggingface_hub import file_download

    asked = []

    def head(*arguments, **named):
        asked.append(arguments)
        raise OSError("Name or service not known")

    monkeypatch.setattr(file_download, "get_hf_file_metadata", head)
    (tmp_path / "models").mkdir()
    monkeypatch.chdir(tmp_path)
    for name in ("models/nothing", "./nothing", "a/b/c", "no model"):
        refused(*stage("inject", model=name), said="no such model folder, and not a hub name")
    refused(
        *stage("inject", model="nobody/nothing"), said="not in the cache, and HF_HUB_OFFLINE is set; check the path"
    )
    assert not asked
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    refused(*stage("inject", model="nobody/nothing"), said="the hub cannot be reached .*check the path")
    assert len(asked) == 1


def test_an_interrupted_leader_leaves_at_once_and_takes_its_workers_along(tmp_path):
    script = file(
        tmp_path,
        "leader.py",
        """
import os, sys, time
from unittest import mock
from palora.bench.workers import Job, Workers

def work(folder):
    open(os.path.join(folder, str(os.getpid())), "w").close()
    time.sleep(60)

def lead(*arguments, **named):
    with Workers(2) as crew:
        crew.run([Job(str(i), work, (sys.argv[1],)) for i in range(4)])

if __name__ == "__main__":
    from palora import cli
    with mock.patch.object(cli, "app", lead):
        cli.main()
""",
    )
    begun = tmp_path / "begun"
    begun.mkdir()
    own = {"preexec_fn": lambda: signal.signal(signal.SIGINT, signal.default_int_handler)}
    leader = subprocess.Popen([sys.executable, script, begun], stderr=subprocess.PIPE, text=True, **own)
    wait = time.monotonic() + 60
    while len(list(begun.iterdir())) < 2 and time.monotonic() < wait:
        time.sleep(0.05)
    sent = time.monotonic()
    leader.send_signal(signal.SIGINT)
    _, said = leader.communicate(timeout=50)
    assert (leader.returncode, time.monotonic() - sent < 5) == (130, True), said
    assert said.splitlines() == ["palora: stopped; run the same command again to continue"]
    assert not [worker for worker in begun.iterdir() if Path("/proc", worker.name).exists()]
