"""The same statements on a GPU. Skipped, with the reason, where there is none."""

import pytest
import torch
from conftest import tiny_llama
from test_lora import IDS, constrained, protection, saved_leaks

from palora.algebra.decomposition import decompose
from palora.language.models import load_model

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
