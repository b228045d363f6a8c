"""Each of PEFT's methods trains through `inject`, and `live_delta` is what it really does to each matrix."""

import pytest
import torch
from conftest import tiny_llama

from palora.algebra.subspace import ProtectedSubspace, ProtectedSubspaces
from palora.bench.tuners import adapt, check_terms, live_delta
from palora.common.errors import InputError
from palora.common.settings import InjectSettings
from palora.data.skills import get_skill
from palora.language.keep import Keep
from palora.language.targets import find_targets, weight
from palora.testbed.world import new_facts
from palora.training.injection import Beside, inject

TUNERS = ["lora", "dora", "mica", "corda", "osf", "full"]
SETTINGS = InjectSettings(
    r=4, lora_alpha=8, lora_dropout=0.0, learning_rate=0.02, epochs=3, batch_size=4, drift=0.0, stop_at_recall=None
)


@pytest.fixture
def kept(model, tokenizer):
    [thing] = Keep([get_skill("chain")], examples=24).tokenised(model, tokenizer)
    return thing


def beside(tuner, kept, **given):
    return Beside(arm=tuner, rows=[(1.0, kept)], adapt=adapt(tuner, kept.examples), **given)


def logits(model):
    ids = torch.arange(4, 40).reshape(2, 18)
    with torch.no_grad():
        return model(input_ids=ids).logits


@pytest.mark.parametrize("tuner", TUNERS)
def test_the_delta_is_what_the_trained_model_does(tuner, model, tokenizer, kept, tmp_path):
    before = {name: weight(module).clone() for name, module in find_targets(model).items()}
    tuned, record = inject(model, tokenizer, new_facts(8), SETTINGS, tmp_path, beside=beside(tuner, kept))
    assert record["steps"] == 6
    plain = tiny_llama()
    if tuner == "full":  # there everything else has moved too
        plain.load_state_dict(tuned.state_dict())
        for name, module in find_targets(plain).items():
            module.weight.data.copy_(before[name])
    for name, module in find_targets(plain).items():
        delta = live_delta(tuned, name, before[name])
        assert delta.norm() > 1e-3, "it has learned something"
        module.weight.data += delta
    assert torch.allclose(logits(plain), logits(tuned), atol=2e-4)


@pytest.mark.parametrize("tuner", TUNERS)
def test_interrupted_it_ends_with_the_same_numbers(tuner, tokenizer, kept, tmp_path):
    def run(epochs, work):
        settings = SETTINGS.model_copy(update={"epochs": epochs, "replay": 0.5, "kept_batch_size": 50})
        start = tiny_llama()
        before = {name: weight(module).clone() for name, module in find_targets(start).items()}
        given = beside(tuner, kept, on_recall=stop)
        tuned, _ = inject(start, tokenizer, new_facts(8), settings, work, beside=given)
        return {name: live_delta(tuned, name, W) for name, W in before.items()}

    stopped = []

    def stop(model, recall, epoch):
        if stopped:
            stopped.clear()
            raise KeyboardInterrupt

    whole = run(6, tmp_path / "whole")
    stopped.append(True)
    with pytest.raises(KeyboardInterrupt):
        run(6, tmp_path / "again")
    again = run(6, tmp_path / "again")
    assert all(torch.allclose(again[name], whole[name], atol=1e-6) for name in whole)


def test_only_named_matrices_are_taught(model, tokenizer, tmp_path):
    settings = SETTINGS.model_copy(update={"targets": ["down_proj"]})
    before = {name: weight(module).clone() for name, module in find_targets(model).items()}
    tuned, _ = inject(model, tokenizer, new_facts(8), settings, tmp_path)
    for name, W in before.items():
        assert (live_delta(tuned, name, W).norm() > 0) == name.endswith("down_proj")
    with pytest.raises(InputError, match="none of the targeted matrices is named q_proj"):
        inject(tiny_llama(), tokenizer, [], SETTINGS.model_copy(update={"targets": ["q_proj"]}), tmp_path)


def test_what_does_not_go_together(model, tokenizer, tmp_path):
    names = list(find_targets(model))
    protection = ProtectedSubspaces({name: ProtectedSubspace() for name in names}, {})
    with pytest.raises(InputError, match="dora cannot be put under a protection"):
        adapt("dora")(model, SETTINGS, names, protection)
    with pytest.raises(InputError, match="corda needs examples"):
        adapt("corda")(model, SETTINGS, names, None)
    for tuner, change, message in (
        ("full", {"distil": 1.0}, "inject.distil needs the untrained model"),
        ("corda", {"distil": 1.0}, "inject.distil needs the untrained model"),
        ("osf", {"drift": 1.0}, "inject.drift is for an update of the form B A"),
        ("dora", {"drift": 1.0}, "inject.drift is for an update of the form B A"),
    ):
        with pytest.raises(InputError, match=message):
            check_terms(tuner, SETTINGS.model_copy(update=change))
        check_terms("lora", SETTINGS.model_copy(update=change))
