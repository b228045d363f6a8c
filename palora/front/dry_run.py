"""`palora run RECIPE --dry-run`: what a run will do, what each stage takes, and what fits. No weights are read.

The model is built on torch's meta device from its configuration, which knows every shape and holds no number; the facts
and what is kept are read and tokenised. Every figure is by a formula of `costs.py`: memory of the longest rows, time of
rows of mean length and of every epoch (a run that has learned the facts stops before). The time is the operations over
the speed of a matrix product, measured here and now: small models, which wait for other things too, take longer.
"""

import math
import os
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch

from palora.algebra.rules import COMPONENT_RULES, INPUT_RULES
from palora.common.errors import InputError
from palora.common.settings import ExpertSettings, InjectSettings, ProtectSettings
from palora.common.threads import say_threads
from palora.common.wording import duration
from palora.data.facts import read_facts
from palora.data.skills import Problem
from palora.front import costs, stages
from palora.front.costs import Batch, Lesson, Matrix, Place, Sizes, Tuning
from palora.front.recipe import Plan, Recipe
from palora.front.words import wanted
from palora.language.models import build_empty, chosen_device, load_tokenizer
from palora.language.prompts import encode_example, encode_prompt, set_chat
from palora.language.targets import find_targets, linear_layers, mlp_matrices, shape
from palora.language.words import LONGEST, WRITTEN, taught_by

Arm = tuple[str, ProtectSettings, InjectSettings]
READ, RECALL, TOLD = 8, 64, 40  # rows that are read at once; questions of a recall check; tokens of telling a fact
MOST = 4096  # of ranks and batches that are looked for


def sizes_of(model: Any, targets: list[str] | None = None) -> Sizes:
    """The sizes of a model, which may be on the meta device. Raises InputError where it has no such targets."""
    config = model.config.get_text_config()
    stated = config.to_dict()  # some say a size for each layer, and refuse to be asked for one
    heads = config.num_attention_heads
    head = _widest(stated.get("head_dim")) or config.hidden_size // heads
    linears = {name: shape(module) for name, module in linear_layers(model).items()}
    taught = {name: linears[name] for name in find_targets(model, targets)}
    try:
        mlp = [linears[name] for name in mlp_matrices(model)]
    except InputError:  # stacked experts: their inner states and operations are not counted
        mlp = []
    layers = config.num_hidden_layers
    inward = sum(m for m, n in mlp if n == config.hidden_size)
    outward = sum(n for m, n in mlp if m == config.hidden_size and n != config.hidden_size)
    return Sizes(
        parameters=sum(p.numel() for p in model.parameters()),
        layers=layers,
        width=config.hidden_size,
        vocabulary=config.vocab_size,
        queries=heads * head,
        keys=(_widest(stated.get("num_key_value_heads")) or heads) * head,
        inner=inward // layers,
        gate=inward > outward,
        multiplied=sum(m * n for m, n in linears.values()),
        taught=tuple(Matrix(m, n, _own(name, taught)) for name, (m, n) in taught.items()),
    )


def _widest(size: Any) -> int | None:
    """A size, or the largest of those that are stated layer by layer."""
    return max(size) if isinstance(size, list | tuple) else size


def _own(name: str, taught: dict[str, tuple[int, int]]) -> bool:
    """Whether a matrix reads an input that none of its module before it does; what leads out of one always does."""
    home, _, last = name.rpartition(".")
    before = [other for other in list(taught)[: list(taught).index(name)] if other.rpartition(".")[0] == home]
    leads_out = last in ("o_proj", "out_proj", "c_proj", "dense", "down_proj", "fc2")
    return leads_out or not any(taught[other][1] == taught[name][1] for other in before)


def dry_run(recipe: Recipe) -> dict[str, Any]:
    """What a recipe will do and take; see `planned`."""
    return planned(recipe, [(name, *recipe.arm(name)) for name in recipe.trained_arms])


