"""The command line: quick to ask, one line and exit code 2 for what cannot be used."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from moc.cli import main

ROOT = Path(__file__).parents[2]
STUDY = """
name: words
model: {preset: tiny}
data: {people: {kind: facts}}
phases: {pretrain: {mixture: {people: 1}}, ift: {mixture: {people: 1}, tokens: 500_000}}
arms: {moc: {}, dense: {model: {memory: null}, iso_flop: {target: moc}}}
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "study.yaml").write_text(STUDY)
    return tmp_path


def moc(*words, cwd=ROOT, python_options=()):
    command = [sys.executable, *python_options, "-m", "moc", *words]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(
        command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=60, check=False
    )


def test_help_comes_in_under_a_second():
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        done = moc("--help")
        seconds.append(time.perf_counter() - start)
        assert done.returncode == 0
        verbs = {"plan", "run", "eval", "leakage", "generate", "report", "compare", "fit", "ui"}
        assert verbs <= set(done.stdout.split())
    assert min(seconds) < 1.0, seconds


@pytest.mark.parametrize("words", [("--help",), ("run", "--help"), ("--version",)])
def test_help_imports_nothing_heavy(words):
    done = moc(*words, python_options=["-X", "importtime"])
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert done.returncode == 0 and "moc.cli" in imported
    packages = {name.partition(".")[0] for name in imported}
    assert packages.isdisjoint({"torch", "numpy", "omegaconf", "mlflow", "lightning", "lm_eval"})


@pytest.mark.parametrize("mistake", ["modl.dim=3", "model.dim=-3", "evals.tasks=[facts_chioce]"])
def test_a_mistyped_setting_is_answered_without_torch(mistake):
    """Which takes seconds."""
    command = ["run", "experiments/quickstart.yaml", mistake]
    done = moc(*command, python_options=["-X", "importtime"])
    assert done.returncode == 2 and mistake.partition(".")[0] in done.stderr.splitlines()[-1]
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "omegaconf" in imported and imported.isdisjoint({"torch", "lm_eval", "mlflow"})


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["plan", "study.yaml", "modl.dim=3"], "unknown key 'modl'; did you mean 'model'?"),
        (["plan", "study.yaml", "model.dim=wide"], "model.dim: Value 'wide'"),
        (["plan", "study.yaml", "phases.ifft.tokens=3"], "no phase 'ifft'; did you mean 'ift'?"),
        (["run", "study.yaml", "arms.mc.model.dim=8"], "no arm 'mc'; did you mean 'moc'?"),
        (["run", "study.yaml", "model.dim=30"], "does not divide model.dim 30"),
        (["plan", "studdy.yaml"], "studdy.yaml: no such study file; did you mean 'study.yaml'?"),
        (["plan", "study.yaml", "--jsn"], "'--jsn' is no option of 'moc plan'"),
        (["plan", "study.yaml", "--like", "nowhere"], "no 'nowhere' in "),
        (["plan", "study.yaml", "--like", "study.yaml"], "no run of this study has begun yet"),
        (["eval", "nowhere"], "no 'nowhere' in "),
        (["eval", "nowhere", "model.dim=3"], "the model is trained; only evals.<key>"),
        (["report", "nowhere"], "no 'nowhere' in "),
        (["compare", "study.yaml"], "no boundary of this study has been evaluated yet"),
        (["report", "study.yaml"], "no run of this study has begun yet"),
        (["compare", "nowhere", "study.yaml"], "no 'nowhere' in "),
        (["leakage", "nowhere"], "no 'nowhere' in "),
        (["tune", "study.yaml"], "this study has no tuning.axes; name what to try"),
        (["leakage", "study.yaml"], "study.yaml holds no model"),
        (["generate", "nowhere", "--prompt", "x"], "no 'nowhere' in "),
    ],
)
def test_a_mistake_is_answered_in_one_line_and_nothing_is_written(folder, capsys, words, said):
    assert main(words) == 2
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.startswith("moc: ") and said in printed.err
    assert printed.err.count("\n") == 1 and printed.err.endswith("\n")
    assert [path.name for path in folder.iterdir()] == ["study.yaml"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["plann", "study.yaml"], "invalid choice: 'plann'"),
        ([], "VERB"),
        (["plan"], "study"),
        (["generate", "nowhere"], "--prompt"),
        (["run", "study.yaml", "--seeds", "one"], "'one'"),
        (["eval", "nowhere", "--route-on", "answer"], "'answer'"),
        (["leakage", "nowhere", "--windows", "few"], "'few'"),
        (["plan", "study.yaml", "--detect", "0"], "0 is not above 0"),
    ],
)
def test_a_wrong_verb_or_argument_ends_with_code_2(folder, capsys, words, said):
    with pytest.raises(SystemExit) as caught:
        main(words)
    assert caught.value.code == 2
    printed = capsys.readouterr()
    assert printed.out == "" and said in printed.err.splitlines()[-1]
    assert [path.name for path in folder.iterdir()] == ["study.yaml"]


