"""``moc status`` says where every run is, from the study's folder alone."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from moc.cli import main
from moc.config.load import save_study
from moc.store.files import seal_text, write_json
from moc.store.lock import run_lock, start_of
from moc.store.manifest import FORMAT
from moc.store.rundir import RunDir, StudyDir
from moc.verbs import status
from moc.verbs.status import render_status, study_status
from tests.support.helpers_training import tiny_study

ROOT = Path(__file__).parents[3]


@pytest.fixture
def folder(tmp_path: Path) -> StudyDir:
    """Of a study with five seeds of two arms, prepared, no run begun."""
    study = tiny_study(tmp_path, "seeds=[0,1,2,3,4]")
    study.dir.mkdir(parents=True)
    save_study(study, study.dir / "study.yaml")
    seal_text(study.dir / "study.yaml")
    return StudyDir(study.dir)


def begin(run: RunDir, status: str, *, why: str | None = None) -> None:
    write_json(run.info, {"format": FORMAT, "status": status, "why": why, "host": "here"})


def record(run: RunDir, phase: str, step: int, **metrics: float) -> None:
    journal = run.journal()
    named = {f"{phase}/train/{key}": value for key, value in metrics.items()}
    journal.append({"phase": phase, "step": step, "tokens": step, "metrics": named})
    journal.close()


def test_every_state(folder: StudyDir) -> None:
    runs = [folder.run("moc", seed) for seed in range(5)]
    begin(runs[0], "finished")
    record(runs[0], "skills", 6, tokens_per_sec=50.0)
    begin(runs[1], "running")
    record(runs[1], "facts", 6, tokens_per_sec=128.0)
    record(runs[1], "facts", 7, loss=3.0)
    begin(runs[2], "running")  # and its process was killed
    record(runs[2], "start", 0, loss=1.0)  # a score, of no phase
    begin(runs[3], "failed", why="phase facts: not finite in step 3")
    record(runs[3], "facts", 2, tokens_per_sec=1234.5)
    with run_lock(runs[1].path):
        found = {(run.arm, run.seed): run for run in study_status(folder.path)}
    assert [found["moc", seed].state for seed in range(5)] == [
        "done",
        "running",
        "stopped",
        "failed",
        "waiting",
    ]
    assert {found["backbone", seed].state for seed in range(5)} == {"waiting"}
    running = found["moc", 1]
    assert (running.phase, running.step, running.num_steps) == ("facts", 7, 8)
    assert running.tokens_per_sec == 128.0
    assert running.left_sec == (256 + 1536) / 128  # a step of this phase and all of the next
    assert found["moc", 0].left_sec is None and found["moc", 2].phase is None
    for state in ("paused", "pruned"):
        begin(runs[4], state, why="not among the best 1/3")
        assert {(run.arm, run.seed): run for run in study_status(folder.path)}[
            "moc", 4
        ].state == state
    lines = render_status(list(found.values())).splitlines()
    assert lines[1].split()[3:6] == ["done", "skills", "6/6"]
    words = ["moc seed 1", "running", "facts", "7/8", "128", "0:00:14", running.host]
    assert " ".join(lines[3].split()) == " ".join(map(str, words))
    assert "moc seed 3 failed: phase facts: not finite in step 3" in lines
    assert lines[-1] == "10 runs: 1 done, 1 running, 6 waiting, 1 stopped, 1 failed"


def test_a_run_on_another_machine(folder: StudyDir) -> None:
    run = folder.run("moc", 0)
    lock = {"host": "elsewhere", "pid": 1, "started": start_of(os.getpid()), "since": time.time()}
    write_json(run.path / "lock.json", lock)
    (found,) = [one for one in study_status(folder.path) if one.state == "running"]
    assert found.host == "elsewhere" and found.phase is None and found.left_sec is None


def test_a_long_journal_is_read_from_its_end(folder: StudyDir) -> None:
    run = folder.run("moc", 0)
    begin(run, "running")
    journal = run.journal()
    for step in range(1, 2001):
        metrics = {"facts/train/tokens_per_sec": float(step), "facts/train/loss": 0.0}
        journal.append({"phase": "facts", "step": step, "tokens": step, "metrics": metrics})
    assert run.journal().path.stat().st_size > 200_000
    with run.journal().path.open("ab") as file:
        file.write(b'{"phase":"facts","step":2001,"met')  # being written
    found = study_status(folder.path)[0]
    assert (found.step, found.tokens_per_sec) == (2000, 2000.0)


def test_as_a_command_and_without_torch(folder: StudyDir, tmp_path: Path) -> None:
    begin(folder.run("moc", 0), "finished")
    for path in (tmp_path / "tiny.yaml", folder.path):  # the file has one seed, its folder five
        program = (
            "import sys; from moc.cli import main; code = main(['status', sys.argv[1]]); "
            "print('torch' in sys.modules); sys.exit(code)"
        )
        done = subprocess.run(
            [sys.executable, "-c", program, str(path)], cwd=ROOT, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        *_, last, imported = done.stdout.splitlines()
        assert last == "10 runs: 1 done, 9 waiting" and imported == "False"


def test_watching_ends_with_the_last_run(
    folder: StudyDir, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for arm in ("moc", "backbone"):
        for seed in range(5):
            begin(folder.run(arm, seed), "failed" if seed == 4 else "finished")
    run = folder.run("moc", 0)
    begin(run, "running")
    held = run_lock(run.path)
    held.__enter__()
    waits = iter(range(100))

    def wait(_: float) -> None:
        match next(waits):
            case 1:
                record(run, "facts", 4, tokens_per_sec=2.0)
            case 3:
                held.__exit__(None, None, None)  # it may be taken up again
            case 5:
                begin(run, "finished")

    monkeypatch.setattr(status.time, "sleep", wait)
    assert main(["status", str(folder.path), "--watch"]) == 0
    printed = capsys.readouterr().out
    assert printed.count("10 runs:") == 4  # what is new, and nothing twice
    assert printed.splitlines()[-1] == "10 runs: 8 done, 2 failed"


def test_where_there_is_no_study(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny_study(tmp_path)
    assert main(["status", str(tmp_path / "tiny.yaml")]) == 2
    assert "this study has not been run yet" in capsys.readouterr().err


def test_a_damaged_study_file(folder: StudyDir, capsys: pytest.CaptureFixture[str]) -> None:
    text = folder.config.read_text()
    folder.config.write_text(text.replace("tokens: 2048", "tokens: 4096"))
    assert main(["status", str(folder.path)]) == 1
    assert "study.yaml is damaged (its checksum differs)" in capsys.readouterr().err