def planned(plan: Plan, arms: Sequence[Arm]) -> dict[str, Any]:
    """What the arms of a plan will do and take.

    Returns: model, tokens, the stages (each with its memory by part, its peak, seconds and bytes on the disk),
    and the largest rank and batch that fit into the memory of the device. Bytes and seconds.

    Raises: InputError as the run would, before it loads a model.
    """
    device = chosen_device(plan.device)
    say_threads(device)
    model = build_empty(plan.model, plan.dtype)
    sizes = sizes_of(model, plan.targets)
    place = Place(device == "cpu", model.dtype.itemsize, int(plan.load[0]) if plan.load else None)
    tokens = _Tokens(plan)
    speed = matmul_speed(sizes, model.dtype, device)
    found: list[dict[str, Any]] = []

    def add(name: str, memory: dict[str, int], flops: float, disk: int = 0) -> None:
        peak = sum(memory.values())
        found.append({"stage": name, "memory": memory, "peak": peak, "seconds": flops / speed, "disk": disk})

    if plan.expert:
        tune = tokens.tuning(plan.expert)
        parts = plan.expert.iterations * plan.expert.batch_size / tune.rows.rows
        disk = costs.weights(sizes, place.e) + costs.decompositions(sizes)
        add("expert", costs.tuning(sizes, place, tune), parts * costs.tuning_flops(sizes, tune), disk)
    facts, lessons, lesson = tokens.facts, 0, Lesson(Batch(1, 1))
    if tokens.wanted.how or tokens.wanted.prompts:
        asked = Batch(min(RECALL, facts), tokens.question + TOLD)
        flops = facts / asked.rows * costs.generation_flops(sizes, asked, LONGEST)
        add("words", costs.answering(sizes, place, asked, LONGEST), flops)
    own = tokens.protected("palora", *arms[-1][1:])
    for name, rule, settings in arms:
        lesson, lessons = tokens.lesson(settings, device), tokens.lessons(settings)
        made = tokens.protected(name, rule, settings)
        bases, things = _bases(sizes, rule, made), made.things
        if name == "palora" or rule.rule != "none":
            read = Batch(READ, tokens.kept)
            memory = costs.protecting(sizes, place, read, bases, things, rule.rule in COMPONENT_RULES)
            flops = rule.keep.examples * things / READ * costs.forward_flops(sizes, Batch(READ, tokens.mean_kept))
            add(f"protection {name}", memory, flops, bases + costs.statistics(sizes, things))
        elif place.cpu:  # the control is measured against palora's, which is read beside it
            bases, things = _bases(sizes, arms[-1][1], own), own.things
        memory = costs.teaching(sizes, place, lesson, bases, things, bool(settings.drift))
        steps = settings.epochs * math.ceil(lessons / lesson.facts.rows)
        means = Batch(lesson.facts.rows, tokens.mean_lesson), lesson.kept and Batch(lesson.kept.rows, tokens.mean_kept)
        flops = steps * costs.step_flops(sizes, *means, lesson.checkpointing)
        if lesson.asked:
            checks = math.ceil(settings.epochs / settings.recall_every) * facts / lesson.asked.rows
            flops += checks * costs.generation_flops(sizes, lesson.asked, lesson.new)
        # The adapter, and two checkpoints: its factors twice (PEFT's and as they are trained) and their moments.
        disk = costs.adapter(sizes, settings.r) * (4 + 2 * 16)
        add(f"inject {name}", memory, flops, disk)
    asked, new = Batch(plan.evaluate.batch_size, tokens.problem), tokens.answer
    adapters = sum(costs.adapter(sizes, settings.r) for _, _, settings in arms)
    batches = (plan.evaluate.problems * max(1, len(plan.skills)) + facts) / asked.rows * (len(arms) + 1)
    add(
        "evaluate",
        costs.answering(sizes, place, asked, new, adapters),
        batches * costs.generation_flops(sizes, asked, new),
    )
    name, rule, settings = arms[-1]
    bases = _bases(sizes, rule, own)
    return {
        "model": {
            **{"name": plan.model, "dtype": str(model.dtype).removeprefix("torch."), "parameters": sizes.parameters},
            **{"layers": sizes.layers, "taught_matrices": len(sizes.taught)},
            "taught_parameters": costs.adapter(sizes, settings.r),
        },
        "tokens": tokens.described(lesson, lessons),
        "device": {"name": device, "memory": (memory_of := device_memory(device)), "matmul_flops": speed},
        "stages": found,
        "largest": largest_that_fit(sizes, place, lesson, bases, own.things, bool(settings.drift), memory_of),
    }


