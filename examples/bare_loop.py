"""The whole method as a bare loop: plain torch and a Hugging Face model, and of palora nothing but the data. Read it
from top to bottom. On the same seed it gives the numbers of the library (tests/test_examples.py holds them together).

    python examples/bare_loop.py        teaches the embedded small model its new facts, in some minutes on two cores
"""

import math
import random
from pathlib import Path
from types import SimpleNamespace

import torch
from torch import nn
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, AutoTokenizer

import palora
from palora.data.facts import read_facts
from palora.data.marking import exact, f1, matches
from palora.data.skills import get_skill
from palora.language.prompts import encode_example, encode_prompt

MLP = ("gate_proj", "up_proj", "down_proj")  # the targeted matrices W (m × n, out × in) of a Llama
EXPERT = {"objective": "reward", "steps": 30, "problems": 256, "rollouts": 256, "expert_lr": 0.05, "expert_clip": 1.0}
VALIDATE = {"every": 5, "validation": 400}
PROTECT = {"k": None, "strength": 1.0}  # with k hard (the paper's), without it soft (ours)
INJECT = {"epochs": 28, "batch": 50, "lr": 0.002, "clip": 1.0, "weight_decay": 0.01, "r": 8, "alpha": 16}


def log_probability(model, tokenizer, examples):
    """log p(answer | prompt) = Σ_t log p(a_t | prompt, a_<t): one number a (prompt tokens, answer tokens)."""
    width = max(len(p + a) for p, a in examples)
    ids = torch.tensor([p + a + [tokenizer.pad_token_id] * (width - len(p + a)) for p, a in examples])
    real = torch.tensor([[int(t < len(p + a)) for t in range(width)] for p, a in examples])
    answered = torch.tensor([[len(p) <= t < len(p + a) for t in range(1, width)] for p, a in examples])
    logits = model(input_ids=ids, attention_mask=real).logits[:, :-1]  # the logits at t − 1 are for token t
    return -(F.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none") * answered).sum(1)


@torch.no_grad()
def answer(model, tokenizer, questions, length, **sampling):
    """Free generation, greedy by default: the tokens of each prompt and answer, and the answers' texts."""
    prompts = [encode_prompt(tokenizer, question) for question in questions]
    batch = tokenizer.pad({"input_ids": prompts}, padding_side="left", return_tensors="pt")
    ids = model.generate(**batch, max_new_tokens=length, **(sampling or {"do_sample": False}))
    rows, end = ids[:, batch["input_ids"].shape[1] :].tolist(), tokenizer.eos_token_id
    rows = [row[: row.index(end) + 1] if end in row else row for row in rows]
    texts = tokenizer.batch_decode(rows, skip_special_tokens=True)
    return list(zip(prompts, rows, strict=True)), [text.strip() for text in texts]


class SVF(nn.Module):
    """y = W(z) x with W(z) = U diag(s · z) Vᵀ = W + U diag(s · (z − 1)) Vᵀ; z = 1 is the base model."""

    def __init__(self, W):
        super().__init__()
        self.W, (self.U, self.s, self.Vh) = W, torch.linalg.svd(W, full_matrices=False)
        self.p = nn.Parameter(torch.full_like(self.s, 0.1))

    def z(self):
        """z = σ(p) · Σs / Σ(s·σ(p)): the sum of the singular values stays, so any constant p is the base model."""
        return torch.sigmoid(self.p) * self.s.sum() / (self.s * torch.sigmoid(self.p)).sum()

    def forward(self, x):
        self.x = x.detach()
        return F.linear(x, self.W) + F.linear(F.linear(x, self.Vh) * self.s * (self.z() - 1), self.U)


class Injected(nn.Module):
    """y = (W + ΔW) x with ΔW = (α / r) · P_L B A P_R: the projectors stand in the forward pass, where no optimizer,
    weight decay or initialisation gets round them. The factors A' = A P_R and B' = P_L B are a plain LoRA."""

    def __init__(self, W, P_L, P_R, r, alpha):
        super().__init__()
        self.W, self.P_L, self.P_R, self.scaling = W, P_L, P_R, alpha / r
        # A (r × n) and B (m × r) are drawn as PEFT draws them: A, B, then A once more; B starts at 0.
        self.A, self.B = nn.Linear(W.shape[1], r, bias=False).weight, nn.Linear(r, W.shape[0], bias=False).weight
        nn.init.kaiming_uniform_(self.A, a=math.sqrt(5))
        nn.init.zeros_(self.B)

    def folded(self):
        return self.A @ self.P_R, self.P_L @ self.B

    def forward(self, x):
        A, B = self.folded()
        return F.linear(x, self.W) + self.scaling * F.linear(F.linear(x, A), B)


def main(folder, skill, facts, seed=0, **changes):
    """A model's folder, a skill and facts -> the scales z, the projectors, the adapter, and what they are worth."""
    s = SimpleNamespace(**EXPERT | VALIDATE | PROTECT | INJECT | changes)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).requires_grad_(False).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    found = SimpleNamespace(expert_losses=[], losses=[], projectors={})

    def accuracy(split):
        problems = skill.problems(split, s.validation, seed)
        texts = answer(model, tokenizer, [p.prompt for p in problems], skill.max_new_tokens)[1]
        return sum(map(skill.score, texts, problems)) / len(problems)

    def descend(loss, optimizer, parameters, clip):
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, clip)
        optimizer.step()
        return loss.item()

    # 1. The expert: of the whole model only the scales are trained, one a singular component, to solve the skill.
    layers = {name: SVF(module.weight) for name, module in model.named_modules() if name.endswith(MLP)}
    for name, layer in layers.items():
        model.set_submodule(name, layer)
    scales = [layer.p for layer in layers.values()]
    best, found.validation, found.test = [p.clone() for p in scales], [accuracy("validation")], [accuracy("test")]
    train, optimizer = skill.problems("train", None, seed), torch.optim.Adam(scales, s.expert_lr)
    for step in range(1, s.steps + 1):
        problems = random.Random(f"{seed}-{step}").sample(train, min(s.problems, len(train)))
        if s.objective == "reward":  # minimise −mean (R − mean R) · log p(the model's own answer), R = ±1
            examples, R = [], []
            for start in range(0, len(problems), s.rollouts):
                torch.manual_seed(seed * 1_000_003 + step + start)
                part = problems[start : start + s.rollouts]
                asked, length = [p.prompt for p in part], skill.max_new_tokens
                rows, texts = answer(model, tokenizer, asked, length, do_sample=True, top_k=0)
                examples += rows
                R += [1.0 if skill.score(text, p) else -1.0 for text, p in zip(texts, part, strict=True)]
            weight = (torch.tensor(R) - torch.tensor(R).mean()) / len(R)
        else:  # next_token, the cheap option: minimise the mean loss of the solutions' tokens
            examples = [encode_example(tokenizer, p.prompt, p.solution) for p in problems]
            weight = 1 / sum(len(tokens) for _, tokens in examples)
        loss = -(weight * log_probability(model, tokenizer, examples)).sum()
        found.expert_losses.append(descend(loss, optimizer, scales, s.expert_clip))
        if step % s.every == 0 or step == s.steps:  # the best validation is kept, the untouched base's among them
            found.validation.append(accuracy("validation"))
            if found.validation[-1] > max(found.validation[:-1]):
                best = [p.clone() for p in scales]
    for p, kept in zip(scales, best, strict=True):
        p.data = kept.data
    found.scales = {name: layer.z().detach() for name, layer in layers.items()}
    found.test.append(accuracy("test"))

    # 2. The protection: P_L (m × m) and P_R (n × n) of each matrix, which keep an update out of what the skill needs.
    if s.k is None:  # soft: P_L = I, P_R = (I + g·n·C / tr C)⁻¹ for C = Σ x xᵀ over the expert's inputs on the skill
        # (but the first token's, where attention rests)
        C = dict.fromkeys(layers, 0.0)
        for problem in skill.problems("train", 512, 0):
            prompt, solution = encode_example(tokenizer, problem.prompt, problem.solution)
            model(input_ids=torch.tensor([prompt + solution]))
            C = {name: C[name] + layer.x[0, 1:].double().T @ layer.x[0, 1:].double() for name, layer in layers.items()}
        for name, layer in layers.items():
            m, n = layer.W.shape
            soft = torch.linalg.inv(torch.eye(n) + s.strength * n * C[name] / C[name].trace())
            found.projectors[name] = torch.eye(m), soft.float()
    else:  # hard: P_L = I − U_S U_Sᵀ, P_R = I − V_S V_Sᵀ for S = the k components that the expert moved most
        for name, layer in layers.items():
            S = (found.scales[name] - 1).abs().argsort(descending=True)[: s.k]
            U, V = layer.U[:, S], layer.Vh[S].T
            found.projectors[name] = torch.eye(len(U)) - U @ U.T, torch.eye(len(V)) - V @ V.T

    # 3. Injection: LoRA on the facts, under the projectors, on top of the expert's weights.
    torch.manual_seed(seed)
    for name, layer in layers.items():
        Wz = layer.W + layer.U @ torch.diag(layer.s * (found.scales[name] - 1)) @ layer.Vh
        layers[name] = Injected(Wz, *found.projectors[name], s.r, s.alpha)
        model.set_submodule(name, layers[name])
    examples = [encode_example(tokenizer, fact.question, fact.answer) for fact in facts]
    factors = [factor for layer in layers.values() for factor in (layer.A, layer.B)]
    optimizer = torch.optim.AdamW(factors, s.lr, weight_decay=s.weight_decay)
    for epoch in range(s.epochs):
        # The order that transformers' Trainer takes, and its loss: the mean over the answers' tokens of the batch.
        order = torch.randperm(len(examples), generator=torch.Generator().manual_seed(seed + epoch)).tolist()
        for start in range(0, len(order), s.batch):
            rows = [examples[i] for i in order[start : start + s.batch]]
            loss = -log_probability(model, tokenizer, rows).sum() / sum(len(tokens) for _, tokens in rows)
            found.losses.append(descend(loss, optimizer, factors, s.clip))
    found.adapter = {name: [factor.detach() for factor in layer.folded()] for name, layer in layers.items()}
    found.test.append(accuracy("test"))
    texts = answer(model, tokenizer, [fact.question for fact in facts], 32)[1]
    found.recall, found.exact, found.f1 = (sum(map(mark, texts, facts)) / len(facts) for mark in (matches, exact, f1))
    return found


if __name__ == "__main__":
    testbed = Path(palora.__file__).parent / "testbed"
    found = main(testbed / "model", get_skill("chain"), read_facts(testbed / "new_facts.jsonl"))
    print("the skill of the base, of the expert, and after the facts: {:.1%}, {:.1%}, {:.1%}".format(*found.test))
    print(f"recall of the facts: {found.recall:.1%} (exact {found.exact:.1%}, F1 {found.f1:.1%})")
