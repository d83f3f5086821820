"""A finished study of a ladder whose losses follow known laws."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from moc.config.load import load_study
from moc.store.journal import Journal, read_what_is_whole
from tests.support.fake_runs import write_study

SIZES = {"xs": 32, "s": 64, "m": 128, "l": 256, "xl": 512}  # dim, as compute grows fourfold
STUDY = """
name: climb
seeds: [0, 1, 2]
runs_dir: RUNS
data: {people: {kind: facts}, skills: {kind: skills}}
phases: {pretrain: {mixture: {people: 1}, tokens: 245_760}}
arms:
  moc: {}
  dense: {model: {memory: null}, iso_flop: {target: moc}}
ladder: LADDER
"""
FLOOR, SCALE, EXPONENT = 0.5, 1.6, 0.3  # of the dense arm; the other's scale is GAP times it
GAP = 0.9
MATCH = GAP ** (-1 / EXPONENT)  # 1.42: where floors and exponents are alike


def made(folder: Path, *, sizes: int = 5, noise: float = 0.004) -> Path:
    """A finished study of the first ``sizes``; returns its folder. Hours go with FLOPs, but the
    arm with memory takes twice as long."""
    ladder = {size: {"model": {"dim": dim}} for size, dim in list(SIZES.items())[:sizes]}
    text = STUDY.replace("RUNS", str(folder)).replace("LADDER", json.dumps(ladder))
    (folder / "climb.yaml").write_text(text)
    study = load_study(folder / "climb.yaml")
    write_study(study)
    plan = json.loads((study.dir / "plan.json").read_text())
    rng = np.random.default_rng(3)
    for arm, config in study.arms.items():
        step = list(SIZES).index(str(config.size))
        plan["arms"][arm]["flops"]["paper_train"] = {"pretrain": 1e12 * 4.0**step}
        memory = arm.startswith("moc")
        law = FLOOR + SCALE * (GAP if memory else 1) * 4.0 ** (-EXPONENT * step)
        speed = 100_000 / 4.0**step / (2 if memory else 1)
        for seed in study.seeds:
            run = study.dir / "arms" / arm / f"seed-{seed}"
            file = run / "boundaries" / "1-pretrain" / "evals.json"
            record = json.loads(file.read_text())
            record["bits_per_byte"]["people"] = law * np.exp(noise * rng.standard_normal())
            file.write_text(json.dumps(record))
            _at_speed(run / "metrics.jsonl", speed)
    (study.dir / "plan.json").write_text(json.dumps(plan))
    return study.dir


def _at_speed(path: Path, tokens_per_sec: float) -> None:
    records, _ = read_what_is_whole(path)
    path.unlink()
    journal = Journal(path)
    for record in records:
        if (key := "pretrain/train/tokens_per_sec") in record["metrics"]:
            record["metrics"][key] = tokens_per_sec
        journal.append({key: value for key, value in record.items() if key != "crc"})
    journal.commit()
    journal.close()
