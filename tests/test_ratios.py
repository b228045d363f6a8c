"""What palora costs beside plain LoRA, in operations that torch counts: the same on every machine, however busy.

Each test fails where a piece costs 15% more than its formula says. In seconds it is `make bench`.
"""

import pytest
import torch
from conftest import tiny_llama
from peft import LoraConfig, get_peft_model
from torch.utils.flop_counter import FlopCounterMode

from palora.algebra.statistics import InputStatistics
from palora.algebra.subspace import ProtectedSubspace, ProtectedSubspaces
from palora.front import costs
from palora.front.costs import Batch, Tuning
from palora.front.dry_run import sizes_of
from palora.language.keep import Kept
from palora.language.prompts import Example
from palora.language.targets import find_targets
from palora.training.expert import sequence_log_probability
from palora.training.lora import PaloraConfig
from palora.training.svf import decompose_targets, svf_layers
from palora.training.terms import Drift, Rehearsal

R, K = 4, 8
IDS = torch.randint(4, 90, (4, 16), generator=torch.Generator().manual_seed(0))
LOSS = 1.15


def model():
    """Of as many layers that the first one, which needs no gradient of its input, does not count."""
    return tiny_llama(hidden_size=64, intermediate_size=160, num_hidden_layers=8)


def shapes(own):
    """(m, n) of every taught matrix."""
    return [(one.m, one.n) for one in sizes_of(own).taught]


def adapted(rule):
    own = model()
    common = {"r": R, "lora_alpha": 2 * R, "init_lora_weights": "gaussian"}
    if rule == "plain":
        return get_peft_model(own, LoraConfig(target_modules=["gate_proj", "up_proj", "down_proj"], **common))
    found = {}
    for name, module in find_targets(own).items():
        m, n = module.weight.shape
        V = torch.linalg.qr(torch.randn(n, n if rule == "soft" else K)).Q * (0.9 if rule == "soft" else 1.0)
        found[name] = ProtectedSubspace(V, None if rule == "soft" else torch.linalg.qr(torch.randn(m, K)).Q)
    record = {"hard": rule == "hard", "modules": {name: {} for name in found}}
    return get_peft_model(own, PaloraConfig(protection=ProtectedSubspaces(found, record), **common))


def operations(work):
    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()


def step(own, *terms):
    own.train()
    loss = own(input_ids=IDS, labels=IDS).loss + sum(term(own, 0) for term in terms)
    loss.backward()


def within(found, formula):
    """Not over 15% more than the formula, nor so much less that it says nothing."""
    assert formula / LOSS <= found <= LOSS * formula, f"{found:,} operations, {formula:,} by the formula"


@pytest.mark.parametrize("rule", ["hard", "soft"])
def test_a_step_costs_the_fold_more_than_plain_lora(rule):
    """8 r k (m + n) of the hard rule on both sides, 8 r n² of the soft one: two products, and two for the gradient."""
    more = operations(lambda: step(adapted(rule))) - operations(lambda: step(adapted("plain")))
    sizes = shapes(model())
    within(more, sum(8 * R * K * (m + n) if rule == "hard" else 8 * R * n * n for m, n in sizes))


def test_an_answer_costs_what_it_costs_plain_lora():
    """Folded once, when it begins: 4 r k (m + n), and nothing for a token."""

    def answered(rule, tokens):
        own = adapted(rule).eval()
        ids = {"input_ids": IDS, "attention_mask": torch.ones_like(IDS)}
        return operations(lambda: own.generate(**ids, max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False))

    assert answered("hard", 12) - answered("hard", 2) == answered("plain", 12) - answered("plain", 2)
    within(answered("hard", 2) - answered("plain", 2), sum(4 * R * K * (m + n) for m, n in shapes(model())))


def test_the_drift_costs_no_product_of_the_size_of_a_matrix():
    """Fold once more, and with q columns of what is known of the inputs 3 (2 r n q + 2 r² (q + m)) and no m n."""
    own, q = adapted("hard"), 16
    modules = {n.removeprefix("base_model.model."): m for n, m in own.named_modules() if hasattr(m, "lora_A")}
    known = {name: InputStatistics(torch.randn(module.in_features, q)) for name, module in modules.items()}
    drift = Drift(known, {name: module.get_base_layer() for name, module in modules.items()}, 1.0)
    more = operations(lambda: step(own, drift)) - operations(lambda: step(own))
    fold = sum(8 * R * K * (m + n) for m, n in shapes(model()))
    within(more, fold + sum(3 * (2 * R * n * q + 2 * R * R * (q + m)) for m, n in shapes(model())))


def test_distillation_costs_three_forwards_of_its_rows():
    rows = [Example(IDS[0].tolist(), IDS[1].tolist())]
    kept = Rehearsal(0.0, 1.0, [(1.0, Kept("prompts", "prompts", rows))], 4, 0)
    own = adapted("plain")
    more = operations(lambda: step(own, kept)) - operations(lambda: step(own))
    sizes = sizes_of(model())
    within(more, costs.step_flops(sizes, Batch(4, 16), Batch(4, 32)) - costs.step_flops(sizes, Batch(4, 16), None))


def test_the_gradient_of_an_expert_costs_what_is_predicted():
    """W(z) is there already."""
    own = model().requires_grad_(False)
    targets, rows = find_targets(own), [Example(IDS[0].tolist(), IDS[1].tolist())] * 4
    with svf_layers(targets, decompose_targets(own, targets), "linear"):
        own(input_ids=IDS)
        found = operations(lambda: sequence_log_probability(own, rows).sum().backward())
    within(found, costs.tuning_flops(sizes_of(model()), Tuning(Batch(4, 32), 64)))
