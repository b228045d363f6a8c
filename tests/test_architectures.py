"""Every architecture of transformers with a dense MLP goes the whole way: targets, protection, injection, and back as
plain LoRA. Some of each family always; all of them with PALORA_ALL_ARCHITECTURES=1 (minutes)."""

import copy
import os

import pytest
import torch
from peft import PeftModel
from test_injection import FACTS
from torch import nn
from transformers import AutoModelForCausalLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from palora.common.errors import InputError
from palora.common.settings import InjectSettings, ProtectSettings
from palora.data.skills import get_skill
from palora.language.keep import Keep
from palora.language.targets import find_targets, weight
from palora.training.injection import inject
from palora.training.protection import protect

# By every name that configurations give their sizes.
SIZES = {
    32: "hidden_size n_embd d_model word_embed_proj_dim embedding_size",
    48: "intermediate_size n_inner decoder_ffn_dim encoder_ffn_dim ffn_dim d_ff block_ff_dim",
    2: "num_hidden_layers num_attention_heads num_key_value_heads n_layer n_head n_layers n_heads decoder_layers "
    "encoder_layers decoder_attention_heads encoder_attention_heads num_layers num_heads",
    16: "head_dim d_kv v_head_dim",
    8: "q_lora_rank kv_lora_rank qk_rope_head_dim qk_nope_head_dim hidden_size_per_layer_input",
    256: "max_position_embeddings n_positions",
}
SOME = (
    "llama mistral qwen3 smollm3 olmo2 olmo3 granite ministral gemma3 gemma4_text cohere2 phi3 glm4 starcoder2 gpt2 opt"
)
DENSE = """apertus arcee bitnet bloom cohere cohere2 cwm diffllama ernie4_5 exaone4 falcon
falcon_h1 gemma gemma2 gemma3 gemma3_text gemma4_text gemma4_unified_text glm glm4 gpt2 gpt_neox gptj granite helium
hunyuan_v1_dense jais2 lfm2 llama ministral ministral3 mistral mpt nanochat nemotron olmo olmo2 olmo3 olmo_hybrid opt
persimmon phi phi3 qwen2 qwen3 qwen3_5_text recurrent_gemma seed_oss smollm3 stablelm starcoder2 vaultgemma xglm"""
# What its sizes cannot tell: how the few dimensions and layers are divided.
OWN = {"gptj": {"rotary_dim": 8}, "qwen3_5_text": {"layer_types": ["linear_attention", "full_attention"]}}
ALL = os.environ.get("PALORA_ALL_ARCHITECTURES")


def tiny(kind, vocabulary, **changes):
    """A model of an architecture, of random weights: 2 layers, width 32, MLP 48."""
    torch.manual_seed(3)
    make = CONFIG_MAPPING[kind]
    ids = {"vocab_size": vocabulary, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 1}
    sizes = {name: size for size, names in SIZES.items() for name in names.split()} | ids

    def shrunk(config):
        return {
            name: sizes[name]
            for name, old in config.to_dict().items()
            if name in sizes and not isinstance(old, list | dict)
        }

    config = make()
    parts = {part: shrunk(getattr(config, part)) for part in ("text_config", "vision_config") if hasattr(config, part)}
    if "vision_config" in parts:
        parts["vision_config"] |= {"image_size": 28, "patch_size": 14}
    config = make(**(parts or shrunk(config)) | changes)
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()