def largest_that_fit(
    sizes: Sizes, place: Place, lesson: Lesson, bases: int, things: int, drift: bool, memory: int
) -> dict[str, int]:
    """The largest rank at a lesson's batch, and the largest batch at its rank, whose stage 2 fits; 0 for none."""

    def fits(changed: Lesson) -> bool:
        return sum(costs.teaching(sizes, place, changed, bases, things, drift).values()) <= memory

    most = min(MOST, min(min(own.m, own.n) for own in sizes.taught))
    return {
        "rank": costs.largest(lambda r: fits(replace(lesson, r=r)), most),
        "batch": costs.largest(lambda rows: fits(replace(lesson, facts=Batch(rows, lesson.facts.tokens))), MOST),
    }


class Protected(NamedTuple):
    """How many things a protection has statistics of, and how many of them its rule looks at."""

    things: int
    weighed: int


def _bases(sizes: Sizes, rule: ProtectSettings, made: Protected) -> int:
    """Bytes of a rule's bases; where a share decides their number, that of all directions."""
    things = max(1, made.weighed)
    if rule.rule == "none":
        return 0
    if rule.rule == "covariance":
        return costs.soft_bases(sizes, things)
    if rule.rule in INPUT_RULES:
        return costs.soft_bases(sizes, things) if rule.k is None else costs.hard_bases(sizes, rule.k, 1)
    rank = min(min(own.m, own.n) for own in sizes.taught)
    k = rule.k or math.ceil((rule.fraction or 1) * rank)
    return costs.hard_bases(sizes, k, 2 if rule.sides in (None, "both") else 1)


