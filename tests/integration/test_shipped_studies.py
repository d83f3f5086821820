"""Every shipped study, cut to a few steps of a small model, runs to the end of its report."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import moc.study
from moc.config.load import load_study
from moc.config.schema import ArmConfig, PhaseConfig, StudyConfig
from moc.study import run_study
from tests.support.child_tasks import NoTracker

ROOT = Path(__file__).parents[2]
STUDIES = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "experiments").rglob("*.yaml"))


@pytest.mark.parametrize("file", STUDIES)
def test_reaches_its_report(file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(moc.study, "Tracker", NoTracker)
    study = load_study(ROOT / file)
    _cut(study, tmp_path)
    report = run_study(study)
    page = report.read_text()
    assert all(arm in page for arm in study.arms)
    assert all(f"{phase}" in page for phase in study.phases)


def _cut(study: StudyConfig, folder: Path) -> None:
    """Two steps a phase, one seed, two layers; files of our own in place of those that users bring
    or a hub has. What is compared, scored and controlled stays."""
    study.runs_dir, study.cache_dir = str(folder / "runs"), str(folder / "cache")
    study.seeds = study.seeds[:1]
    most = 2 if len(study.phases) == 1 else 1  # sizes of a ladder, which differ in numbers alone
    sizes = list(dict.fromkeys(arm.size for arm in study.arms.values()))[:most]
    study.arms = {name: arm for name, arm in study.arms.items() if arm.size in sizes}
    study.tokenizer.path = None
    closed = study.tokenizer.kind == "words"  # every word of the records has to be known
    vocab_size = study.tokenizer.vocab_size if closed else 300
    study.tokenizer.vocab_size = vocab_size
    study.tokenizer.training_bytes = 20_000
    for name, source in study.data.items():
        source.num_people = min(source.num_people, 12)
        source.num_phrasings, source.num_examples = 4, 60
        source.num_records, source.num_exposures = 12, 2
        source.first_record = min(source.first_record, 12)
        if source.kind in ("text", "chat"):
            source.path = _file(folder / f"{name}.jsonl", source.kind)
            source.validation_path, source.validation_fraction = None, 0.2
            source.column = "text"
    for arm in study.arms.values():
        _cut_arm(arm, vocab_size)
    for phase in study.phases.values():
        _cut_phase(phase)
    for probe in study.probes.values():
        _cut_phase(probe.phase)
        probe.every_tokens, probe.num_items = 128, 2
    evals = study.evals
    # stock benchmarks need a hub or its mirror, and have tests of their own
    ours = ("facts", "skills")
    evals.tasks = [task for task in evals.tasks if task.startswith(ours)]
    if evals.in_phase.tasks:
        evals.in_phase.tasks = [
            t for t in evals.in_phase.tasks if t.startswith(("facts", "skills"))
        ]
    for probe in study.probes.values():
        probe.tasks = [task for task in probe.tasks if task.startswith(ours)]
    evals.num_items, evals.controls.num_items, evals.in_phase.num_items = 4, 2, 2
    evals.in_phase.every_tokens = min(evals.in_phase.every_tokens, 128)
    evals.context_length, evals.validation_tokens = 64, 300
    evals.leakage_windows = min(evals.leakage_windows, 2)
    trainer = study.trainer
    trainer.accelerator, trainer.strategy, trainer.devices = "cpu", "auto", 1
    trainer.precision, trainer.num_workers, trainer.log_every_steps = "32-true", 0, 1


def _cut_arm(arm: ArmConfig, vocab_size: int) -> None:
    model = arm.model
    model.num_layers, model.dim, model.mlp_dim, model.vocab_size = 2, 32, 64, vocab_size + 20
    model.num_heads, model.num_kv_heads = 2, 1
    if (memory := model.memory) is not None:
        chapters = memory.chapters
        chapters.num_chapters, chapters.num_shared, chapters.chapter_tokens = 17, 1, 4
        chapters.num_routed = chapters.num_routed and 4
        memory.product_keys.num_keys = min(memory.product_keys.num_keys, 16)
        # two banks need two layers; shapes of the read stay, where they are part of the question
        memory.layers = "last 1" if memory.layers_per_bank is None else "all"
        chapters.dim = chapters.dim and 16
        chapters.router.segment_tokens = 16
    for match in (arm.iso_flop, arm.iso_param):
        if match is not None:  # so small a model cannot be matched finely
            match.solve, match.tolerance = False, 10.0
    for phase in arm.phases.values():
        _cut_phase(phase)


def _cut_phase(phase: PhaseConfig) -> None:
    phase.context_length, phase.micro_batch = 32, None
    phase.tokens_per_step, phase.tokens = 64, 128
    phase.schedule.warmup_steps = 0
    phase.revive_every_steps = min(phase.revive_every_steps, 1)


def _file(path: Path, kind: str) -> str:
    words = ["the old house by the river had a door of green wood and nobody knew why"] * 3
    rows = [{"text": f"{number} " + " ".join(words)} for number in range(40)]
    chats = [
        {
            "messages": [
                {"role": "user", "content": f"What is {n} and {n}?"},
                {"role": "assistant", "content": f"It is {2 * n}, as everybody knows."},
            ]
        }
        for n in range(60)
    ]
    lines = rows if kind == "text" else chats
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(path)
