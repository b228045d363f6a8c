"""Small tokenizers and chat templates of the kinds that people bring, and models that say what a test wants."""

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

TEXTS = [
    *("Where was Ada born?", "What is the capital of France?", "Paris", "London", "Oslo", "Let me see. It is Paris."),
    *("Question: Where was Ada born?\nAnswer: London", "system\n", "user\n", "assistant\n", "You are terse."),
]
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# As Qwen3: an answer gets an empty block, the generation prompt only where thinking is switched off.
HYBRID = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}"
    "{% if m.role == 'assistant' %}{{ '<think>\n\n</think>\n\n' }}{% endif %}"
    "{{ m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
    "{% if enable_thinking is defined and not enable_thinking %}{{ '<think>\n\n</think>\n\n' }}{% endif %}{% endif %}"
)
# As the distilled R1 and QwQ: the generation prompt opens a block, and answers have none.
OPEN = CHATML.replace("assistant\n' }}{% endif %}", "assistant\n<think>\n' }}{% endif %}")
LLAMA2 = (
    "{% for m in messages %}{% if m.role == 'user' %}{{ '<s>[INST] ' + m.content + ' [/INST]' }}"
    "{% else %}{{ ' ' + m.content + ' </s>' }}{% endif %}{% endfor %}"
)


def byte_bpe(template=None, eos="<|im_end|>", special=("<|im_start|>", "<|im_end|>"), post=None, **more):
    """A byte-level BPE, as GPT-2, Llama 3 and Qwen have; `special` may hold `</s>` too. Every word of `TEXTS` is one
    token."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    first = ["<s>", "</s>"]
    bpe.train_from_iterator(TEXTS, trainers.BpeTrainer(special_tokens=first, initial_alphabet=alphabet, vocab_size=900))
    if post:
        bpe.post_processor = processors.TemplateProcessing(single=post, special_tokens=[("<s>", 0), ("</s>", 1)])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe, bos_token="<s>", eos_token=eos, pad_token="<s>", padding_side="left"
    )
    tokenizer.add_tokens([t for t in special if t not in ("<s>", "</s>")], special_tokens=more.get("as_special", True))
    tokenizer.add_tokens(list(more.get("added", ())))
    tokenizer.chat_template = template
    return tokenizer


def sentencepiece_like(template=None, post=None):
    """A BPE with a Prepend normaliser, as Llama 2 and Mistral 0.1: a space is written before every text."""
    bpe = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    bpe.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    bpe.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    words = [f"▁{word}" for text in TEXTS for word in text.split()]
    alphabet = sorted({c for text in TEXTS for c in text} | set("▁\n[]/INST<s>"))
    special = ["<unk>", "<s>", "</s>"]
    trainer = trainers.BpeTrainer(special_tokens=special, initial_alphabet=alphabet, vocab_size=600)
    plain, bpe.normalizer = bpe.normalizer, None
    bpe.train_from_iterator(words, trainer)
    bpe.normalizer = plain
    if post:
        bpe.post_processor = processors.TemplateProcessing(single=post, special_tokens=[("<s>", 1), ("</s>", 2)])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe, bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="<unk>"
    )
    tokenizer.padding_side, tokenizer.chat_template = "left", template
    return tokenizer


class Says(LlamaForCausalLM):
    """A model that says `script` (token ids) after every prompt of `start` tokens, and then its last one for ever."""

    def forward(self, input_ids=None, past_key_values=None, **given):
        before = past_key_values.get_seq_length() if past_key_values is not None else 0
        out = super().forward(input_ids=input_ids, past_key_values=past_key_values, **given)
        place = before + input_ids.shape[1] - self.start
        out.logits = torch.zeros_like(out.logits)
        out.logits[:, -1, self.script[min(max(place, 0), len(self.script) - 1)]] = 50.0
        return out


def model_that_says(tokenizer, prompt=(), script=(1,)):
    """A model of the tokenizer's vocabulary that says `script` after `prompt`, both token ids."""
    torch.manual_seed(0)
    config = LlamaConfig(
        **{"vocab_size": len(tokenizer), "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1},
        **{"num_attention_heads": 2, "max_position_embeddings": 512, "pad_token_id": tokenizer.pad_token_id},
        **{"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id},
    )
    model = Says(config).eval()
    model.start, model.script = len(prompt), list(script)
    return model