@pytest.mark.parametrize(
    "kind", [k for k in (DENSE if ALL else SOME).split() if k in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES]
)
def test_an_architecture_goes_the_whole_way(kind, tokenizer, tmp_path):
    model = tiny(kind, len(tokenizer), **OWN.get(kind, {}))
    untouched = copy.deepcopy(model)
    targets = find_targets(model)
    layers = {name.rpartition(".")[0] for name in targets}
    assert not [name for name in targets if any(word in name for word in ("vision", "attn", "lm_head"))]
    assert len(targets) in (2 * len(layers), 3 * len(layers)) and len(layers) >= 2
    keep = Keep([get_skill("chain")], examples=4)
    protection = protect(model, tokenizer, ProtectSettings(rule="covariance"), keep, FACTS)
    settings = InjectSettings(r=4, lora_alpha=8, learning_rate=0.02, epochs=1, batch_size=8, stop_at_recall=None)
    adapted, _ = inject(model, tokenizer, FACTS[:8], settings, tmp_path / "work", protection)
    adapted.save_pretrained(tmp_path / "adapter")
    ids = torch.randint(4, 60, (2, 9), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        before, after = (model(input_ids=ids, use_cache=False).logits for model in (untouched, adapted))
        loaded = PeftModel.from_pretrained(untouched, tmp_path / "adapter").eval()
        plain = loaded(input_ids=ids, use_cache=False).logits
    assert torch.allclose(plain, after, atol=1e-4) and not torch.allclose(before, after, atol=1e-4)


@pytest.mark.parametrize("kind", ["mixtral", "qwen3_moe", "gpt_oss", "olmoe"])
def test_stacked_experts_are_refused_and_their_attention_is_not(kind):
    with torch.device("meta"):
        changes = {"num_local_experts": 4} if kind in ("mixtral", "gpt_oss") else {"num_experts": 4}
        model = tiny(kind, 99, **changes)
    said = r"the experts of this model are stacked \(model\.layers\.0\.mlp\.experts\.\w+\).*--targets attention.*q_proj"
    with pytest.raises(InputError, match=said):
        find_targets(model)
    attention = find_targets(model, ["attention"])
    assert {name.rpartition(".")[2] for name in attention} == {"q_proj", "k_proj", "v_proj", "o_proj"}


def test_attention_is_a_choice_beside_the_mlps(model):
    both = find_targets(model, ["mlp", "attention"])
    assert len(both) == 2 * (3 + 4) and list(both) == [name for name, _ in model.named_modules() if name in both]
    assert len(find_targets(model, ["attention", "down_proj"])) == 2 * (1 + 4)


def test_what_makes_words_is_no_candidate_and_is_refused():
    untied = tiny("llama", 99, tie_word_embeddings=False)
    with pytest.raises(InputError, match=r"lm_head is what makes words of the model.s last state.*leave it out"):
        find_targets(untied, ["lm_head"])
    with pytest.raises(InputError) as refused:
        find_targets(untied, ["fc9"])
    assert "lm_head" not in str(refused.value) and "mlp.down_proj" in str(refused.value)
    with pytest.raises(InputError, match=r"lm_head is tied to model\.embed_tokens"):
        find_targets(tiny("llama", 99, tie_word_embeddings=True), ["lm_head"])


def test_an_mlp_is_known_by_its_shape_alone():
    def layer(**linears):
        return nn.ModuleDict({name: nn.Linear(n, m) for name, (n, m) in linears.items()})

    def found(**blocks):
        return list(find_targets(nn.ModuleDict({"layers": nn.ModuleList([nn.ModuleDict(blocks)])})))

    assert found(anything=layer(x=(8, 12), y=(12, 8), z=(8, 12))) == [f"layers.0.anything.{n}" for n in "xyz"]
    assert found(ffn=layer(both=(8, 24), back=(12, 8))) == ["layers.0.ffn.both", "layers.0.ffn.back"]
    assert found(ffn=layer(a=(8, 12), b=(12, 8))) == ["layers.0.ffn.a", "layers.0.ffn.b"]
    for other in (layer(a=(8, 4), b=(4, 8)), layer(a=(8, 12)), layer(a=(8, 12), b=(12, 8), c=(8, 8))):
        with pytest.raises(InputError, match="no MLP was found"):
            found(adapter=other)
    assert weight(nn.Linear(8, 12)).shape == (12, 8)
