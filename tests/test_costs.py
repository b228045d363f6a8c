"""What a run costs, against what it really takes: counted by autograd, by tensors' own sizes, and by the system."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import tiny_llama

from palora.common.settings import InjectSettings, ProtectSettings
from palora.data.skills import get_skill
from palora.front import costs
from palora.front.costs import Batch, Lesson, Matrix, Place
from palora.front.dry_run import sizes_of
from palora.language.keep import Keep
from palora.language.models import build_empty, load_model
from palora.language.targets import find_targets
from palora.training.lora import lora_model
from palora.training.protection import protect

HERE = Path(__file__).parent
TESTBED = HERE.parent / "palora" / "testbed" / "model"


def test_an_empty_model_has_the_sizes_of_the_real_one():
    model, _ = load_model(TESTBED, "float32", "cpu")
    empty = build_empty(TESTBED)
    assert all(p.is_meta for p in empty.parameters()) and empty.dtype == torch.float32
    assert sizes_of(empty) == sizes_of(model)
    sizes = sizes_of(empty)
    assert (sizes.layers, sizes.width, sizes.queries, sizes.keys, sizes.vocabulary) == (2, 256, 256, 256, 99)
    assert (sizes.inner, sizes.gate) == (2 * 768, True)
    assert sizes.taught == 2 * (Matrix(768, 256), Matrix(768, 256, False), Matrix(256, 768))
    assert costs.weights(sizes, 4) == sum(p.numel() * 4 for p in model.parameters())
    assert sizes.multiplied == 2 * (4 * 256**2 + 3 * 256 * 768) + 99 * 256
    inner = 2 * (4 * 256**2 + 3 * 256 * 768)  # what bitsandbytes quantises
    assert costs.weights(sizes, 4, 8) == (sizes.parameters - inner + 256 * 768) * 4 + inner
    assert costs.weights(sizes, 4, 4) == (sizes.parameters - inner + 256 * 768) * 4 + inner // 2 + inner // 64


@pytest.mark.parametrize(("dropout", "keys"), [(0.0, 4), (0.1, 4), (0.0, 2)])
def test_the_activations_are_those_that_autograd_keeps(dropout, keys):
    """Of three layers more: of the first one nothing before its MLP needs a gradient."""
    batch, r = Batch(6, 40), 8

    def of(layers):
        changes = {"hidden_size": 128, "intermediate_size": 320, "num_key_value_heads": keys}
        model = tiny_llama(num_hidden_layers=layers, **changes)
        sizes = sizes_of(model)
        tuned = lora_model(model, InjectSettings(r=r, lora_dropout=dropout), list(find_targets(model))).train()
        own = {p.untyped_storage().data_ptr() for p in tuned.parameters()}
        kept = {}

        def pack(x):
            if x.untyped_storage().data_ptr() not in own:
                kept[x.untyped_storage().data_ptr()] = x
            return x

        ids = torch.randint(4, 90, (batch.rows, batch.tokens))
        mask = torch.ones_like(ids)
        mask[0, 30:] = 0
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            tuned.base_model.model.model(input_ids=ids, attention_mask=mask, use_cache=False)
        counted = sum(x.untyped_storage().nbytes() for x in kept.values())
        return counted, costs.activations(sizes, batch, r, dropout > 0, 4)

    (few, predicted_few), (many, predicted_many) = of(2), of(5)
    assert predicted_many - predicted_few == pytest.approx(many - few, rel=0.04)


def test_the_adapter_and_what_is_known_of_the_inputs_are_of_these_sizes(tokenizer):
    model = tiny_llama(hidden_size=64, intermediate_size=1200)  # one input is summed whole, the other is a sketch
    sizes = sizes_of(model)
    keep = Keep([get_skill("chain"), get_skill("minmax")], examples=64)
    made = protect(model, tokenizer, ProtectSettings(), keep)
    stored = [own.factor.numel() * 4 for thing in made.statistics.things for own in thing.of.values()]
    assert costs.statistics(sizes, 2) == sum(stored)
    bases = sum(own.input.numel() * 4 for own in made.values())
    assert bases <= costs.soft_bases(sizes, 2) <= 1.2 * bases, "but for directions that the text never uses"
    hard = protect(model, tokenizer, ProtectSettings(rule="sigma", k=5))
    assert costs.hard_bases(sizes, 5, 2) == sum((s.input.numel() + s.output.numel()) * 4 for s in hard.values())
    tuned = lora_model(model, InjectSettings(r=3), list(find_targets(model)))
    assert costs.adapter(sizes, 3) == sum(p.numel() for p in tuned.parameters() if p.requires_grad)
    assert costs.trained(sizes, 3) == 16 * costs.adapter(sizes, 3)


def test_the_cache_is_that_of_the_model(tokenizer):
    model = tiny_llama(num_key_value_heads=2)
    cache = model(input_ids=torch.ones(3, 11, dtype=torch.long), use_cache=True).past_key_values
    held = sum((layer.keys.numel() + layer.values.numel()) * 4 for layer in cache.layers)
    assert costs.cache(sizes_of(model), Batch(3, 11), 4) == held


def test_the_operations_are_those_that_torch_counts():
    from torch.utils.flop_counter import FlopCounterMode

    model = tiny_llama(hidden_size=64, intermediate_size=160)
    with FlopCounterMode(display=False) as counter:
        model(input_ids=torch.ones(2, 9, dtype=torch.long), use_cache=False)
    counted, sizes = counter.get_total_flops(), sizes_of(model)
    assert costs.forward_flops(sizes, Batch(2, 9)) == pytest.approx(counted, rel=0.05)


def test_a_stage_is_the_sum_of_its_parts_and_grows_with_rank_and_batch():
    sizes, place = sizes_of(build_empty(TESTBED)), Place(cpu=False, e=2)
    small = costs.teaching(sizes, place, Lesson(Batch(4, 30)), 0, 0, False)
    assert set(small) == {"weights", "adapter", "activations", "logits"}, "nothing of a CPU, and nothing that is 0"
    wide = costs.teaching(sizes, place, Lesson(Batch(4, 30), r=64), 0, 0, False)
    assert wide["adapter"] == 2 * small["adapter"]
    more = costs.teaching(sizes, place, Lesson(Batch(8, 30)), 0, 0, False)
    assert more["activations"] == 2 * small["activations"]
    thrifty = costs.teaching(sizes, place, Lesson(Batch(4, 30), checkpointing=True), 0, 0, False)
    assert thrifty["activations"] < small["activations"]
    kept = costs.teaching(sizes, place, Lesson(Batch(4, 30), Batch(4, 30), 40), 0, 0, False)
    assert kept["activations"] == 2 * small["activations"]


@pytest.mark.parametrize(("limit", "found"), [(0, 0), (1, 1), (37, 37), (500, 100)])
def test_the_largest_that_fits(limit, found):
    assert costs.largest(lambda n: n <= limit, 100) == found


# --- what a process really takes -------------------------------------------------------------------


def measured(model, *arguments):
    """What the stages of `peak.py` take in a process of their own, and what was predicted; bytes."""
    command = [sys.executable, HERE / "peak.py", model, *arguments]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PALORA_CACHE": ""}
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def check(found):
    for stage, (took, predicted) in found.items():
        print(f"{stage}: {took / 2**20:,.0f} MiB measured, {predicted / 2**20:,.0f} predicted")
    for stage, (took, predicted) in found.items():
        assert predicted == pytest.approx(took, rel=0.2), stage


needs_linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="peaks are read from /proc")


@needs_linux
def test_the_embedded_model_takes_what_was_predicted():
    check(measured(TESTBED, "--kept", "1"))


@needs_linux
@pytest.mark.pretrained
@pytest.mark.skipif(not Path(os.environ.get("PALORA_PRETRAINED", ""), "config.json").is_file(), reason="no such model")
def test_a_pretrained_model_takes_what_was_predicted():
    check(measured(os.environ["PALORA_PRETRAINED"], "--kept", "1", "--facts", "10"))
