"""No rank waits for ever, and each says in one line for whom."""

from __future__ import annotations

import re
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch

from moc.store.journal import read
from tests.support.helpers_runs import Moc, complaint, outcome
from tests.support.helpers_training import write_tiny_study
from tests.support.ranks import TWO, Ranks, Undisturbed, left_alone
from tests.support.real_command import trains

QUICK = "trainer.timeout_sec=6"
FACTS_5 = {"at": "before step", "phase": "facts", "step": 5, "rank": 1}


def test_a_rank_that_hangs(ranks: Ranks, undisturbed_ranks: Undisturbed) -> None:
    """a hung rank. Kept: after `trainer.timeout_sec` every rank ends with one line that names the
    one that kept the others waiting; the same command ends in the same weights."""
    hangs: list[dict[str, Any]] = [
        {**FACTS_5, "do": "sleep", "sec": 600},
        {"at": "in the loader", "step": 7, "do": "sleep", "sec": 600, "rank": 0},
    ]
    for hang in hangs:
        codes, logs = ranks(QUICK, fault=hang)
        assert codes == [1, 1], logs
        for log in logs:
            assert f"rank {hang['rank']} (process " in complaint(log), log
            assert "kept the others waiting (trainer.timeout_sec 6)" in complaint(log), log
        assert not (ranks.run_dir / "lock.json").is_file()
    codes, logs = ranks()
    assert codes == [0, 0], logs
    ranks.check_same(undisturbed_ranks("ddp"))


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "stopped"])
def test_a_rank_that_is_gone(
    ranks: Ranks, undisturbed_ranks: Undisturbed, number: signal.Signals
) -> None:
    """a dead rank. Kept: the others end by themselves, and name it (a stopped one is ended, too);
    the same command ends in the same weights."""
    fault = {**FACTS_5, "do": "signal", "number": number}
    codes, logs = ranks(QUICK, fault=fault)
    assert codes == [1, -signal.SIGKILL], logs
    said = "is gone" if number == signal.SIGKILL else "gave no sign of life for"
    line = complaint(logs[0])
    assert "moc: rank 1 (process " in line and said in line, logs
    assert line.endswith("the same command goes on from the last checkpoint")
    codes, logs = ranks()
    assert codes == [0, 0], logs
    ranks.check_same(undisturbed_ranks("ddp"))


def test_a_loss_that_is_no_number_on_one_rank(ranks: Ranks) -> None:
    """NaN on one rank. Kept: the weights, which no rank moves by that step; one line, and the run
    goes on."""
    codes, logs = ranks(fault={**FACTS_5, "do": "spoil the loss", "factor": float("nan")})
    assert codes == [0, 0], logs
    (line,) = [line for line in logs[0].splitlines() if line.startswith("update skipped")]
    assert "phase facts, step 5: loss nan" in line
    weights = safetensors.torch.load_file(ranks.run_dir / "boundaries/2-skills/model.safetensors")
    assert all(weight.isfinite().all() for weight in weights.values())
    steps = [(r["phase"], r["step"]) for r in read(ranks.run_dir / "metrics.jsonl")]
    assert steps.count(("facts", 5)) == 1 and ("facts", 6) in steps


def test_the_others_learn_why_a_rank_fails(ranks: Ranks) -> None:
    """out of memory. Kept: one line on every rank, of the one that failed."""
    codes, logs = ranks(fault={**FACTS_5, "do": "fail", "error": "MemoryError"})
    assert codes == [1, 1], logs
    assert "out of memory" in complaint(logs[1])
    assert complaint(logs[0]).startswith("moc: rank 1 ended: ")
    assert "out of memory" in complaint(logs[0])


def test_what_the_main_process_does_alone_is_waited_for(
    ranks: Ranks, undisturbed_ranks: Undisturbed
) -> None:
    """Preparing data, saving, and scoring a boundary whose weights a kill left without scores."""
    slow = {"do": "sleep", "sec": 8, "rank": 0}
    kill = {"at": "while evaluating", "boundary": 1, "do": "signal", "number": signal.SIGKILL}
    codes, logs = ranks(fault=kill)
    assert codes == [-9, -9], logs
    slowly = [{"at": "while evaluating", **slow}, {"at": "while saving", "step": 3, **slow}]
    codes, logs = ranks("trainer.timeout_sec=4", fault=slowly)
    assert codes == [0, 0], logs
    ranks.check_same(undisturbed_ranks("ddp"))


def test_a_checkpoint_of_shards_is_torn(ranks: Ranks, undisturbed_ranks: Undisturbed) -> None:
    """torn shards. Kept: a sharded run's checkpoint is one file with a checksum; where it is torn,
    the run goes on from the one before, to the same weights."""
    fault = {"at": "before step", "phase": "facts", "step": 8}
    kill = {"do": "signal", "number": signal.SIGKILL}
    codes, logs = ranks("trainer.strategy=fsdp", fault={**fault, **kill})
    assert codes == [-9, -9], logs
    latest = ranks.run_dir / "checkpoints/facts-00000006"
    assert sorted(path.name for path in latest.iterdir()) == ["manifest.json", "training.pt"]
    with (latest / "training.pt").open("r+b") as file:
        file.truncate(file.seek(0, 2) // 2)
    codes, logs = ranks("trainer.strategy=fsdp")
    assert codes == [0, 0] and f"passed over: {latest}" in logs[0], logs
    ranks.check_same(undisturbed_ranks("fsdp"))


def test_ranks_come_and_go(moc: Moc, ranks: Ranks, tmp_path: Path) -> None:
    """world size 2, then 1, then 2. Kept: the weights, within what a sum in another order allows
    (1e-5; with the same ranks as before, to the bit), but for the balance loss, whose micro-batches
    are those of all ranks together.
    """
    same = ["model.memory.chapters.router.balance_coefficient=0"]
    kill = {"do": "signal", "number": signal.SIGKILL}
    alone = [*TWO, "trainer.devices=1", *same]
    at = {"at": "before step", "phase": "facts", "step": 5}
    codes, logs = ranks(*same, fault={**at, **kill})
    assert codes == [-9, -9], logs
    code, log = moc(*alone, fault={**at, "phase": "skills", **kill})
    assert code == -9, log
    codes, logs = ranks(*same)
    assert codes == [0, 0], logs
    found = outcome(tmp_path)
    shutil.rmtree(tmp_path / "runs")
    code, log = moc(*alone)
    assert code == 0, log
    expected = outcome(tmp_path)
    assert found["records"] == expected["records"] and found["chapters"] == expected["chapters"]
    for step, loss in expected["losses"].items():
        assert found["losses"][step] == pytest.approx(loss, rel=1e-5), step
    for mine, theirs in zip(found["weights"], expected["weights"], strict=True):
        tensors, others = (safetensors.torch.load(content) for content in (mine, theirs))
        for name, tensor in tensors.items():
            assert (tensor - others[name]).abs().max() < 1e-5, name


def test_the_process_that_started_the_ranks_is_killed(tmp_path: Path) -> None:
    """a dead rank. Kept: whoever is left ends by itself, loaders too, also if it was the process
    that had started the others."""
    study = write_tiny_study(tmp_path)
    settings = ["trainer.num_workers=1", "phases.facts.tokens=256_000"]
    process = trains(tmp_path, ["-m", "moc", "run", str(study), "--arms", "moc", *TWO, *settings])
    process.kill()
    process.wait()
    assert left_alone(process.pid)
    text = (tmp_path / "log").read_text()
    assert re.search(r"^moc: rank 0 (\(process|is gone or cannot be reached)", text, re.M), text
