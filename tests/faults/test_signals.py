"""Asked to stop, a run saves and says so, wherever it is and whoever else gets the signal."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.support.helpers_runs import Moc, check_same, complaint, run_dir
from tests.support.helpers_training import write_tiny_study
from tests.support.ranks import Ranks, Undisturbed, free_port, left_alone
from tests.support.real_command import trains

SIGTERM = {"do": "signal", "number": signal.SIGTERM}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["SIGINT", "SIGTERM"])
def test_asked_to_stop(
    moc: Moc, tmp_path: Path, undisturbed: dict[str, Any], number: signal.Signals
) -> None:
    """SIGTERM once. Kept: the step under way, which is saved; it exits 143 (130 after Ctrl-C) and
    the same command ends in the same weights."""
    stops = [
        ({"at": "while preparing data"}, "stopped"),
        ({"at": "while evaluating"}, "stopped"),  # before the first step
        ({"at": "before step", "phase": "facts", "step": 4}, "stopped in phase facts at step 4"),
        ({"at": "before step", "phase": "facts", "step": 8}, "stopped at the end of phase facts"),
        ({"at": "while evaluating"}, "stopped"),  # of the weights on disk
        ({"at": "while evaluating", "boundary": 1}, "stopped"),  # inside the trainer
        ({"at": "while reporting"}, "stopped"),
    ]
    for place, message in stops if number == signal.SIGTERM else stops[1:3]:
        code, log = moc(fault={**place, "do": "signal", "number": number})
        assert code == 128 + number, log
        assert message in complaint(log) and "the same command goes on" in complaint(log)
        if place.get("step") == 4:
            assert (run_dir(tmp_path) / "checkpoints/facts-00000004").is_dir()
    code, log = moc()
    assert code == 0, log
    check_same(tmp_path, undisturbed)


def test_asked_twice_at_once(moc: Moc, tmp_path: Path, undisturbed: dict[str, Any]) -> None:
    """SIGTERM twice. Kept: two at once are one request (the step is saved); asked again later, it
    stops there and goes on from the checkpoint before."""
    place = {"at": "before step", "phase": "facts", "step": 5}
    code, log = moc(fault={**place, **SIGTERM, "times": 2})
    assert code == 143 and "phase facts at step 5" in complaint(log), log
    place = {"at": "before step", "phase": "facts", "step": 7}
    code, log = moc(fault={**place, **SIGTERM, "times": 2, "apart_sec": 1.2})
    assert code == 143 and "stopped at once" in complaint(log), log
    names = sorted(path.name for path in (run_dir(tmp_path) / "checkpoints").iterdir())
    assert names == ["facts-00000005", "facts-00000006"]
    code, log = moc()
    assert code == 0, log
    check_same(tmp_path, undisturbed)


def test_asked_while_saving(moc: Moc, tmp_path: Path, undisturbed: dict[str, Any]) -> None:
    """SIGTERM while saving. Kept: the checkpoint under way, and the step after it."""
    code, log = moc(fault={"at": "while saving", "step": 3, **SIGTERM})
    assert code == 143 and "phase facts at step 4" in complaint(log), log
    code, log = moc(
        fault={"at": "while saving", "step": 6, **SIGTERM, "times": 2, "apart_sec": 1.2}
    )
    assert code == 143 and "stopped at once" in complaint(log), log
    names = [path.name for path in (run_dir(tmp_path) / "checkpoints").iterdir()]
    assert sorted(names) == ["facts-00000003", "facts-00000004"]  # nothing half written
    code, log = moc()
    assert code == 0, log
    check_same(tmp_path, undisturbed)


def test_the_whole_group_is_asked(moc: Moc, tmp_path: Path, undisturbed: dict[str, Any]) -> None:
    """SIGTERM to the process group. Kept: the step under way; workers of the loader leave the
    signal to the process that saves."""
    for number, step in ((signal.SIGTERM, 4), (signal.SIGINT, 5)):
        place = {"at": "before step", "phase": "facts", "step": step}
        fault = {**place, "do": "signal", "number": number, "group": True, "times": 2}
        code, log = moc("trainer.num_workers=2", fault=fault, group=True)
        assert code == 128 + number and f"phase facts at step {step}" in complaint(log), log
    code, log = moc()
    assert code == 0, log
    check_same(tmp_path, undisturbed)


@pytest.mark.parametrize("who", [1, None], ids=["one of them", "both"])
def test_ranks_are_asked(ranks: Ranks, undisturbed_ranks: Undisturbed, who: int | None) -> None:
    """SIGTERM on two ranks. Kept: the step under way, on both, whichever was asked; both exit 143
    and the same command ends in the same weights."""
    stops = [
        {"at": "while preparing data"},
        {"at": "while evaluating"},
        {"at": "before step", "phase": "facts", "step": 4},
    ]
    for place in stops if who else stops[2:]:
        codes, logs = ranks(fault={**place, **SIGTERM, "rank": who})
        assert codes == [143, 143], (place, logs)
        assert all("stopped" in complaint(log) for log in logs), logs
    assert ranks.checkpoints()[-1] == "facts-00000004"
    codes, logs = ranks()
    assert codes == [0, 0], logs
    ranks.check_same(undisturbed_ranks("ddp"))


def test_torchrun_passes_it_on(tmp_path: Path) -> None:
    """SIGTERM to the process group; SIGTERM on two ranks. Kept: the step under way, also under
    torchrun, which passes the signal on once more and itself exits 1."""
    study = write_tiny_study(tmp_path)
    settings = ["trainer.devices=2", "trainer.num_workers=1", "phases.facts.tokens=256_000"]
    torchrun = ["-m", "torch.distributed.run", "--nproc-per-node", "2"]
    torchrun += ["--master-port", str(free_port()), "-m", "moc"]
    process = trains(tmp_path, [*torchrun, "run", str(study), "--arms", "moc", *settings])
    os.killpg(process.pid, signal.SIGTERM)
    code = process.wait(60)
    text = (tmp_path / "log").read_text()
    assert code == 1, text
    said = [line for line in text.splitlines() if line.startswith("moc: ")]
    assert len(said) == 2 and all("stopped in phase facts at step" in line for line in said), text
    assert len(list((run_dir(tmp_path) / "checkpoints").iterdir())) >= 1
    assert left_alone(process.pid)
