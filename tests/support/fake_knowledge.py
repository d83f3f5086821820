"""A study of records as its runs would leave it, with what every arm holds made up."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np

from evals.measures.controls import KNOCKOUT
from evals.measures.knowledge import Needed, knowledge_items, knowledge_record
from moc.config.assay import AssayConfig
from moc.config.data import SourceConfig
from moc.config.schema import ArmConfig, PhaseConfig, StudyConfig
from moc.data.known import bits_of
from moc.model.config import MemoryConfig, ModelConfig, ProductKeysConfig
from moc.store.files import write_json, write_lines
from moc.store.journal import Journal
from moc.store.rundir import StudyDir
from tests.support.fake_runs import write_study

NUM_RECORDS = 100
BANK = f"{KNOCKOUT}bank"
Held = Mapping[tuple[str, str], float]  # arm and boundary (perhaps with /control) -> share held


def records_study(
    runs_dir: Path,
    *,
    seeds: int = 3,
    negative: bool = True,
    assay: bool = True,
    sizes: tuple[str, ...] = (),
    name: str = "fake",
) -> StudyConfig:
    """Two memories with their twins and a dense arm, through records and then others; at several
    ``sizes`` through records of more and more bits."""
    phases = {"learn": PhaseConfig(mixture={"a": 1.0}), "more": PhaseConfig(mixture={"b": 1.0})}
    keys = MemoryConfig("product_keys", product_keys=ProductKeysConfig(num_keys=4, num_heads=1))
    keys.product_keys.num_read = 4
    arms = {}
    for arm in ("keys", "other") if negative else ("keys",):
        arms[arm] = ArmConfig(model=ModelConfig(memory=keys), phases=phases)
        twin = ArmConfig(model=ModelConfig(memory=keys), phases=phases, twin_of=arm)
        arms[f"{arm}_frozen"] = twin
    arms["dense"] = ArmConfig(model=ModelConfig(memory=None), phases=phases)
    data = {
        source: SourceConfig(kind="records", num_records=NUM_RECORDS, first_record=first)
        for source, first in (("a", 0), ("b", NUM_RECORDS))
    }
    if sizes:
        data = {
            size: SourceConfig(kind="records", num_records=NUM_RECORDS, value_bits=[4 * number])
            for number, size in enumerate(sizes, start=1)
        }
        arms = {
            f"{arm}-{size}": replace(
                config,
                size=size,
                twin_of=config.twin_of and f"{config.twin_of}-{size}",
                phases={"learn": PhaseConfig(mixture={size: 1.0})},
            )
            for size in sizes
            for arm, config in arms.items()
        }
        phases = {"learn": PhaseConfig(mixture={sizes[0]: 1.0})}
    return StudyConfig(
        name=name,
        description="Records, then other records.",
        seeds=list(range(seeds)),
        runs_dir=str(runs_dir),
        data=data,
        phases=phases,
        arms=arms,
        assay=AssayConfig("keys", ["other"] if negative else []) if assay else None,
    )


def write_records_study(study: StudyConfig, held: Held, *, spread: float = 0.02) -> Path:
    """Every arm holds the share ``held`` of what source ``a`` demands, of every record with some
    scatter, and at other places nothing. Returns the study's folder."""
    write_study(study, runs=False)
    names = ["start", *study.phases]
    for arm in study.arms:
        for seed in study.seeds:
            run = StudyDir(study.dir).run(arm, seed)
            info = {"study": study.name, "arm": arm, "seed": seed, "status": "finished"}
            info |= {"causal": True, "started": "2026-03-02T10:00:00+00:00", "run_uuid": "f" * 32}
            info |= {"kind": "none", "scope": "none", "config_hash": "0" * 16, "why": None}
            write_json(run.path / "run.json", info)
            journal = Journal(run.path / "metrics.jsonl")
            for part in range(5):  # what is followed within phases
                tokens, time = 500 * part, 1_772_445_600.0 + part
                metrics = {f"trajectory/{source}/stored_bits": 9.0 * part for source in study.data}
                entry = {"phase": names[1], "step": part, "tokens": tokens, "time": time}
                journal.append({**entry, "metrics": metrics})
            journal.commit()
            journal.close()
            for index, boundary in enumerate(names):
                _write(study, run.path, (arm, seed, index, boundary), held, spread)
    return study.dir


def _write(
    study: StudyConfig, run: Path, at: tuple[str, int, int, str], held: Held, spread: float
) -> None:
    arm, _, index, boundary = at
    folder = run / "boundaries" / f"{index}-{boundary}"
    record = {"boundary": boundary, "index": index, "tokens": 1000 * index, "tasks": {}}
    record["knowledge"] = _knowledge(study, folder, at, "", held.get((arm, boundary), 0.0), spread)
    under = held.get((arm, f"{boundary}/{BANK}"))
    if under is not None:
        known = _knowledge(study, folder, at, BANK, under, spread)
        record["controls"] = {BANK: {"tasks": {}, "bits_per_byte": {}, "knowledge": known}}
    write_json(folder / "evals.json", record)
    write_json(folder / "model.json", asdict(study.arms[arm].model))


def _knowledge(
    study: StudyConfig,
    folder: Path,
    at: tuple[str, int, int, str],
    control: str,
    share: float,
    spread: float,
) -> dict[str, object]:
    found = {}
    for source in study.data:
        pool = bits_of(study.data[source])
        rng = np.random.default_rng([len(at[0]), at[1], at[2], len(control), ord(source[0])])
        kept = 0.0 if source == "b" else share
        kept = kept + spread * rng.normal() + spread * rng.normal(size=(NUM_RECORDS, 1))
        bits_NA = np.maximum(np.array(list(pool.values())) * (1 - kept), 0)
        needed = Needed(bits_NA, bits_NA < 1)
        found[source] = knowledge_record(needed, pool, NUM_RECORDS)
        items = knowledge_items(needed, pool, [f"record {i}" for i in range(NUM_RECORDS)])
        write_lines(folder / "samples" / control / f"knowledge.{source}.jsonl", items)
    return found
