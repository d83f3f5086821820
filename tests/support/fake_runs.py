"""Run directories as a study would leave them, without training: for tests of what reads them."""

from __future__ import annotations

import math
import random
import uuid
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

from moc.config.data import SourceConfig
from moc.config.identity import config_hash
from moc.config.load import save_study
from moc.config.schema import ArmConfig, IsoFlopConfig, PhaseConfig, ProbeConfig, StudyConfig
from moc.model.config import MemoryConfig, ModelConfig, ProductKeysConfig, RouterConfig
from moc.model.memory.build import is_causal, routing_scope
from moc.plan.memories import memory_of
from moc.store.files import seal_text
from moc.store.journal import Journal
from moc.store.manifest import FORMAT
from moc.store.rundir import StudyDir
from tests.support.fake_boundaries import fake_glance, write_boundary, write_json, write_probes
from tests.support.fake_memory import fake_use
from tests.support.small_models import chapters

SOURCES = {"pretrain": "people", "ift": "skills", "more": "others"}  # of each phase
ARMS = {
    "moc": ModelConfig(memory=chapters(router=RouterConfig(scope="sequence"))),
    "moc_segment": ModelConfig(memory=chapters(router=RouterConfig(scope="segment"))),
    "moc_token": ModelConfig(memory=chapters(router=RouterConfig(scope="token"))),
    "keys": ModelConfig(
        memory=MemoryConfig(
            "product_keys", product_keys=ProductKeysConfig(num_keys=16, num_heads=2, num_read=4)
        )
    ),
    "iso_flop": ModelConfig(num_layers=6, memory=None),
    "backbone": ModelConfig(memory=None),
}


def fake_study(
    runs_dir: Path,
    *,
    seeds: tuple[int, ...] = (0,),
    num_steps: tuple[int, ...] = (240, 120),
    arms: tuple[str, ...] = ("moc", "iso_flop", "backbone"),
    probes: tuple[str, ...] = (),
) -> StudyConfig:
    """``arms`` out of ``ARMS`` through ``pretrain`` and ``ift``, and through ``more`` where there
    are three ``num_steps``; ``moc`` is not causal. ``probes`` train again on the first phase."""
    names = list(SOURCES)[: len(num_steps)]
    phases = {
        name: PhaseConfig(
            tokens=8192 * steps, mixture={SOURCES[name]: 1.0}, context_length=128 * (1 + index)
        )
        for index, (name, steps) in enumerate(zip(names, num_steps, strict=True))
    }
    data = {"people": SourceConfig(kind="facts"), "skills": SourceConfig(kind="skills")}
    if "more" in phases:
        data["others"] = SourceConfig(kind="facts", seed=1)
    again = replace(phases["pretrain"], tokens=8 * 8192)
    return StudyConfig(
        name="fake",
        description="Does a learned memory keep facts through instruction tuning?",
        seeds=list(seeds),
        runs_dir=str(runs_dir),
        data=data,
        phases=phases,
        arms={
            name: ArmConfig(
                model=deepcopy(ARMS[name]),
                phases=phases,
                iso_flop=IsoFlopConfig(target=arms[0]) if name == "iso_flop" else None,
            )
            for name in arms
        },
        probes={name: ProbeConfig(phase=again) for name in probes},
    )


def write_study(study: StudyConfig, *, runs: bool = True) -> Path:
    """The study's own files, and with ``runs`` every run complete. Returns the study's folder."""
    study.dir.mkdir(parents=True, exist_ok=True)
    save_study(study, study.dir / "study.yaml")
    seal_text(study.dir / "study.yaml")
    write_json(study.dir / "plan.json", fake_plan(study))
    write_json(
        study.dir / "environment.json",
        {"python": "3.11.9", "torch": "2.13.0", "git_commit": "0123456789abcdef", "gpu": None},
    )
    write_json(
        study.dir / "datasets.json",
        {name: dict.fromkeys(phase.mixture, "f" * 40) for name, phase in study.phases.items()},
    )
    if runs:
        for arm in study.arms:
            for seed in study.seeds:
                write_run(study, arm, seed)
    return study.dir