def test_the_installed_command_shows_no_traceback(folder):
    done = moc("plan", "study.yaml", "model.memory.chapters.mixing=joit", cwd=folder)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "moc: command line: model.memory.chapters.mixing cannot be 'joit'; did you mean 'joint'?\n"
    )


def test_plan_as_json_has_the_documented_keys_and_no_others(folder, capsys):
    """Scripts read it."""
    assert main(["plan", "study.yaml", "--json", "phases.ift.tokens=250_000"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert set(plan) == {"study", "arms", "power", "demand"} and plan["study"] == "words"
    assert list(plan["arms"]) == ["moc", "dense"]
    for arm in plan["arms"].values():
        memory = arm.pop("memory")
        assert memory is None or memory["kind"] == "chapters"
        assert (type(arm.pop("scope")), type(arm.pop("causal"))) == (str, bool)
        assert [type(arm.pop(f"{what}_bytes")) for what in ("state", "activation")] == [int, int]
        assert {key: set(value) for key, value in arm.items()} == {
            "parameters": {"total", "trainable", "backbone", "memory_layers", "bank"},
            "flops": {"paper_forward_per_sequence", "hardware_train_per_token", "paper_train"},
            "iso_flop": {"target", "relative_error"},
            "iso_param": {"target", "relative_error"},
            "steps": {"pretrain", "ift"},
        }
        assert arm["steps"] == {"pretrain": 122, "ift": 30}
    moc_arm, dense = plan["arms"].values()
    assert moc_arm["iso_flop"] == {"target": None, "relative_error": None}
    assert dense["iso_flop"]["target"] == "moc"
    assert abs(dense["iso_flop"]["relative_error"]) <= 0.005
    (loss,) = plan["power"].pop("differences")  # the study has no tasks
    assert plan["power"] == {"power": 0.8, "level": 0.05, "variances": "defaults"}
    assert loss.pop("wanted") > 0 and loss.pop("seeds_needed") > 3
    assert loss == {
        "name": "loss",
        "unit": "bits per token",
        "counted": "windows",
        "number": 32,
        "detectable": None,  # of one seed
    }


def test_plan_fails_when_an_iso_flop_arm_is_beyond_its_tolerance(folder, capsys):
    words = ["plan", "study.yaml", "arms.dense.iso_flop.solve=false"]
    assert main(words) == 1
    printed = capsys.readouterr()
    assert printed.err.startswith("moc: dense: training FLOPs per token are -")
    assert printed.err.count("\n") == 1
    assert "dense" in printed.out  # the plan is shown all the same
    assert main([*words, "arms.dense.iso_flop.tolerance=0.9"]) == 0


def test_plan_writes_nothing(folder, capsys):
    assert main(["plan", "study.yaml"]) == 0
    assert [path.name for path in folder.iterdir()] == ["study.yaml"]
    assert "segment of 32" in capsys.readouterr().out
