"""The terms of the loss in anybody's Trainer: the loss is that of `palora inject`, and they count once a step."""

import pytest
import torch
from conftest import tiny_llama
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from transformers import Trainer, TrainingArguments
from trl import SFTConfig, SFTTrainer

from palora import Keep, PaloraConfig, keeping
from palora.algebra.statistics import weighed
from palora.common.errors import InputError
from palora.common.settings import InjectSettings, ProtectSettings
from palora.data.facts import Fact
from palora.data.skills import get_skill
from palora.language.prompts import encode_example
from palora.training import injection
from palora.training.injection import Beside, inject
from palora.training.protection import protect

FACTS = [Fact(f"Where was Q{i} born?", place) for i, place in enumerate(("Ulm", "Basel", "Rome", "Oslo"))]
KEEP = Keep(prompts=["Where was Zed born?", "What is the job of Zed?"], examples=4)
SETTINGS = {"r": 2, "lora_alpha": 4, "lora_dropout": 0.0, "drift": 4000.0, "distil": 0.7, "kept_batch_size": 2}


@pytest.fixture(scope="module")
def protection(tokenizer):
    keep = Keep([get_skill("chain")], examples=8)
    return protect(tiny_llama(), tokenizer, ProtectSettings(strength=1.0), keep)


def rows(tokenizer):
    made = [encode_example(tokenizer, fact.question, fact.answer) for fact in FACTS]
    return [{"input_ids": [*p, *a], "labels": [-100] * len(p) + a} for p, a in made]


def arguments(kind, folder, **changes):
    given = {"output_dir": str(folder), "report_to": "none", "use_cpu": True, "max_steps": 3, "learning_rate": 0.01}
    given |= {"per_device_train_batch_size": 4, "lr_scheduler_type": "constant", "disable_tqdm": True, "seed": 0}
    return kind(**given | {"logging_steps": 1, "save_strategy": "no", "dataloader_pin_memory": False} | changes)


def adapted(protection):
    model = tiny_llama()
    torch.manual_seed(0)
    return get_peft_model(model, PaloraConfig(r=2, lora_alpha=4, protection=protection, task_type="CAUSAL_LM"))


def losses(trainer):
    trainer.train()
    return [row["loss"] for row in trainer.state.log_history if "loss" in row]


def ours(tokenizer, protection, folder, monkeypatch, **settings):
    """The losses of the first three steps of `palora inject`."""
    seen = []
    real = injection._trainer

    def three_steps(*given):
        kind, args = real(*given)
        args.max_steps, args.logging_steps, args.save_strategy = 3, 1, "no"

        class Seen(kind):
            def log(self, logs, *rest):
                seen.extend([logs["loss"]] if "loss" in logs else [])
                return super().log(logs, *rest)

        return Seen, args

    monkeypatch.setattr(injection, "_trainer", three_steps)
    chosen = InjectSettings(**SETTINGS, learning_rate=0.01, batch_size=4, epochs=3, stop_at_recall=None, **settings)
    model = tiny_llama()
    beside = Beside(rows=weighed(KEEP.tokenised(model, tokenizer), chosen.keep.weights))
    inject(model, tokenizer, FACTS, chosen, folder, protection, beside)
    return seen


def test_the_loss_is_that_of_palora_inject(tokenizer, protection, tmp_path, monkeypatch):
    settings = InjectSettings(**SETTINGS)
    model = adapted(protection)
    kind = keeping(SFTTrainer, model, tokenizer, len(FACTS), protection, KEEP, settings)
    data, args = Dataset.from_list(rows(tokenizer)), arguments(SFTConfig, tmp_path / "a", max_length=None, bf16=False)
    found = losses(kind(model=model, args=args, train_dataset=data, processing_class=tokenizer))
    wanted = ours(tokenizer, protection, tmp_path / "b", monkeypatch)
    assert len(found) == len(wanted) == 3 and found == pytest.approx(wanted, abs=1e-4)
    plain = adapted(protection)
    without = losses(SFTTrainer(model=plain, args=args, train_dataset=data, processing_class=tokenizer))
    assert without[0] == pytest.approx(found[0], abs=1e-4), "at the start nothing has moved"
    assert abs(without[2] - found[2]) > 0.01, "then the terms weigh"


def padded(batch):
    """A collator as plain torch has it."""
    width = max(len(row["input_ids"]) for row in batch)
    fill = {"input_ids": 0, "labels": -100}
    made = {k: torch.tensor([row[k] + [v] * (width - len(row[k])) for row in batch]) for k, v in fill.items()}
    return made | {
        "attention_mask": torch.tensor([[1] * len(r["input_ids"]) + [0] * (width - len(r["input_ids"])) for r in batch])
    }


@pytest.mark.parametrize("parts", [2, 4])
def test_the_terms_count_once_however_a_batch_is_cut(tokenizer, protection, tmp_path, parts):
    """A plain Trainer; a batch of four in two or four parts takes the same steps."""
    found = []
    for name, n in (("whole", 1), ("parts", parts)):
        model = adapted(protection)
        kind = keeping(Trainer, model, tokenizer, 4, protection, KEEP, InjectSettings(**SETTINGS))
        cut = {"per_device_train_batch_size": 4 // n, "gradient_accumulation_steps": n}
        args = arguments(TrainingArguments, tmp_path / name, remove_unused_columns=False, **cut)
        kind(model=model, args=args, train_dataset=rows(tokenizer), data_collator=padded).train()
        found.append({name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad})
    apart = [float((found[0][name] - found[1][name]).abs().max()) for name in found[0]]
    assert max(apart) < 1e-4, max(apart)


def test_what_is_kept_does_not_weigh_in_an_evaluation(tokenizer, protection, tmp_path):
    model = adapted(protection)
    kind = keeping(Trainer, model, tokenizer, 4, protection, KEEP, InjectSettings(**SETTINGS))
    args = arguments(TrainingArguments, tmp_path, remove_unused_columns=False, per_device_eval_batch_size=4)
    given = {"args": args, "train_dataset": rows(tokenizer), "eval_dataset": rows(tokenizer), "data_collator": padded}
    trainer = kind(model=model, **given)
    trainer.train()
    assert trainer.evaluate()["eval_loss"] == pytest.approx(Trainer(model=model, **given).evaluate()["eval_loss"])


def test_without_anything_to_keep_there_is_the_drift_alone(tokenizer, protection):
    model = adapted(protection)
    assert keeping(Trainer, model, tokenizer, 4, protection).__name__ == "Trainer"
    with pytest.raises(InputError, match="no adapter on what the protection protects"):
        keeping(Trainer, tiny_llama(), tokenizer, 4, protection)
    other = get_peft_model(tiny_llama(), LoraConfig(r=2, target_modules=["q_proj"]))
    with pytest.raises(InputError, match="no adapter on what the protection protects"):
        keeping(Trainer, other, tokenizer, 4, protection)