class _Tokens:
    """How many rows a plan has, and how many tokens the longest of each kind."""

    def __init__(self, plan: Plan) -> None:
        self.plan, self.tokenizer = plan, load_tokenizer(plan.model)
        set_chat(self.tokenizer, plan.chat_template_kwargs, plan.system_message)
        self.chat = bool(self.tokenizer.chat_template)
        self.wanted = wanted(plan)
        self.new = read_facts(plan.facts) if plan.facts else []
        self.facts = len(self.new)
        self.mean_lesson = 1
        self.question = max((len(encode_prompt(self.tokenizer, f.question)) for f in self.new), default=1)
        keep = stages.load_keep(plan, max(plan.inject.keep.examples, plan.protect.keep.examples))
        self.kinds: dict[str, list[tuple[int, int]]] = {}  # the lengths of prompts and answers
        self.count: dict[str, int] = {}
        self.problem, self.answer = self.question, plan.evaluate.max_answer_tokens
        for skill in keep.skills if keep else ():
            train = skill.problems("train", keep.examples if keep else 1, plan.seed)
            self._add("skills", [self._problem(p, skill.max_new_tokens) for p in train])
            tests = skill.problems("test", plan.evaluate.problems, plan.seed)
            self.problem = max([self.problem, *(len(encode_prompt(self.tokenizer, p.prompt)) for p in tests)])
            self.answer = max(self.answer, skill.max_new_tokens)
        if keep and keep.known_facts:
            self._add("known_facts", [self._example(f.question, f.answer) for f in keep.known_facts[: keep.examples]])
        if keep and keep.text:
            ids = [self.tokenizer(t, truncation=True, max_length=512)["input_ids"] for t in keep.text[: keep.examples]]
            self._add("text", [(0, len(own)) for own in ids])
        if keep and keep.prompts:
            asked = [len(encode_prompt(self.tokenizer, p)) for p in keep.prompts[: keep.examples]]
            self._add("prompts", [(n, LONGEST) for n in asked])
        elif self.facts and self.wanted.prompts:
            self._add("prompts", [(self.question, LONGEST)])

    def _add(self, kind: str, rows: list[tuple[int, int]]) -> None:
        self.kinds[kind] = self.kinds.get(kind, []) + rows
        self.count[kind] = self.count.get(kind, 0) + 1

    def _problem(self, problem: Problem, longest: int) -> tuple[int, int]:
        """A solved problem; the model's own solution is as long as it may be."""
        if problem.solution is None:
            return len(encode_prompt(self.tokenizer, problem.prompt)), longest
        return self._example(problem.prompt, problem.solution)

    def _example(self, question: str, answer: str) -> tuple[int, int]:
        example = encode_example(self.tokenizer, question, answer)
        return len(example.prompt), len(example.answer)

    def protected(self, name: str, rule: ProtectSettings, settings: InjectSettings) -> Protected:
        """What a protection is made of: everything that is kept, for the drift; without it what its rule looks at, and
        the skills, whose coverage is told."""
        weighed = {kind: n for kind, n in self.count.items() if rule.keep.weights[kind]}
        seen = self.count if settings.drift or name == "palora" else {"skills": self.count.get("skills", 0)} | weighed
        return Protected(sum(seen.values()), sum(weighed.values()))

    @property
    def mean_kept(self) -> int:
        """Tokens of a row of what is kept, in the mean."""
        return _mean([sum(row) for rows in self.kinds.values() for row in rows])

    @property
    def kept(self) -> int:
        """Tokens of the longest row of what is kept."""
        return max((sum(row) for rows in self.kinds.values() for row in rows), default=1)

    def lessons(self, settings: InjectSettings) -> int:
        """Rows that the facts are taught by."""
        own = settings.wordings * settings.samples if taught_by(settings, self.chat) in WRITTEN else 1
        return self.facts * own + (sum(len(f.paraphrases) for f in self.new) if settings.paraphrases else 0)

    def lesson(self, settings: InjectSettings, device: str) -> Lesson:
        """A step of stage 2. An own answer that is not written yet is taken as long as question and answer together."""
        own = taught_by(settings, self.chat) in WRITTEN
        said = [f"{f.question} {f.answer}" if own and not f.teach else f.answer for f in self.new]
        rows = [self._example(f.question, answer) for f, answer in zip(self.new, said, strict=True)]
        rows += [self._example(t.question, t.answer) for f in self.new for t in f.teach] if own else []
        self.mean_lesson = _mean([sum(row) for row in rows])
        facts = Batch(min(settings.batch_size, self.lessons(settings)), max(map(sum, rows), default=1))
        weights = settings.keep.weights
        shown = [row for kind, found in self.kinds.items() if weights[kind] for row in found]
        distils = settings.distil if settings.distil is not None else float(own and bool(shown))
        rehearses = bool(shown) and bool(settings.replay or distils)
        kept = Batch(settings.kept_batch_size, max(map(sum, shown))) if rehearses else None
        answers = settings.kept_batch_size * max(answer for _, answer in shown) if rehearses else 0
        checked = settings.stop_at_recall is not None or settings.lose_at_most is not None
        return Lesson(
            facts,
            kept,
            answers,
            Batch(min(RECALL, self.facts), self.question) if checked else None,
            r=settings.r,
            dropout=settings.lora_dropout > 0,
            checkpointing=settings.gradient_checkpointing,
            bf16=device != "cpu" if settings.bf16 is None else settings.bf16,
        )

    def tuning(self, settings: ExpertSettings) -> Tuning:
        """A micro-batch of stage 1. Answers that the model writes are taken as long as they may be."""
        rows, n = self.kinds.get("skills", [(1, 1)]), settings.micro_batch_size
        if settings.objective == "next_token":
            tokens, answer = max(map(sum, rows)), max(answer for _, answer in rows)
            return Tuning(Batch(n, tokens), n * answer, checkpointing=settings.gradient_checkpointing)
        prompt = max(prompt for prompt, _ in rows)
        asked = Batch(settings.rollout_batch_size, prompt)
        whole = Batch(n, prompt + self.answer)
        return Tuning(whole, n * self.answer, asked, self.answer, settings.gradient_checkpointing)

    def described(self, lesson: Lesson, lessons: int) -> dict[str, int]:
        """For the plan: numbers of rows, and the tokens of the longest."""
        return {
            "facts": self.facts,
            "lessons": lessons,
            "longest_lesson": lesson.facts.tokens,
            "kept_rows": sum(map(len, self.kinds.values())),
            "longest_kept_row": self.kept,
            "longest_skill_problem": self.problem,
        }


