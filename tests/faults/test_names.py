"""Names become folders, files and metrics: what would meet something else there is refused before
anything is trained."""

from __future__ import annotations

from pathlib import Path

import pytest

import moc.study
from evals.scoring.known_names import our_names
from evals.scoring.local_tasks import task_names
from moc.cli import main
from moc.config.data import SourceConfig
from moc.config.names import check_folders, check_names
from moc.config.schema import ArmConfig, PhaseConfig, ProbeConfig, StudyConfig
from moc.errors import ConfigError
from moc.store.files import PARTIAL
from moc.store.rundir import ON_ANSWER, START, TRAINED
from tests.support.child_tasks import NoTracker
from tests.support.helpers_training import write_tiny_study


def study(**sections: list[str]) -> StudyConfig:
    names = {"arms": ["moc"], "phases": ["one", "two"], "data": ["people"], "probes": []} | sections
    return StudyConfig(
        name="words",
        arms={name: ArmConfig() for name in names["arms"]},
        phases={name: PhaseConfig() for name in names["phases"]},
        data={name: SourceConfig() for name in names["data"]},
        probes={name: ProbeConfig() for name in names["probes"]},
    )


def refusal(config: StudyConfig) -> str:
    with pytest.raises(ConfigError) as caught:
        check_names(config)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_names_that_do_no_harm() -> None:
    """One word may name a phase and a source, an arm and a study."""
    check_names(study(arms=["final", "words", "people"], phases=["people", "final", "a.b"]))
    check_names(study(data=["trained", "fuller", "start", "eval"], probes=["moc", "relearn"]))


@pytest.mark.parametrize(
    ("section", "name", "words"),
    [
        ("phases", START, f"phases.{START}: '{START}' is taken: that is the boundary before the"),
        ("phases", "Start", "is taken: that is the boundary before the first phase"),
        ("phases", "previous", "is taken: evals.controls.bank_swap means something else by it"),
        ("phases", "all", "is taken: evals.controls.bank_swap means something else by it"),
        ("phases", "eval", "is taken: metrics that begin with it are no phase's"),
        ("phases", "memory", "is taken: metrics that begin with it are no phase's"),
        ("phases", "system", "is taken: metrics that begin with it are no phase's"),
        ("data", ON_ANSWER[1:], "give the source another name; a task with that end is"),
        ("data", f"a{ON_ANSWER}", "give the source another name; a task with that end is"),
        ("data", f"people{TRAINED}", "give the source another name; losses with that end"),
        ("probes", "two", "probes.two: 'two' is taken: a phase has it"),
        ("arms", f"moc{PARTIAL}", "cannot name a study, arm, phase, data source or probe; use"),
        ("phases", f"one{PARTIAL}", "cannot name a study, arm, phase"),
        ("arms", "x" * 300, "arms: xxxxxxxxxxxxxxxxxxxx... is a name of 300 bytes; 100 is the"),
        ("data", "é" * 60, "is a name of 120 bytes; 100 is the most"),
    ],
)
def test_a_name_that_means_something_else(section: str, name: str, words: str) -> None:
    """duplicate names. Kept: a name that would meet another one's folder, file or metric is refused
    before anything is trained."""
    assert words in refusal(study(**{section: ["one", name] if section == "phases" else [name]}))


@pytest.mark.parametrize("section", ["arms", "phases", "data", "probes"])
def test_names_that_differ_by_case_alone(section: str) -> None:
    assert f"{section}: 'Facts' and 'facts' differ only by case" in refusal(
        study(**{section: ["Facts", "facts"]})
    )


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("mlflow.db", "name: 'mlflow.db' is taken"),
        ("MLartifacts", "is taken: runs_dir and MLflow have something else of that name"),
        ("Default", "is taken: runs_dir and MLflow"),
        ("cache", "name 'cache' makes runs/cache the study's folder, which is the cache's too"),
    ],
)
def test_a_study_named_like_something_beside_it(name: str, words: str) -> None:
    config = study()
    config.name = name
    assert words in refusal(config)


def test_probes_whose_figures_would_share_a_file() -> None:
    config = study(phases=["z", "y_z"], probes=["x", "x_y"])
    config.probes["x"].after, config.probes["x_y"].after = ["y_z"], ["z"]
    words = "probes.x_y after 'z' and probes.x after 'y_z' would share the name of a figure"
    assert words in refusal(config)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("LD_PRELOAD", "LD_PRELOAD decides which code a program loads, which no study may"),
        ("PYTHONPATH", "PYTHONPATH decides which code a program loads"),
        ("PATH", "PATH decides which code a program loads"),
        ("A=B", "'A=B' is no variable"),
        ("", "'' is no variable"),
    ],
)
def test_variables_that_a_study_may_not_set(name: str, words: str) -> None:
    config = study()
    config.launch.environment = {"NCCL_DEBUG": "INFO", "OMP_PROC_BIND": "true"}
    check_names(config)
    config.launch.environment[name] = "1"
    assert words in refusal(config)


