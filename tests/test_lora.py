"""The constraint holds whatever trains it, and what is saved is plain LoRA."""

import json
import re
import subprocess
import sys
import textwrap

import pytest
import torch
from conftest import constrained_layers, tiny_llama
from peft import LoraConfig, PeftModel, get_peft_model
from reference import delta as reference_delta
from reference import leak as reference_leak
from reference import svd
from transformers import GPT2Config, GPT2LMHeadModel, Phi3Config, Phi3ForCausalLM, Trainer, TrainingArguments

from palora import PaloraConfig, ProtectedSubspace, ProtectedSubspaces
from palora.algebra.decomposition import decompose
from palora.algebra.rules import RULES, Budget, Evidence
from palora.common.errors import InputError
from palora.language.collect import collect, shared_inputs
from palora.language.prompts import Example
from palora.language.targets import find_targets, weight

HARD = [
    *((rule, sides) for rule in ("svf", "sigma", "random") for sides in ("both", "input", "output")),
    ("activation", "input"),
]
IDS = torch.randint(4, 90, (16, 20), generator=torch.Generator().manual_seed(1))


def protection(model, rule="sigma", sides="both", k=8, strength=None):
    """The protected subspaces of a model, as the protection stage makes them."""
    targets = find_targets(model)
    inputs = shared_inputs(model, targets)
    kept = collect(model, targets, inputs, [Example(row.tolist(), []) for row in IDS])
    generator = torch.Generator().manual_seed(0)
    found = {}
    for name, module in targets.items():
        d = decompose(weight(module))
        scales = 1 + 0.1 * torch.randn(d.rank, generator=generator)
        evidence = Evidence(d, scales, kept[inputs[name]], generator)
        budget = Budget(strength=strength) if strength else Budget(k=k)
        found[name] = RULES[rule](evidence, budget, sides).subspace
    record = {"rule": rule, "hard": strength is None, "modules": {name: {} for name in found}}
    return ProtectedSubspaces(found, record)


def constrained(model, subspaces, **changes):
    return get_peft_model(model, PaloraConfig(r=4, lora_alpha=8, protection=subspaces, **changes))


def train(model, steps, lr=1e-2, weight_decay=0.1, **forward):
    model.train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=lr, weight_decay=weight_decay)
    for _ in range(steps):
        loss = model(input_ids=IDS, labels=IDS, **forward).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval()
    return loss.item()


def saved_leaks(folder, subspaces, scaling=2.0):
    """The leak of every matrix of a saved adapter, by float64 algebra on the file's own numbers."""
    from safetensors.numpy import load_file

    tensors = load_file(folder / "adapter_model.safetensors")
    leaks = {}
    for name, subspace in subspaces.items():
        change = reference_delta(
            tensors[f"base_model.model.{name}.lora_A.weight"],
            tensors[f"base_model.model.{name}.lora_B.weight"],
            scaling,
        )
        assert abs(change).max() > 0, "it learned something"
        leaks[name] = reference_leak(change, subspace.output, subspace.input)
    return leaks


@pytest.mark.parametrize(("rule", "sides"), HARD)
def test_leak_after_200_steps_of_adamw(rule, sides, tmp_path):
    model = tiny_llama()
    before = torch.cat([weight(m).flatten() for m in find_targets(model).values()])
    subspaces = protection(model, rule, sides)
    adapted = constrained(model, subspaces)
    first = train(adapted, 1)
    last = train(adapted, 200)
    assert last < first - 0.3, "the constraint leaves room to learn"
    adapted.save_pretrained(tmp_path)
    assert max(saved_leaks(tmp_path, subspaces).values()) <= 1e-5
    assert torch.equal(before, torch.cat([weight(m).flatten() for m in find_targets(adapted.unload()).values()]))


def test_plain_lora_leaks_on_the_same_measure(model, tmp_path):
    """The measure can fail: without the constraint the very same training is all over the subspace."""
    subspaces = protection(model)
    adapted = get_peft_model(model, LoraConfig(r=4, lora_alpha=8, target_modules=list(subspaces)))
    train(adapted, 50)
    adapted.save_pretrained(tmp_path)
    assert min(saved_leaks(tmp_path, subspaces).values()) > 0.1


def test_the_outputs_inside_the_protected_subspace_do_not_move(model):
    """(W + ΔW) v = W v through the real layer's forward pass."""
    subspaces = protection(model, "sigma", "both")
    adapted = constrained(model, subspaces)
    train(adapted, 50)
    for name, layer in constrained_layers(adapted).items():
        v = subspaces[name].input.T  # k inputs
        assert (layer(v) - layer.get_base_layer()(v)).norm() < 1e-5 * layer.get_base_layer()(v).norm()
        x = torch.randn(5, layer.in_features)
        change = layer(x) - layer.get_base_layer()(x)
        assert change.norm() > 1e-3
        assert (change @ subspaces[name].output).norm() < 1e-5 * change.norm()


