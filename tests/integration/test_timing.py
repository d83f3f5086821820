"""What the clocks of a run count: its training, and nothing else. Time is made up here."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import pytest
import torch
from torch.utils.data import DataLoader, Dataset

import moc.callbacks.progress
import moc.callbacks.throughput
from moc.callbacks.progress import LiveProgress
from moc.callbacks.throughput import RestartClock, Throughput
from moc.model.transformer import build_model
from moc.store.journal import read
from tests.support.helpers_training import tiny_study, train_phase

START, DATA, FORWARD, DIAGNOSTICS = 1000.0, 1.0, 10.0, 100.0  # seconds that each takes


class Clock:
    now = 50.0

    def read(self) -> float:
        return self.now

    def passes(self, seconds: float) -> None:
        self.now += seconds


class SlowData(L.LightningDataModule, Dataset):
    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self.clock = clock

    def __len__(self) -> int:
        return 3

    def __getitem__(self, index: int) -> dict[str, Any]:
        self.clock.passes(DATA)
        tokens = torch.arange(8 * 33).reshape(1, 8, 33)
        return {"tokens": tokens, "loss_mask": torch.ones(1, 8, 32, dtype=torch.bool)}

    def train_dataloader(self) -> DataLoader:
        return DataLoader(self, batch_size=None)


class SlowCallback(L.Callback):
    def __init__(self, clock: Clock) -> None:
        self.clock = clock

    def on_train_start(self, *_: Any) -> None:
        self.clock.passes(START)

    def on_train_batch_end(self, *_: Any) -> None:
        self.clock.passes(DIAGNOSTICS)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    fake = SimpleNamespace(perf_counter=clock.read, monotonic=clock.read)
    for module in (moc.callbacks.throughput, moc.callbacks.progress):
        monkeypatch.setattr(module, "time", fake)
    return clock


def train(folder: Path, clock: Clock, *callbacks: L.Callback) -> None:
    """Three steps of 256 tokens."""
    study = tiny_study(folder, "phases.facts.tokens=768")
    model = build_model(study.arms["moc"].model, seed=0)
    model.register_forward_pre_hook(lambda *_: clock.passes(FORWARD))
    train_phase(study, folder, model=model, data=SlowData(clock), callbacks=callbacks)


def test_throughput_counts_data_and_training_but_no_callbacks(tmp_path: Path, clock: Clock) -> None:
    throughput = Throughput(train_flops_per_token=3.0, peak_flops=1000.0)
    train(tmp_path, clock, throughput, SlowCallback(clock), RestartClock(throughput))
    records = [record["metrics"] for record in read(tmp_path / "metrics.jsonl")]
    assert clock.now == 50 + START + 3 * (DATA + FORWARD + DIAGNOSTICS)
    for record in records:
        assert record["facts/train/tokens_per_sec"] == pytest.approx(256 / (DATA + FORWARD))
        assert record["facts/train/data_wait"] == pytest.approx(DATA / (DATA + FORWARD))
        assert record["facts/train/mfu"] == pytest.approx(256 / (DATA + FORWARD) * 3 / 1000)
    assert len(records) == 3


@pytest.mark.parametrize(
    ("data_sec", "unit_sec", "num_warnings"),
    [
        (1.0, 1.0, 1),  # of steps 2 and 3 the first; not of step 1, where the loader starts
        (0.1, 1.0, 0),  # 1 %
        (1.0, 0.01, 0),  # too short to judge
    ],
)
def test_a_step_that_waits_for_its_data_is_reported_once(
    tmp_path: Path,
    clock: Clock,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    data_sec: float,
    unit_sec: float,
    num_warnings: int,
) -> None:
    monkeypatch.setitem(globals(), "DATA", data_sec * unit_sec)
    monkeypatch.setitem(globals(), "FORWARD", 10 * unit_sec)
    throughput = Throughput(3.0, None)
    train(tmp_path, clock, throughput, RestartClock(throughput))
    found = [line for line in caplog.messages if "waiting for data" in line]
    assert len(found) == num_warnings
    if found:
        expected = "9.1 % of the training time is waiting for data; raise trainer.num_workers"
        assert found == [f"phase facts, step 2: {expected}"]


def test_the_time_left_does_not_count_what_came_before_the_first_step(
    tmp_path: Path, clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    """An evaluation of the untrained model, for one."""
    throughput = Throughput(3.0, None)
    train(tmp_path, clock, throughput, LiveProgress("moc", throughput), SlowCallback(clock))
    first = next(line for line in capsys.readouterr().out.splitlines() if "step 1/3" in line)
    assert first.endswith("ETA 0:20")  # two more forward passes, as far as the first step tells
