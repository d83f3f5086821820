"""MLflow holds what the run directories hold: everything, once, however often it is sent."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

import moc.tracking.ui
from moc.config.schema import StudyConfig
from moc.report import build_report
from moc.store.journal import Journal, read
from moc.tracking.content import child_tags
from moc.tracking.mirror import Tracker, send_report
from moc.tracking.server import default_uri
from moc.tracking.ui import serve_ui
from tests.support.fake_runs import fake_study, write_json, write_run, write_study
from tests.support.trackers import free_port

SMALL = (40, 20)  # steps per phase
NOTE = "mlflow.note.content"  # MLflow's name for a description
STARTED_SEC = 1_772_445_600.0  # of every made-up run
STARTED_MS = int(STARTED_SEC * 1000)


def track(study: StudyConfig) -> None:
    tracker = Tracker(study)
    tracker.start()
    assert tracker.close(120) is None


def client_of(study: StudyConfig) -> Any:
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=default_uri(Path(study.runs_dir)))


def runs_of(study: StudyConfig) -> dict[str, Any]:
    """Every MLflow run of the study, by arm and seed; the parent is ``study``."""
    client = client_of(study)
    experiment = client.get_experiment_by_name(study.name)
    runs = client.search_runs([experiment.experiment_id])
    named = {
        f"{run.data.tags['arm']}-{run.data.tags['seed']}"
        if "arm" in run.data.tags
        else "study": run
        for run in runs
    }
    assert len(named) == len(runs), "a run was created twice"
    return named


def history(study: StudyConfig, run: Any, name: str) -> list[tuple[int, float]]:
    return [(m.step, m.value) for m in client_of(study).get_metric_history(run.info.run_id, name)]


def logged(run_dir: Path, name: str) -> list[tuple[int, float]]:
    """What the committed part of the journal says, read line by line."""
    points, committed = [], []
    for line in (run_dir / "metrics.jsonl").read_text().splitlines():
        record = json.loads(line)
        if record.get("commit"):
            committed = list(points)
        elif name in record["metrics"]:
            points.append((record["tokens"], record["metrics"][name]))
    return committed


def run_info(study: StudyConfig, arm: str) -> dict[str, Any]:
    return json.loads((write_run(study, arm, 0) / "run.json").read_text())


@pytest.fixture(scope="module")
def runs_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")  # one database: creating it takes seconds


@pytest.fixture(scope="module")
def study(runs_dir: Path) -> StudyConfig:
    study = fake_study(runs_dir, num_steps=SMALL, probes=("relearn",))
    write_study(study)
    build_report(study.dir)
    track(study)
    return study


def test_one_parent_and_a_child_per_arm_with_their_tags(study: StudyConfig) -> None:
    runs = runs_of(study)
    assert set(runs) == {"study", "moc-0", "iso_flop-0", "backbone-0"}
    parent = runs.pop("study")
    assert (parent.data.tags["level"], parent.info.run_name) == ("study", "fake")
    for run in [parent, *runs.values()]:
        assert run.info.status == "FINISHED"
        assert run.data.tags["study"] == "fake"
        assert run.data.tags["git_commit"] == "0123456789abcdef"
        assert len(run.data.tags["config_hash"]) == 12
    for run in runs.values():
        assert run.data.tags["mlflow.parentRunId"] == parent.info.run_id
        assert run.info.start_time == parent.info.start_time == STARTED_MS, "not when it was sent"
        assert run.info.end_time == int(1000 * (STARTED_SEC + 60 * 8192 / 16_000))
    tags = runs["moc-0"].data.tags
    assert (tags["scope"], tags["causal"]) == ("sequence", "false")
    assert (runs["backbone-0"].data.tags["causal"]) == "true"


def test_scope_and_what_a_run_may_not_be_compared_with_stand_on_its_page(tmp_path: Path) -> None:
    study = fake_study(tmp_path, num_steps=SMALL, arms=("moc", "moc_segment", "moc_token"))
    tags = {arm: child_tags(study, run_info(study, arm)) for arm in study.arms}
    assert [found["scope"] for found in tags.values()] == ["sequence", "segment", "token"]
    assert [found["causal"] for found in tags.values()] == ["false", "true", "true"]
    assert tags["moc"][NOTE].startswith("Non-causal routing")
    assert NOTE not in tags["moc_segment"] and NOTE not in tags["moc_token"]
    pruned = run_info(study, "moc") | {"status": "pruned", "why": "not among the best 1/3"}
    assert child_tags(study, pruned)["pruned"] == "not among the best 1/3"
    assert "pruned" not in tags["moc"]


def test_curves_are_those_of_the_journal_on_the_token_axis(study: StudyConfig) -> None:
    run = runs_of(study)["moc-0"]
    folder = study.dir / "arms/moc/seed-0"
    for name in ("pretrain/train/loss", "ift/train/loss", "ift/memory/entropy"):
        expected = logged(folder, name)
        assert history(study, run, name) == expected
        assert expected
    scores = history(study, run, "eval/facts_answer/exact_match")
    assert scores == [(0, 0.0), (40 * 8192, 0.71), (60 * 8192, 0.52)]


def test_params_datasets_and_files_are_there(study: StudyConfig) -> None:
    run = runs_of(study)["moc-0"]
    grouping = ("arm", "seed", "scope", "causal")  # in the pages' menu "Group by"
    assert [run.data.params[key] for key in grouping] == ["moc", "0", "sequence", "false"]
    assert run.data.params["model.memory.chapters.router.scope"] == "sequence"
    assert run.data.params["phases.ift.context_length"] == "256"
    assert run.data.params["plan.parameters.bank"] == "133120"
    inputs = {entry.dataset.name: entry for entry in run.inputs.dataset_inputs}
    assert set(inputs) == {"people", "skills"}
    assert inputs["people"].dataset.digest == "f" * 36
    assert inputs["people"].tags[0].value == "pretrain"
    client, parent = client_of(study), runs_of(study)["study"]
    files = {file.path for file in client.list_artifacts(parent.info.run_id)}
    assert files == {
        *("study.yaml", "plan.json", "environment.json", "datasets.json"),
        *("report.html", "figures", "tables"),
    }
    artifacts = Path(parent.info.artifact_uri.removeprefix("file://"))
    assert artifacts.is_relative_to(Path(study.runs_dir).resolve() / "mlartifacts")
    for path in (study.dir / "report").glob("*/*"):
        assert (artifacts / path.relative_to(study.dir / "report")).is_file()
    assert {path.suffix for path in artifacts.glob("figures/*")} == {".png"}
    report = (study.dir / "report/report.html").read_bytes()
    assert (artifacts / "report.html").read_bytes() == report
    evals = {file.path for file in client.list_artifacts(run.info.run_id, "boundaries/2-ift")}
    assert evals == {"boundaries/2-ift/evals.json", "boundaries/2-ift/samples"}
    kept = Path(run.info.artifact_uri.removeprefix("file://"))
    assert (kept / "boundaries/2-ift/samples/facts_answer.jsonl").is_file()
    assert (kept / "boundaries/2-ift/samples/knockout-bank/facts_answer.jsonl").is_file()
    assert (kept / "probes/relearn/2-ift/probe.json").is_file()


def test_the_study_shows_its_summary_and_what_each_arm_forgot(study: StudyConfig) -> None:
    parent = runs_of(study)["study"].data
    assert parent.tags[NOTE] == (study.dir / "report/summary.md").read_text()
    assert parent.tags[NOTE].startswith("- One seed supports no claim")
    assert parent.metrics["final/facts_answer/moc"] == pytest.approx(0.52)
    assert parent.metrics["forgetting/facts_answer/moc"] == pytest.approx(0.71 - 0.52)
    assert parent.metrics["forgetting/facts_answer/iso_flop"] == pytest.approx(0.655 - 0.31)
    assert {name.split("/")[0] for name in parent.metrics} == {"final", "forgetting"}


def test_views_show_one_curve_per_arm_and_the_final_scores(study: StudyConfig) -> None:
    tags = client_of(study).get_experiment_by_name("fake").tags
    curves, scores = (
        json.loads(json.loads(tags[f"mlflow.sharedViewState.fake-{what}"])["state"])
        for what in ("curves", "scores")
    )
    by_arm = {
        "aggregateFunction": "average",
        "groupByKeys": [{"mode": "param", "groupByData": "arm"}],
    }
    assert curves["groupBy"] == by_arm
    known = runs_of(study)["moc-0"].data.metrics
    shown = {name.split("`")[1] for name in scores["selectedColumns"] if name.startswith("metrics")}
    assert {"eval/facts_choice/acc", "eval/people/bits_per_byte"} <= shown & set(known)


def test_a_rebuilt_report_replaces_the_one_in_mlflow_unless_a_person_wrote_there(
    runs_dir: Path,
) -> None:
    study = fake_study(runs_dir, num_steps=SMALL)
    study.name = "rebuilt"
    write_study(study)
    track(study)
    before = runs_of(study)["study"]
    assert "Results follow" in before.data.tags[NOTE]
    report = study.dir / "report"
    report.mkdir()
    (report / "report.html").write_text("rebuilt")
    (report / "summary.md").write_text("what it says")
    write_json(report / "summary.json", {"final/facts_answer/moc": 0.5})
    assert send_report(study.dir) is None
    client, rebuilt = client_of(study), runs_of(study)["study"]
    assert (rebuilt.info.run_id, rebuilt.info.status) == (before.info.run_id, "FINISHED")
    assert rebuilt.data.tags[NOTE] == "what it says"
    assert rebuilt.data.metrics == {"final/facts_answer/moc": 0.5}
    assert "report.html" in {f.path for f in client.list_artifacts(rebuilt.info.run_id)}

    client.set_tag(rebuilt.info.run_id, NOTE, "My own words")
    (report / "summary.md").write_text("what it says now")
    write_json(report / "summary.json", {"final/facts_answer/moc": 0.9})
    assert send_report(study.dir) is None
    data = runs_of(study)["study"].data
    assert (data.tags[NOTE], data.metrics["final/facts_answer/moc"]) == ("My own words", 0.9)


def test_a_copied_study_is_reported_without_a_server(study: StudyConfig, tmp_path: Path) -> None:
    shutil.copytree(study.dir, tmp_path / "fake")
    assert send_report(tmp_path / "fake") is None
    assert [path.name for path in tmp_path.iterdir()] == ["fake"]


def test_sending_again_changes_nothing(study: StudyConfig) -> None:
    before = runs_of(study)
    cursor = study.dir / "arms/moc/seed-0/tracking.json"
    saved = json.loads(cursor.read_text())
    write_json(cursor, saved | {"records": 0, "last": "", "stamps": {}})  # as if killed just after
    track(study)
    after = runs_of(study)
    assert {k: r.info.run_id for k, r in after.items()} == {
        k: r.info.run_id for k, r in before.items()
    }
    expected = logged(study.dir / "arms/moc/seed-0", "pretrain/train/loss")
    assert history(study, after["moc-0"], "pretrain/train/loss") == expected
    assert json.loads(cursor.read_text())["records"] == saved["records"]


def test_a_killed_and_resumed_run_has_every_point_once(runs_dir: Path) -> None:
    study = fake_study(runs_dir, num_steps=SMALL)
    study.name = "killed"
    write_study(study, runs=False)
    folder = write_run(study, "backbone", 0, boundaries=2, status="running")
    name = "ift/train/loss"
    uncommitted = [r for r in read(folder / "metrics.jsonl") if name in r["metrics"]]
    assert uncommitted
    track(study)
    run = runs_of(study)["backbone-0"]
    assert (run.info.status, name in run.data.metrics) == ("KILLED", False)

    journal = Journal(folder / "metrics.jsonl")
    journal.truncate("ift", 10, phases=list(study.phases))  # resumed from the checkpoint at 10
    tokens = uncommitted[-1]["tokens"]
    journal.append({"phase": "ift", "step": 20, "tokens": tokens, "metrics": {name: 0.5}})
    journal.append({"phase": "ift", "step": 20, "tokens": tokens, "metrics": {name: float("nan")}})
    journal.commit()
    track(study)
    run = runs_of(study)["backbone-0"]
    expected = [(uncommitted[0]["tokens"], uncommitted[0]["metrics"][name]), (tokens, 0.5)]
    assert history(study, run, name) == expected
    assert run.data.tags["non_finite_values_skipped"] == "1"


def test_a_changed_setting_is_a_warning_not_a_crash(
    runs_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    study = fake_study(runs_dir, num_steps=SMALL)
    study.name = "changed"
    write_study(study)
    track(study)
    study.trainer.num_workers = 3
    track(study)
    assert "trainer.num_workers" in caplog.text
    assert runs_of(study)["moc-0"].data.params["trainer.num_workers"] == "0"


def test_a_port_in_use_is_one_line(
    study: StudyConfig, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        assert serve_ui(Path(study.runs_dir), port=taken.getsockname()[1]) == 1
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert serve_ui(tmp_path) == 1
    assert "run a study first" in capsys.readouterr().err


def test_a_password_is_neither_shown_nor_on_a_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    uri = "postgresql+psycopg2://me:pass-word@127.0.0.1:9/db?sslpassword=pass-key"
    assert serve_ui(tmp_path, uri, free_port()) == 1
    said = capfd.readouterr()
    (line,) = (said.err + said.out).splitlines()
    assert line.startswith("moc: postgresql+psycopg2://127.0.0.1:9/db cannot be opened")
    started: list[tuple[list[str], dict[str, str]]] = []

    def start(command: list[str], *, env: dict[str, str], **_: Any) -> None:
        started.append((command, env))
        raise KeyboardInterrupt

    monkeypatch.setattr(moc.tracking.ui, "restore", lambda *_: None)
    monkeypatch.setattr(subprocess, "Popen", start)
    with pytest.raises(KeyboardInterrupt):
        serve_ui(tmp_path, uri, free_port())
    ((command, environment),) = started
    assert "pass-" not in " ".join(command)
    assert environment["MLFLOW_BACKEND_STORE_URI"] == uri
    monkeypatch.undo()
    assert serve_ui(tmp_path, "http://me:pass-word@host:5000/?token=pass-key") == 0
    assert "pass-" not in capfd.readouterr().out


def test_the_pages_are_served_and_ctrl_c_leaves_nothing_behind(study: StudyConfig) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    script = (
        "import sys; from pathlib import Path; from moc.tracking.ui import serve_ui\n"
        f"sys.exit(serve_ui(Path({study.runs_dir!r}), port={port}))"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    server = subprocess.Popen(
        [sys.executable, "-c", script],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=environment,
    )
    assert server.stdout is not None
    # a link that never comes must not hang the tests, nor leave MLflow's own process behind
    stop = threading.Timer(120, server.terminate)
    stop.start()
    try:  # the links are printed once the server has answered
        page = f"http://127.0.0.1:{port}/#/experiments/"
        assert any(line.split()[:1] == ["curves"] and page in line for line in server.stdout)
    finally:
        stop.cancel()
        server.send_signal(signal.SIGINT)
    assert server.wait(30) == 0
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)):
                return
        time.sleep(0.1)
    pytest.fail("the server is still there")
