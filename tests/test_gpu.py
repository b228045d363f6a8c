"""The same statements on a GPU. Skipped, with the reason, where there is none."""

import pytest
import torch
from conftest import tiny_llama
from test_lora import IDS, constrained, protection, saved_leaks
from transformers import AutoModelForCausalLM, LlamaConfig

from palora.algebra.decomposition import Decomposition, decompose
from palora.front import costs
from palora.front.costs import Batch, Place, Tuning
from palora.front.dry_run import sizes_of
from palora.language.models import load_model
from palora.language.prompts import Example
from palora.language.targets import find_targets, weight
from palora.training.expert import checkpointing, sequence_log_probability
from palora.training.svf import svf_layers

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine"),
]


def test_the_constraint_holds_under_bf16_autocast(tmp_path):
    model = tiny_llama()
    subspaces = protection(model)
    adapted = constrained(model, subspaces).cuda().train()
    optimizer = torch.optim.AdamW([p for p in adapted.parameters() if p.requires_grad], lr=1e-2, weight_decay=0.1)
    ids = IDS.cuda()
    for _ in range(200):
        with torch.autocast("cuda", torch.bfloat16):
            loss = adapted(input_ids=ids, labels=ids).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    adapted.save_pretrained(tmp_path)
    assert max(saved_leaks(tmp_path, subspaces).values()) <= 1e-5


def test_svd_of_an_8b_shape():
    W = torch.randn(4096, 14336, device="cuda") / 64
    d = decompose(W)
    assert (d.U * d.s @ d.Vh - W).norm() <= 1e-5 * W.norm()


def test_models_load_to_the_gpu(model_folder):
    model, _ = load_model(model_folder)
    assert model.device.type == "cuda"
    assert not torch.backends.cuda.cudnn_sdp_enabled()


@pytest.mark.parametrize("checkpointed", [True, False])
def test_an_expert_of_8b_takes_what_is_counted(checkpointed):
    """Steps at the published batch, 8 rows of 712 tokens, at the shapes of Llama 3.1 8B: random weights in bfloat16,
    and random components, as no memory depends on what is in them."""
    if torch.cuda.mem_get_info()[0] < 76 * 2**30:
        pytest.skip("a card of 80 GB with nothing else on it is needed")
    config = LlamaConfig(
        hidden_size=4096, intermediate_size=14336, num_hidden_layers=32, num_attention_heads=32, num_key_value_heads=8,
        vocab_size=128_256,
    )  # fmt: skip
    with torch.device("cuda"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).requires_grad_(False).eval()

    def components(W):
        r = min(W.shape)
        U, Vh = (torch.randn(shape, device="cuda", dtype=W.dtype) / 64 for shape in ((len(W), r), (r, W.shape[1])))
        return Decomposition(U, torch.ones(r, device="cuda"), Vh)

    modules = find_targets(model)
    examples = [
        Example(torch.randint(128_256, (200,)).tolist(), torch.randint(128_256, (512,)).tolist()) for _ in range(8)
    ]
    decomposed = ((name, components(weight(module))) for name, module in modules.items())
    with svf_layers(modules, decomposed, "linear") as layers, checkpointing(model, checkpointed):
        optimizer = torch.optim.Adam([layer.p for layer in layers.values()], lr=1e-3)
        torch.cuda.reset_peak_memory_stats()
        for _ in range(3):
            optimizer.zero_grad()
            sequence_log_probability(model, examples, 1.0).mean().backward()
            optimizer.step()
        measured = torch.cuda.max_memory_allocated()
    tuned = Tuning(Batch(8, 712), 8 * 512, checkpointing=checkpointed)
    counted = sum(costs.tuning(sizes_of(model), Place(cpu=False, e=2), tuned).values())
    print(f"measured {measured / 2**30:.1f} GiB, counted {counted / 2**30:.1f}")
    assert counted == pytest.approx(measured, rel=0.15)
