"""`palora spectrum`: where a skill lives -> `spectrum.json` and `spectrum.html` in a folder."""

import time
from pathlib import Path
from typing import Any

from palora.algebra.subspace import ProtectedSubspaces
from palora.bench.settings import SpectrumSettings
from palora.bench.spectrum import MARKER, Beside, measure_spectrum
from palora.bench.spectrum_report import render
from palora.common.errors import InputError
from palora.common.files import atomic_write_text, read_json
from palora.common.folders import new_folder, seal
from palora.common.hashes import hash_value
from palora.data.facts import read_facts
from palora.data.skills import get_skill
from palora.data.sources import identity as facts_identity
from palora.front import stages
from palora.front.recipe import Plan
from palora.language.models import known_targets
from palora.results.updates import Adapter
from palora.training.svf import Expert


def spectrum(
    plan: Plan,
    settings: SpectrumSettings,
    out: Path,
    expert: Path | None = None,
    adapter: Path | None = None,
    protected: Path | None = None,
) -> dict[str, Any]:
    """Measure where the skill of a plan lives in its model.

    Args:
        expert: whose scales are shown; the plan's model is the one that it was made of.
        adapter: whose update is shown.
        protected: what the adapter's alignment is measured with besides; by default what it was trained under.

    Returns: the content of `spectrum.json`.

    Raises: InputError where the plan names several skills, or things do not belong together.
    """
    if len(plan.skills) > 1:
        raise InputError(f"the spectrum of one skill is measured at a time; give --skill once, not {len(plan.skills)}")
    skill = get_skill(plan.skills[0])
    loaded = Expert.load(expert) if expert else None
    record = stages.adapter_record(adapter) if adapter else {}
    if protected is None and record.get("protection") and Path(record["protection"]).exists():
        protected = Path(record["protection"])
    known = stages.sample(read_facts(plan.known_facts), settings.problems) if plan.known_facts else []
    text = stages.read_lines(plan.text) if plan.text else []
    files = {"expert": expert, "adapter": adapter, "protection": protected, "text": plan.text}
    identities = {name: stages.identity(path) for name, path in files.items()}
    identities["known_facts"] = facts_identity(plan.known_facts)
    inputs = stages.inputs_of(plan, settings, skill=stages.skill_identity(plan.skills[0]), **identities)
    if stages.done(out, MARKER, inputs):
        result: dict[str, Any] = read_json(out / MARKER, "removals", "matrices")
        atomic_write_text(out / "spectrum.html", render(result))
        return result
    started = time.monotonic()
    model, tokenizer = stages.Models().load(plan)
    if record and not (loaded and loaded.is_base_of(record)):
        known_targets(model, record["fingerprints"], f"the adapter {adapter}", plan.model)
    beside = Beside(
        known_facts=known,
        text=text,
        expert=loaded,
        adapter=Adapter.load(adapter) if adapter else None,
        protection=ProtectedSubspaces.load(protected) if protected and adapter else None,
    )
    with stages.working(out) as work:
        found = measure_spectrum(
            model, tokenizer, skill, settings, beside, plan.targets, plan.seed, work, hash_value(inputs)
        )
        result = {**found, "model": plan.model, **stages.provenance(inputs, started)}
        with new_folder(out, MARKER) as staging:
            seal(staging, MARKER, result)  # without the page, which is written again where it is gone
            (staging / "spectrum.html").write_text(render(result), encoding="utf-8")
    return read_json(out / MARKER)
