"""What evaluations leave in a run directory, made up: boundaries, points on the way, probes."""

from __future__ import annotations

import json
import random
from dataclasses import asdict
from pathlib import Path
from typing import Any

from moc.config.schema import StudyConfig
from moc.store.journal import Journal
from tests.support.fake_items import fake_samples, fake_score, write_samples
from tests.support.fake_memory import fake_leakage, fake_memory

NUM_ITEMS = 200
NUM_CONTROLLED = 100  # items of those, for controls and probes
# score after the start, pretrain and ift boundaries, as a share; the first task is choice
SCORES = {
    "facts_choice": {"moc": (0.25, 0.83, 0.74), "iso_flop": (0.235, 0.79, 0.62)},
    "facts_answer": {"moc": (0.0, 0.71, 0.52), "iso_flop": (0.0, 0.655, 0.31)},
    "skills_answer": {"moc": (0.0, 0.0, 0.42), "iso_flop": (0.0, 0.005, 0.445)},
}
# with a third phase, about other people
LATER_SCORES = {
    "facts_choice.people": {"moc": (0.25, 0.83, 0.74, 0.7), "iso_flop": (0.235, 0.79, 0.62, 0.5)},
    "facts_answer.people": {"moc": (0.0, 0.71, 0.52, 0.41), "iso_flop": (0.0, 0.655, 0.31, 0.18)},
    "skills_answer": {"moc": (0.0, 0.0, 0.42, 0.05), "iso_flop": (0.0, 0.005, 0.445, 0.03)},
    "facts_choice.others": {"moc": (0.25, 0.25, 0.24, 0.8), "iso_flop": (0.24, 0.26, 0.25, 0.78)},
    "facts_answer.others": {"moc": (0.0, 0.0, 0.01, 0.66), "iso_flop": (0.0, 0.0, 0.01, 0.64)},
}
BASELINES = {"facts_choice": (0.25, 0.28), "facts_answer": (0.0, 0.035)}
BASELINES["skills_answer"] = (0.0, 0.04)
BITS_PER_BYTE = {  # at each boundary, without what an arm is worse by
    "people": (8.1, 0.61, 0.74, 0.9),
    "skills": (8.3, 3.9, 0.88, 1.6),
    "others": (8.1, 2.2, 2.3, 0.63),
}
CONTROLS = {"knockout-bank": 0.35, "bank_swap-pretrain": 0.9, "bank_swap-ift": 0.95}  # kept


def write_boundary(
    study: StudyConfig, run_dir: Path, arm: str, seed: int, index: int, tokens: int
) -> Path:
    """Everything about boundary ``index`` but the weights. Returns its folder."""
    name = boundary_names(study)[index]
    folder = run_dir / "boundaries" / f"{index}-{name}"
    who = f"{arm}-{seed}-{index}"
    tasks: dict[str, Any] = {}
    shares = {task: share_of(study, arm, seed, task, index) for task in scores_of(study)}
    for task, share in shares.items():
        tasks[task] = _score(folder / "samples", task, share, NUM_ITEMS, who)
    controls: dict[str, Any] = {}
    bits = _bits_per_byte(study, arm, seed, index)
    for control, kept in CONTROLS.items():
        bank = control.removeprefix("bank_swap-")
        if study.arms[arm].model.memory is None or index == 0 or bank in (name, "more"):
            continue
        if control.startswith("bank_swap") and bank not in boundary_names(study)[1:index]:
            continue
        at = folder / "samples" / control
        controls[control] = {
            "tasks": {
                task: _score(at, task, kept * share, NUM_CONTROLLED, f"{who}-{control}")
                for task, share in shares.items()
            },
            "bits_per_byte": {source: value + 1 - kept for source, value in bits.items()},
        }
    record = {
        "boundary": name,
        "index": index,
        "tokens": tokens,
        "fingerprint": "a" * 64,
        "tasks": tasks,
        "bits_per_byte": bits,
        "leakage": fake_leakage(study.arms[arm].model, arm, seed, index),
        "memory": fake_memory(study.arms[arm].model, arm, seed, index),
        "controls": controls,
        "elapsed_sec": 3.2,
    }
    write_json(folder / "evals.json", record)
    write_json(folder / "model.json", asdict(study.arms[arm].model))
    journal = Journal(run_dir / "metrics.jsonl")
    metrics = {f"eval/{task}/{entry['metric']}": entry["value"] for task, entry in tasks.items()}
    metrics |= {f"eval/{source}/bits_per_byte": value for source, value in bits.items()}
    metrics |= _trajectory({task: entry["value"] for task, entry in tasks.items()}, bits)
    time = 1_772_445_600.0 + tokens / 16_000
    journal.append(
        {"phase": name, "tokens": tokens, "time": time, "metrics": metrics}
        | {"step": study.phases[name].num_steps() if index else 0}
    )
    journal.commit()
    journal.close()
    return folder