def _mean(lengths: Sequence[int]) -> int:
    """Rounded up; 1 of nothing."""
    return math.ceil(sum(lengths) / len(lengths)) if lengths else 1


def matmul_speed(sizes: Sizes, dtype: torch.dtype, device: str) -> float:
    """Operations a second of a product (256, h)(h, m), the best of twenty: 2 · 256 h m over its time."""
    n, m = min(sizes.width, 4096), min(max(own.m for own in sizes.taught), 16384)
    x, W = torch.ones(256, n, dtype=dtype, device=device), torch.ones(n, m, dtype=dtype, device=device)
    best = math.inf
    for _ in range(20):
        started = time.perf_counter()
        float((x @ W)[0, 0])  # a GPU is done only when it is asked
        best = min(best, time.perf_counter() - started)
    return 2 * 256 * n * m / best


def device_memory(device: str) -> int:
    """Bytes that are free: of the GPU, or of the machine (Linux); of other systems all that there are."""
    if device != "cpu":
        return int(torch.cuda.mem_get_info()[0])
    meminfo = Path("/proc/meminfo")
    lines = meminfo.read_text().splitlines() if meminfo.exists() else []
    free = [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")]
    return free[0] if free else os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def plan_text(plan: dict[str, Any]) -> str:
    """A plan for people."""
    model, tokens, device, fit = plan["model"], plan["tokens"], plan["device"], plan["largest"]
    lines = [
        f"model    {model['name']}: {model['parameters']:,} parameters in {model['dtype']}, {model['layers']} layers; "
        f"{model['taught_matrices']} taught matrices, {model['taught_parameters']:,} trained parameters",
        f"tokens   {tokens['facts']:,} facts in {tokens['lessons']:,} lessons of at most {tokens['longest_lesson']} "
        f"tokens; {tokens['kept_rows']:,} kept rows of at most {tokens['longest_kept_row']}",
        f"device   {device['name']}: {_size(device['memory'])} free, {device['matmul_flops'] / 1e9:,.0f} GFLOP/s",
        "",
    ]
    for stage in plan["stages"]:
        parts = ", ".join(f"{name} {_size(size)}" for name, size in stage["memory"].items())
        disk = f", disk {_size(stage['disk'])}" if stage["disk"] else ""
        lines += [f"{stage['stage']:<20} {_size(stage['peak']):>9}, about {duration(stage['seconds'])}{disk}"]
        lines += [f"{'':<20} {parts}"]
    peak = max(stage["peak"] for stage in plan["stages"])
    over = peak > device["memory"]
    lines += [
        "",
        f"peak     {_size(peak)}" + (f": more than the {_size(device['memory'])} that are free" if over else ""),
    ]
    lines += [f"fits     rank {fit['rank'] or 'none'} at this batch, batch {fit['batch'] or 'none'} at this rank"]
    lines += ["time     of every epoch; a run that has learned its facts stops before"]
    return "\n".join(lines)


def _size(size: float) -> str:
    """12,345,678,901 -> "11.5 GiB"."""
    return f"{size / 2**30:,.1f} GiB" if size >= 2**30 else f"{size / 2**20:,.0f} MiB"