def test_the_saved_adapter_is_plain_lora_without_palora(model, tmp_path):
    """Another process, where palora cannot be imported, loads the folder and computes the same logits."""
    base = tmp_path / "base"
    model.save_pretrained(base)
    adapted = constrained(model, protection(model, "covariance", "input", strength=3.0), lora_dropout=0.1)
    train(adapted, 30)
    adapted.save_pretrained(tmp_path / "adapter")
    torch.save(IDS, tmp_path / "ids.pt")
    code = """
        import sys
        sys.modules["palora"] = None
        import torch
        from peft import PeftModel
        from transformers import AutoModelForCausalLM
        folder = sys.argv[1]
        model = AutoModelForCausalLM.from_pretrained(folder + "/base")
        model = PeftModel.from_pretrained(model, folder + "/adapter").eval()
        ids = torch.load(folder + "/ids.pt")
        with torch.no_grad():
            torch.save(model(input_ids=ids).logits, folder + "/logits.pt")
        try:
            import palora
        except ImportError:
            print("no palora here")
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), str(tmp_path)], capture_output=True, text=True, check=True
    )
    assert "no palora here" in done.stdout
    with torch.no_grad():
        ours = adapted(input_ids=IDS).logits
    assert (ours - torch.load(tmp_path / "logits.pt")).abs().max() <= 1e-5
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    plain = LoraConfig().to_dict()
    assert set(config) == set(plain) and config["init_lora_weights"] is True and config["peft_type"] == "LORA"


def test_the_soft_rule_is_one_matrix_product(model):
    """ΔW = (α / r) B A (I + g n C / tr C)⁻¹, from the trained factors, in float64."""
    subspaces = protection(model, "covariance", "input", strength=3.0)
    adapted = constrained(model, subspaces)
    targets = find_targets(adapted.unload())
    inputs = shared_inputs(model, targets)
    kept = collect(model, targets, inputs, [Example(row.tolist(), []) for row in IDS])
    adapted = constrained(model, subspaces)
    train(adapted, 20)
    for name, layer in constrained_layers(adapted).items():
        A, B = layer.lora_A["default"].weight.double(), layer.lora_B["default"].weight.double()
        F = kept[inputs[name]].factor.double()
        n = F.shape[0]
        M = torch.linalg.inv(torch.eye(n).double() + 3.0 * n * (F @ F.T) / kept[inputs[name]].trace)
        expected = 2.0 * B @ A @ M
        assert (layer.get_delta_weight("default") - expected).norm() < 1e-4 * expected.norm()


@pytest.mark.parametrize("kind", ["hard", "soft"])
def test_checkpoint_and_load_back(kind, tmp_path):
    subspaces = protection(
        tiny_llama(), "sigma" if kind == "hard" else "covariance", strength=3.0 if kind == "soft" else None
    )
    adapted = constrained(tiny_llama(), subspaces)
    train(adapted, 20)
    adapted.save_pretrained(tmp_path)
    again = constrained(tiny_llama(), subspaces)
    again.load_adapter(tmp_path, "default", is_trainable=True)
    again.eval()
    assert (again(input_ids=IDS).logits - adapted(input_ids=IDS).logits).abs().max() < 1e-4


def test_a_second_plain_adapter_beside_it(model, tmp_path):
    subspaces = protection(model)
    adapted = constrained(model, subspaces)
    train(adapted, 20)
    first = adapted(input_ids=IDS).logits
    adapted.add_adapter("plain", LoraConfig(r=2, lora_alpha=2, target_modules=list(subspaces)))
    adapted.set_adapter("plain")
    train(adapted, 20)
    plain = adapted(input_ids=IDS).logits
    assert (plain - first).abs().max() > 0.1
    adapted.set_adapter("default")
    assert torch.equal(adapted(input_ids=IDS).logits, first)
    names = ["default"] * 8 + ["plain"] * 8
    mixed = adapted(input_ids=IDS, adapter_names=names).logits
    assert (mixed[:8] - first[:8]).abs().max() < 1e-5 and (mixed[8:] - plain[8:]).abs().max() < 1e-5
    adapted.save_pretrained(tmp_path)
    assert max(saved_leaks(tmp_path, subspaces).values()) <= 1e-5
    reloaded = PeftModel.from_pretrained(tiny_llama(), tmp_path / "plain").eval()
    assert (reloaded(input_ids=IDS).logits - plain).abs().max() < 1e-5


def test_a_layer_that_cannot_hold_the_constraint_refuses_it(model):
    """Added to a model that plain LoRA wrapped first, the constraint would be silently absent: PEFT must refuse."""
    subspaces = protection(model)
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules=list(subspaces)))
    with pytest.raises(ValueError, match="protection"):
        adapted.add_adapter("palora", PaloraConfig(r=4, protection=subspaces))


@pytest.mark.parametrize("setting", ["gradient_checkpointing", "bf16", "dropout"])
def test_ways_of_training(setting, tmp_path):
    model = tiny_llama()
    subspaces = protection(model)
    adapted = constrained(model, subspaces, lora_dropout=0.2 if setting == "dropout" else 0.0)
    if setting == "gradient_checkpointing":
        adapted.gradient_checkpointing_enable({"use_reentrant": False})
        adapted.enable_input_require_grads()
    with torch.autocast("cpu", torch.bfloat16, enabled=setting == "bf16"):
        first = train(adapted, 1)
        assert train(adapted, 60) < first
    adapted.save_pretrained(tmp_path)
    assert max(saved_leaks(tmp_path, subspaces).values()) <= 1e-5


def test_gradient_checkpointing_gives_the_same_gradients(model):
    adapted = constrained(model, protection(model))
    train(adapted, 3)

    def gradients():
        adapted.zero_grad()
        adapted(input_ids=IDS, labels=IDS).loss.backward()
        return [p.grad.clone() for p in adapted.parameters() if p.requires_grad]

    plain = gradients()
    adapted.train()
    adapted.gradient_checkpointing_enable({"use_reentrant": False})
    for a, b in zip(plain, gradients(), strict=True):
        assert (a - b).abs().max() < 1e-6


class Rows(torch.utils.data.Dataset):
    def __len__(self):
        return len(IDS)

    def __getitem__(self, index):
        return {"input_ids": IDS[index], "labels": IDS[index]}


def test_transformers_trainer_and_resume(tmp_path):
    """Two epochs, and one epoch then resumed: the same adapter."""

    def trainer(folder, epochs):
        model = tiny_llama()
        torch.manual_seed(3)
        adapted = constrained(model, subspaces)
        arguments = TrainingArguments(
            str(folder),
            num_train_epochs=epochs,
            per_device_train_batch_size=4,
            learning_rate=1e-2,
            lr_scheduler_type="constant",
            save_strategy="epoch",
            report_to="none",
            use_cpu=True,
            disable_tqdm=True,
        )
        return adapted, Trainer(model=adapted, args=arguments, train_dataset=Rows())

    subspaces = protection(tiny_llama())
    whole, run = trainer(tmp_path / "whole", 2)
    run.train()
    _, run = trainer(tmp_path / "half", 1)
    run.train()
    resumed, run = trainer(tmp_path / "half", 2)
    run.train(resume_from_checkpoint=True)
    whole.eval(), resumed.eval()
    assert (whole(input_ids=IDS).logits - resumed(input_ids=IDS).logits).abs().max() < 1e-4
    resumed.save_pretrained(tmp_path / "saved")
    assert max(saved_leaks(tmp_path / "saved", subspaces).values()) <= 1e-5


def test_trl_sft_trainer_takes_it_as_its_peft_config(tokenizer, tmp_path):
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    subspaces = protection(tiny_llama())
    rows = [{"prompt": f"Code {i}?", "completion": str(i)} for i in range(8)]
    arguments = SFTConfig(
        str(tmp_path / "trainer"),
        num_train_epochs=3,
        learning_rate=1e-2,
        bf16=False,
        gradient_checkpointing=True,
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
        save_strategy="no",
    )
    trainer = SFTTrainer(
        model=tiny_llama(),
        args=arguments,
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        peft_config=PaloraConfig(r=4, lora_alpha=8, protection=subspaces, task_type="CAUSAL_LM"),
    )
    trainer.train()
    trainer.save_model(tmp_path / "saved")
    assert max(saved_leaks(tmp_path / "saved", subspaces).values()) <= 1e-5


def test_factors_that_a_trainer_casts_to_bfloat16_are_folded_and_saved_in_float32(model, tmp_path):
    subspaces = protection(model)
    adapted = constrained(model, subspaces)
    for name, parameter in adapted.named_parameters():
        if "lora_" in name:
            parameter.data = parameter.data.to(torch.bfloat16)
    train(adapted, 30)
    adapted.save_pretrained(tmp_path)
    assert max(saved_leaks(tmp_path, subspaces).values()) <= 1e-5


def test_a_quantised_base_trains_and_refuses_to_merge(tmp_path):
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed: pip install palora[bitsandbytes]")
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    tiny_llama(hidden_size=64, intermediate_size=128).save_pretrained(tmp_path / "base")
    subspaces = protection(tiny_llama(hidden_size=64, intermediate_size=128))
    four_bit = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=torch.float32)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "base", quantization_config=four_bit, device_map="cpu")
    adapted = constrained(model, subspaces)
    first = train(adapted, 1)
    assert train(adapted, 40) < first
    adapted.save_pretrained(tmp_path / "adapter")
    assert max(saved_leaks(tmp_path / "adapter", subspaces).values()) <= 1e-5
    with pytest.raises(InputError, match="quantised"):
        adapted.merge_and_unload()


def test_merge_and_unmerge(model):
    adapted = constrained(model, protection(model))
    train(adapted, 20)
    expected = adapted(input_ids=IDS).logits
    adapted.merge_adapter()
    assert (adapted(input_ids=IDS).logits - expected).abs().max() < 1e-4
    adapted.unmerge_adapter()
    assert (adapted(input_ids=IDS).logits - expected).abs().max() < 1e-4
    merged = adapted.merge_and_unload(safe_merge=True)
    assert (merged(input_ids=IDS).logits - expected).abs().max() < 1e-4


SMALL = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 99}


@pytest.mark.parametrize("architecture", ["gpt2", "phi3"])
def test_other_layouts(architecture, tmp_path):
    """GPT-2 stores Wᵀ (Conv1D); Phi-3 fuses gate and up."""
    torch.manual_seed(0)
    if architecture == "gpt2":
        model = GPT2LMHeadModel(GPT2Config(n_embd=32, n_layer=1, n_head=2, vocab_size=99, n_positions=64))
    else:
        model = Phi3ForCausalLM(Phi3Config(**SMALL, num_key_value_heads=2, pad_token_id=0))
    model.eval()
    subspaces = protection(model)
    adapted = constrained(model, subspaces)
    train(adapted, 40)
    adapted.save_pretrained(tmp_path)
    assert max(saved_leaks(tmp_path, subspaces).values()) <= 1e-5
    expected = adapted(input_ids=IDS).logits
    assert (adapted.merge_and_unload()(input_ids=IDS).logits - expected).abs().max() < 1e-3


def test_protection_from_a_folder_and_default_targets(model, tmp_path):
    protection(model).save(tmp_path / "protection")
    names = sorted(find_targets(model))
    adapted = get_peft_model(model, PaloraConfig(r=4, protection=tmp_path / "protection"))
    assert sorted(constrained_layers(adapted)) == names


def test_what_does_not_fit_is_refused(model):
    subspaces = protection(model)
    with pytest.raises(InputError, match="no protected subspace"):
        constrained(model, subspaces, target_modules=["q_proj"])
    wrong = ProtectedSubspaces({name: ProtectedSubspace(torch.eye(7)) for name in subspaces}, subspaces.record)
    with pytest.raises(InputError, match="n = 7"):
        constrained(tiny_llama(), wrong)
    for field, value in [
        ("use_dora", True),
        ("lora_bias", True),
        ("bias", "lora_only"),
        ("init_lora_weights", "pissa"),
        ("init_lora_weights", "olora"),
        ("alora_invocation_tokens", [1]),
    ]:
        with pytest.raises(InputError, match=r"changes W|the constraint does not hold"):
            PaloraConfig(protection=subspaces, **{field: value})
    with pytest.raises(InputError, match="not a protection folder"):
        PaloraConfig(protection="nowhere")


ATTENTION = ["k_proj", "o_proj", "q_proj", "v_proj"]


def test_targets_without_a_protection_are_a_choice(model, tmp_path):
    """… and then plain LoRA; what is protected stays so."""
    subspaces = protection(model)
    with pytest.raises(
        InputError, match=rf"leave target_modules out.*unprotected_modules={re.escape(str(ATTENTION))}$"
    ):
        constrained(tiny_llama(), subspaces, target_modules="all-linear")
    with pytest.raises(InputError, match=r"v_proj is targeted but has no .*unprotected_modules=\['v_proj'\]$"):
        constrained(tiny_llama(), subspaces, target_modules=["up_proj", "v_proj"], unprotected_modules=["q_proj"])
    adapted = constrained(model, subspaces, target_modules="all-linear", unprotected_modules=[*ATTENTION, "up_proj"])
    train(adapted, 30)
    expected = adapted(input_ids=IDS).logits
    adapted.save_pretrained(tmp_path)
    assert max(saved_leaks(tmp_path, subspaces).values()) <= 1e-5
    plain = PeftModel.from_pretrained(tiny_llama(), tmp_path).eval()
    assert (plain(input_ids=IDS).logits - expected).abs().max() < 1e-4
    for name, layer in constrained_layers(adapted).items():
        free = name.rsplit(".", 1)[-1] in ATTENTION
        assert (layer.lora_A["default"].weight is layer.folded("default")[0]) == free
        assert layer.lora_B["default"].weight.abs().max() > 0
    assert (adapted.merge_and_unload()(input_ids=IDS).logits - expected).abs().max() < 1e-4


def test_svd_reference_is_right():
    W = torch.randn(6, 9).numpy()
    U, s, V = svd(W)
    assert abs(U * s @ V.T - W).max() < 1e-5


def test_an_answer_folds_the_factors_once(model, monkeypatch):
    """… and anew after they have changed, by an optimizer, by a load or by hand."""
    adapted = constrained(model, protection(model))
    train(adapted, 1)
    folds = []
    fold = ProtectedSubspace.project_input
    monkeypatch.setattr(ProtectedSubspace, "project_input", lambda own, A: folds.append(1) or fold(own, A))
    matrices = len(constrained_layers(adapted))
    with torch.no_grad():
        first = adapted(IDS).logits
        assert torch.equal(adapted(IDS).logits, first) and len(folds) == matrices
        for layer in constrained_layers(adapted).values():
            layer.lora_B["default"].weight.mul_(2)
        assert not torch.equal(second := adapted(IDS).logits, first) and len(folds) == 2 * matrices
        for layer in constrained_layers(adapted).values():
            layer.lora_B["default"].weight.data /= 2
        adapted.eval()
        third = adapted(IDS).logits
    assert torch.allclose(third, first) and not torch.allclose(third, second)
    assert torch.allclose(adapted(IDS).logits, third)  # with gradients they are folded in the graph


@pytest.mark.parametrize("how", ["add_weighted_adapter", "hotswap_adapter"])
def test_what_would_fold_twice_is_refused_and_works_on_what_was_saved(how, tmp_path):
    from peft.utils.hotswap import hotswap_adapter

    subspaces = protection(tiny_llama(), "covariance", "input", strength=3.0)
    adapted = constrained(tiny_llama(), subspaces)
    train(adapted, 20)
    adapted.save_pretrained(tmp_path)
    plain = LoraConfig(r=4, lora_alpha=8, target_modules=["gate_proj", "up_proj", "down_proj"])

    def operate(model, names):
        if how == "hotswap_adapter":
            hotswap_adapter(model, str(tmp_path), "default")
            return model.eval()
        model.add_adapter("other", plain)
        model.add_weighted_adapter([*names, "other"], [1.0, 1.0], "both", combination_type="cat")
        model.set_adapter("both")
        return model.eval()

    with pytest.raises(InputError, match=f"^{how}.*the adapter 'default' is constrained.*plain LoRA"):
        operate(adapted, ["default"])
    if how == "add_weighted_adapter":
        operated = operate(PeftModel.from_pretrained(tiny_llama(), tmp_path), ["default"])
    else:
        operated = operate(get_peft_model(tiny_llama(), plain), [])
    expected = PeftModel.from_pretrained(tiny_llama(), tmp_path).eval()(IDS).logits
    assert torch.allclose(operated(IDS).logits, expected, atol=1e-4)
    assert not torch.allclose(expected, tiny_llama()(IDS).logits, atol=0.1)


def test_a_protection_of_other_weights_is_refused():
    from palora.language.models import fingerprints

    model = tiny_llama()
    made = protection(model)
    record = {**made.record, "fingerprints": fingerprints(find_targets(model), model)}
    subspaces = ProtectedSubspaces(made.subspaces, record)
    constrained(tiny_llama(), subspaces)
    with torch.no_grad():
        next(iter(find_targets(model).values())).weight[0, 0] += 1
    with pytest.raises(InputError, match=r"gate_proj: the protection was made for other weights"):
        constrained(model, subspaces)


def test_a_config_says_what_it_is():
    with pytest.warns(UserWarning, match="without a protection is plain LoRA"):
        PaloraConfig(r=4)
    assert len(repr(PaloraConfig(r=4, protection=protection(tiny_llama())))) < 2500
    with pytest.raises(ValueError, match="changes W"):
        PaloraConfig(r=4, init_lora_weights="pissa", protection=protection(tiny_llama()))