def fake_glance(
    study: StudyConfig, arm: str, phase: str, step: int, tokens: int, part: tuple[int, float]
) -> dict[str, Any]:
    """A point of the trajectories, a share ``part[1]`` of the way on from boundary ``part[0]``."""
    index, share = part
    ends = [
        {task: share_of(study, arm, 0, task, index + step) for task in scores_of(study)}
        for step in (0, 1)
    ]
    scores = {task: (1 - share) * ends[0][task] + share * ends[1][task] for task in ends[0]}
    bits = _bits_per_byte(study, arm, 0, index + 1)
    metrics = _trajectory(scores, bits) | {f"{phase}/eval/elapsed_sec": 0.5}
    time = 1_772_445_600.0 + tokens / 16_000
    return {"phase": phase, "step": step, "tokens": tokens, "time": time, "metrics": metrics}


def write_probes(study: StudyConfig, run_dir: Path, arm: str, seed: int) -> None:
    """Every probe of the last boundary: the scores of the first phase come back step by step."""
    index = len(study.phases)
    for probe, config in study.probes.items():
        name = f"{index}-{boundary_names(study)[index]}"
        folder = run_dir / "probes" / probe / name
        points = []
        for step in range(0, config.phase.num_steps() + 1, 2):
            share = step / config.phase.num_steps()
            tasks = {}
            for task in scores_of(study):
                low, high = (share_of(study, arm, seed, task, i) for i in (index, 1))
                value = low + min(1.0, 1.25 * share) * (high - low)
                at = folder / f"samples-{step * config.phase.tokens_per_step}"
                tasks[task] = _score(at, task, value, NUM_CONTROLLED, f"{arm}-{seed}-{index}")
            points.append({"tokens": step * config.phase.tokens_per_step, "tasks": tasks})
        record = {"probe": probe, "boundary": name.partition("-")[2], "index": index}
        record |= {"tokens_per_step": config.phase.tokens_per_step, "points": points}
        write_json(folder / "probe.json", record | {"elapsed_sec": 4.0, "config_hash": "0" * 12})


def boundary_names(study: StudyConfig) -> list[str]:
    return ["start", *study.phases]


def scores_of(study: StudyConfig) -> dict[str, dict[str, tuple[float, ...]]]:
    return LATER_SCORES if "more" in study.phases else SCORES


def share_of(study: StudyConfig, arm: str, seed: int, task: str, index: int) -> float:
    scores = scores_of(study)[task]
    # the others follow one of the two, a little lower
    like = "moc" if arm.startswith("moc") else "iso_flop"
    share = scores[arm][index] if arm in scores else 0.93 * scores[like][index]
    return share + 0.02 * (seed - study.seeds[0]) * (1 if share > 0.1 else 0)


def write_json(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def _score(folder: Path, task: str, share: float, num_items: int, who: str) -> dict[str, Any]:
    base, _, source = task.partition(".")
    source = source or {"facts": "people", "skills": "skills"}[base.partition("_")[0]]
    samples = fake_samples(task, share, num_items=num_items, who=who, source=source)
    write_samples(folder, task, samples)
    chance, majority = BASELINES[base]
    return fake_score(samples, chance=chance, majority=majority, source=source)


def _bits_per_byte(study: StudyConfig, arm: str, seed: int, index: int) -> dict[str, float]:
    worse = {"moc": 0.0, "moc_segment": 0.01, "moc_token": 0.015, "iso_flop": 0.03}.get(arm, 0.08)
    rng = random.Random(f"{arm}-{seed}-{index}")
    people = BITS_PER_BYTE["people"][index] + worse + (2 * worse if index == 2 else 0)
    bits = {"people": people + rng.uniform(-0.01, 0.01)}
    for source in list(study.data)[1:]:
        bits[source] = BITS_PER_BYTE[source][index] + worse / 2 + rng.uniform(-0.01, 0.01)
    return bits


def _trajectory(scores: dict[str, float], bits: dict[str, float]) -> dict[str, float]:
    found = {f"trajectory/{task}": value for task, value in scores.items()}
    return found | {f"trajectory/{source}/bits_per_byte": value for source, value in bits.items()}