@pytest.mark.parametrize("name", ["../up", "/tmp/x", "a/b", "..", ".hidden", "a\\b", "", "a b"])
@pytest.mark.parametrize("section", ["name", "arms", "phases", "data", "probes"])
def test_a_name_leads_nowhere_else(section: str, name: str) -> None:
    """path traversal. Kept: names of studies, arms, phases, sources, probes and tasks lead to no
    other folder."""
    config = study() if section == "name" else study(**{section: [name]})
    if section == "name":
        config.name = name
    assert "cannot name a study, arm, phase" in refusal(config)


@pytest.mark.parametrize("task", ["../facts_choice", "/etc/passwd", "facts_choice.../../x", "a/b"])
def test_a_tasks_name_leads_nowhere_else(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], task: str
) -> None:
    """path traversal. Kept: names of studies, arms, phases, sources, probes and tasks lead to no
    other folder."""
    path = write_tiny_study(tmp_path)
    assert main(["run", str(path), f"evals.tasks=[{task}]"]) == 2
    assert capsys.readouterr().err.startswith("moc: evals.tasks: ")
    assert not (tmp_path / "runs").exists()


def test_an_unknown_task_is_answered_with_the_nearest(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """From a list: to index lm-eval's own files takes 16 to 30 s."""
    monkeypatch.setattr("evals.scoring.hub.all_names", None)
    path = write_tiny_study(tmp_path)
    for verb in ("plan", "run"):
        assert main([verb, str(path), "evals.tasks=[facts_choice,hellaswagg]"]) == 2
        out, err = capsys.readouterr()
        assert err == "moc: evals.tasks: no task 'hellaswagg'; did you mean 'hellaswag'?\n"
        assert out == ""
    assert not (tmp_path / "runs").exists()
    assert our_names() == sorted(task_names())


@pytest.mark.parametrize("key", ["runs_dir", "cache_dir"])
def test_a_file_where_a_folder_should_be(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    monkeypatch.setattr(moc.study, "Tracker", NoTracker)
    (tmp_path / "file").write_text("mine")
    for place in (tmp_path / "file", tmp_path / "file" / "deeper"):
        assert main(["run", str(write_tiny_study(tmp_path)), f"{key}={place}"]) == 2
        assert capsys.readouterr().err == (
            f"moc: {key}: {tmp_path / 'file'} is a file, not a folder; name another place\n"
        )
    assert not (tmp_path / "runs").exists() and not (tmp_path / "cache").exists()
    check_folders(StudyConfig(name="words", runs_dir=str(tmp_path / "new" / "deeper")))


def test_a_gpu_that_is_absent(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_tiny_study(tmp_path)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    assert main(["run", str(path), "trainer.accelerator=gpu"]) == 2
    assert capsys.readouterr().err == (
        "moc: trainer.accelerator is gpu, but there is no GPU here; use auto or cpu\n"
    )
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    assert main(["run", str(path), "trainer.accelerator=gpu", "trainer.devices=3"]) == 2
    assert capsys.readouterr().err == "moc: trainer.devices 3 is more than the 2 GPUs here\n"
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    "argv",
    [
        ["generate", "x", "--prompt", "a", "--max-new-tokens", "-1"],
        ["generate", "x", "--prompt", "a", "--top-p", "7"],
        ["generate", "x", "--prompt", "a", "--temperature", "nan"],
        ["generate", "x", "--prompt", "a", "--seed", "9" * 30],
        ["leakage", "x", "--windows", "0"],
        ["run", "x", "--seeds", "99999999999999999999"],
        ["run", "x", "--seeds", "1,x"],
        ["ui", "--port", "99999999"],
        ["ui", "--port", "1" * 5000],
    ],
    ids=lambda argv: f"{argv[-2]}={argv[-1][:8]}",
)
def test_numbers_of_options_have_ranges(
    capsys: pytest.CaptureFixture[str], argv: list[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(argv)
    err = capsys.readouterr().err
    assert ended.value.code == 2 and err.count("\n") == 1
    assert err.startswith(f"moc: argument {argv[-2]}: ") and len(err) < 200
