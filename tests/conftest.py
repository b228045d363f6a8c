"""Fixtures: one tiny Llama with a real tokenizer for all tests, and a cache of its own."""

import os
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

os.environ.setdefault("HF_HUB_OFFLINE", "1")
# As the command line sets them; the libraries read them when they are imported.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# The models are tiny: a second thread only waits for the first, and with two test processes both wait for a core.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("TQDM_DISABLE", "1")

import pytest
import torch


@pytest.fixture(autouse=True, scope="session")
def _own_cache(tmp_path_factory):
    os.environ["PALORA_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def tiny_llama(**changes):
    """A Llama of random weights: 2 layers, width 32, MLP 48."""
    from transformers import LlamaConfig, LlamaForCausalLM

    from palora.testbed.tokenizer import build_tokenizer

    torch.manual_seed(7)
    settings = {
        "vocab_size": len(build_tokenizer()),
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 256,
        "tie_word_embeddings": True,
        "pad_token_id": 0,
        "eos_token_id": 1,
        "bos_token_id": None,
        "initializer_range": 0.2,
    }
    return LlamaForCausalLM(LlamaConfig(**settings | changes)).eval()


def constrained_layers(model):
    """The constrained layers of a PEFT model, by the path of the matrix in the base model."""
    from palora.training.lora import PaloraLinear

    layers = {name: module for name, module in model.named_modules() if isinstance(module, PaloraLinear)}
    return {name.removeprefix("base_model.model."): module for name, module in layers.items()}


@pytest.fixture
def model():
    """A fresh tiny model; tests may change it."""
    return tiny_llama()


@pytest.fixture(scope="session")
def tokenizer():
    from palora.testbed.tokenizer import build_tokenizer

    return build_tokenizer()


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory, tokenizer):
    """The tiny model, saved with its tokenizer."""
    folder = tmp_path_factory.mktemp("model")
    tiny_llama().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def rising():
    """Validation keeps the untouched base unless it is beaten; a random model never is, so let every one be better."""
    count = iter(range(1, 999))
    return lambda answers: next(count) / 1000


@dataclass(frozen=True)
class Made:
    """What the tests of the command line start from: a model, facts, and the folder of every stage, all tiny."""

    model: Path
    facts: Path
    known_facts: Path
    run: Path

    @property
    def expert(self) -> Path:
        return self.run / "expert"

    @property
    def expert_model(self) -> Path:
        return self.expert / "model"

    @property
    def protection(self) -> Path:
        return self.run / "protection"

    @property
    def adapter(self) -> Path:
        return self.run / "adapter"


@pytest.fixture(scope="session")
def made(model_folder, tmp_path_factory):
    """Every stage run once through the command line. Tests must leave it as it is: copy what you change."""
    from command import QUICK, palora

    from palora.data.facts import write_facts
    from palora.testbed.world import known_facts, new_facts

    folder = tmp_path_factory.mktemp("made")
    made = Made(model_folder, folder / "new.jsonl", folder / "known.jsonl", folder / "run")
    write_facts(made.facts, new_facts(6))
    write_facts(made.known_facts, known_facts()[:4])
    on_model, on_expert = ("--model", made.model), ("--model", made.expert_model)
    svf = ("--rule", "svf", "--k", 8, "--skill", "chain", "--expert", made.expert)
    asked = ("--facts", made.facts, "--known-facts", made.known_facts, "--skill", "chain", "--expert", made.expert)
    for command, *arguments in (
        ("expert", *on_model, "--skill", "chain", "--out", made.expert),
        ("protect", *on_expert, *svf, "--out", made.protection),
        ("inject", *on_expert, "--protection", made.protection, "--facts", made.facts, "--out", made.adapter),
        ("evaluate", *on_model, "--adapter", made.adapter, *asked, "--out", made.run),
    ):
        with mock.patch("palora.training.expert.share_correct", rising()):
            result = palora(command, *QUICK[command], *arguments)
        assert result.code == 0, result.err
    return made
