"""Fixtures: one tiny Llama with a real tokenizer for all tests, and a cache of its own."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

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