def write_run(
    study: StudyConfig, arm: str, seed: int, *, boundaries: int = 9, status: str = "finished"
) -> Path:
    """One run that got as far as the first ``boundaries`` boundaries."""
    rng = random.Random(f"{arm}-{seed}")
    run_dir = study.dir / "arms" / arm / f"seed-{seed}"
    routed = study.arms[arm].model.memory is not None
    write_json(
        run_dir / "run.json",
        {
            "study": study.name,
            "arm": arm,
            "seed": seed,
            "format": FORMAT,
            "run_uuid": uuid.UUID(int=rng.getrandbits(128)).hex,
            "kind": memory.kind if (memory := study.arms[arm].model.memory) else "none",
            "scope": routing_scope(study.arms[arm].model),
            "causal": is_causal(study.arms[arm].model),
            "config_hash": config_hash(study.arms[arm]),
            "started": "2026-03-02T10:00:00+00:00",
            "status": status,
        },
    )
    journal = Journal(run_dir / "metrics.jsonl")
    use = Journal(run_dir / "memory_use.jsonl")
    tokens = 0
    write_boundary(study, run_dir, arm, seed, 0, tokens)
    for index, (name, phase) in enumerate(study.phases.items(), start=1):
        for step in range(10, phase.num_steps() + 1, 10):
            now = tokens + step * phase.tokens_per_step
            journal.append(fake_metrics(arm, name, step, now, phase.num_steps(), rng, routed))
            if step % 40 == 0 and step < phase.num_steps():
                part = (index - 1, step / phase.num_steps())
                journal.append(fake_glance(study, arm, name, step, now, part))
            if routed and step % 40 == 0:
                last = step == phase.num_steps()
                for record in fake_use(study.arms[arm].model, name, step, now, rng, last=last):
                    use.append(record)
        tokens += phase.num_steps() * phase.tokens_per_step
        if index >= boundaries:
            break
        journal.commit()
        write_boundary(study, run_dir, arm, seed, index, tokens)
    else:
        write_probes(study, run_dir, arm, seed)
    journal.close()
    use.close()
    return run_dir


def add_spike(study: StudyConfig, arm: str, seed: int) -> int:
    """A jump of loss and gradient norm at step 20 of the first phase, skipped; its tokens."""
    name, phase = next(iter(study.phases.items()))
    tokens = 20 * phase.tokens_per_step
    figures = {"loss": 9.5, "spike_loss_sigmas": 12.0, "skipped_for_spike": 1.0}
    figures |= {"grad_norm": 40.0, "spike_grad_norm_sigmas": 30.0}
    metrics = {f"{name}/train/{key}": value for key, value in figures.items()}
    journal = StudyDir(study.dir).run(arm, seed).journal()
    journal.append({"phase": name, "step": 20, "tokens": tokens, "metrics": metrics})
    journal.commit()
    journal.close()
    return tokens


def fake_metrics(
    arm: str, phase: str, step: int, tokens: int, num_steps: int, rng: random.Random, routed: bool
) -> dict[str, Any]:
    start, end = {"pretrain": (7.6, 1.05), "ift": (3.1, 0.72), "more": (2.9, 0.95)}[phase]
    gap = {"moc": 0.0, "iso_flop": 0.06}.get(arm, 0.16)
    speed = 12 if phase == "pretrain" else 25
    loss = end + gap + (start - end) * math.exp(-speed * (step - 10) / num_steps / 2)
    metrics = {
        f"{phase}/train/loss": loss + rng.gauss(0, 0.05),
        f"{phase}/train/lr": 1e-3 * min(1.0, 4 * (1 - step / num_steps) + 0.1),
        f"{phase}/train/grad_norm": 0.8 + rng.random() / 5,
        f"{phase}/train/tokens_per_sec": {"moc": 15_200.0, "iso_flop": 16_900.0}.get(arm, 24_000.0)
        + rng.uniform(-300, 300),
    }
    if routed:
        metrics[f"{phase}/memory/entropy"] = 0.9 + rng.random() / 20
        metrics[f"{phase}/memory/collapsed_layers"] = 0.0
    time = 1_772_445_600.0 + tokens / 16_000
    return {"phase": phase, "step": step, "tokens": tokens, "time": time, "metrics": metrics}


def fake_plan(study: StudyConfig) -> dict[str, Any]:
    arms = {}
    for arm, config in study.arms.items():
        memory = config.model.memory is not None
        backbone = 1_050_000 if arm == "iso_flop" else 787_584
        bank = 133_120 if memory else 0
        layers = 139_778 if memory else 0
        arms[arm] = {
            "memory": memory_of(config.model),
            "causal": is_causal(config.model),
            "parameters": {
                "total": backbone + bank + layers,
                "trainable": backbone + bank + layers,
                "backbone": backbone,
                "memory_layers": layers,
                "bank": bank,
            },
            "flops": {
                "paper_forward_per_sequence": 230_123_456 if arm != "backbone" else 180_000_000,
                "hardware_train_per_token": 5_400_000 if arm != "backbone" else 4_200_000,
            },
            "iso_flop": {
                "target": config.iso_flop.target if config.iso_flop else None,
                "relative_error": -0.0012 if arm == "iso_flop" else None,
            },
            "steps": {name: phase.num_steps() for name, phase in config.phases.items()},
            "state_bytes": 16 * (backbone + bank + layers),
            "activation_bytes": 150_000_000,
        }
    return {"study": study.name, "arms": arms}
