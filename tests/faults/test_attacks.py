"""Files that were made to do harm: they are refused in one line, and nothing in them is run."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

from moc.cli import main
from moc.data.tokenizer import Tokenizer
from moc.errors import ConfigError
from moc.store.manifest import read_manifest, write_manifest
from tests.support.fake_tasks import ITEMS, write_lines, write_task
from tests.support.helpers_runs import Moc, check_same, complaint, run_dir
from tests.support.helpers_training import TINY_STUDY, write_tiny_study

# YAML

LAUGHS = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 10)
)
STUDY = TINY_STUDY.format(folder="never")
ATTACKS = {
    "object": STUDY + "description: !!python/object/apply:os.mkdir [ran]\n",
    "name": STUDY + "description: !!python/name:os.system\n",
    "module": STUDY + "description: !!python/module:antigravity\n",
    "laughs": LAUGHS + STUDY,
    "laughs merged": "a: &a {b: &b {c: 1}}\n<<: [*a, *a, *b]\n" + STUDY,
    "itself": STUDY + "seeds2: &a [*a]\n",
    "deep": "a: " + "[" * 50_000 + "]" * 50_000,
    "deep mappings": "arms: " + "{a: " * 500 + "1" + "}" * 500,
    "as deep as Python": STUDY + "x: " + "[" * 120 + "]" * 120,
    "a key twice": STUDY + "name: other\n",
    "a cycle": STUDY.replace("name: tiny", "name: ${description}\ndescription: ${name}"),
    "a cycle of numbers": STUDY.replace("  dim: 32", "  dim: ${model.dim}"),
    "nested interpolations": STUDY + "description: " + "${" * 300 + "name" + "}" * 300,
    "another resolver": STUDY + "description: ${eval:1+1}\n",
    "ten megabytes": "x" * 10_000_000,
    "ten megabytes of keys": "".join(f"k{n}: {n}\n" for n in range(600_000)),
    "NUL": STUDY + "\0",
    "NUL, escaped": STUDY + 'description: "a\\0b"\n',
    "UTF-16": STUDY.encode("utf-16"),
    "Latin-1": STUDY.encode() + b"description: \xe9\n",
    "two documents": STUDY + "---\n" + STUDY,
    "a list for a key": STUDY + "? [a]\n: 1\n",
    "_instantiator": STUDY + "_instantiator: os.mkdir\n_class_path: os.mkdir\n",
    "_instantiator in an arm": STUDY.replace("moc: {}", "moc: {_instantiator: os.mkdir}"),
    "_target_ in a model": STUDY.replace("  dim: 32", "  _target_: os.mkdir\n  dim: 32"),
    "extends another file": "extends: /etc/passwd\n",
    "extends nothing": 'extends: "\\0"\n',
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_a_study_that_was_made_to_do_harm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], attack: str
) -> None:
    """YAML attacks. Kept: a study builds no object, expands without bound in no way and ends in one
    line at once; nothing is written."""
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    content = ATTACKS[attack]
    path = tmp_path / "study.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    assert main(["plan", str(path)]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("moc: ") and len(err.splitlines()) == 1
    assert len(err) < 600
    assert not list(Path.cwd().iterdir())


def test_a_byte_order_mark_does_no_harm(tmp_path: Path) -> None:
    path = write_tiny_study(tmp_path)
    path.write_text(path.read_text(), encoding="utf-8-sig")
    assert main(["plan", str(path), "--json"]) == 0


# checkpoints


class Runs:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.folder),)


def malicious(kind: str, state: dict[str, Any], ran: Path) -> bytes | dict[str, Any]:
    match kind:
        case "the whole file":
            return pickle.dumps(Runs(ran))
        case "a part of it":
            return {**state, "callbacks": {"use": Runs(ran)}}
        case _:
            return {**state, "model": {**state["model"], "extra": [Runs(ran)]}}


def test_the_pickles_would_run_if_they_were_loaded(tmp_path: Path) -> None:
    pickle.loads(pickle.dumps(Runs(tmp_path / "ran")))
    assert (tmp_path / "ran").is_dir()


@pytest.mark.parametrize("kind", ["the whole file", "a part of it", "among the weights"])
def test_a_checkpoint_that_runs_code_when_it_is_loaded(moc: Moc, tmp_path: Path, kind: str) -> None:
    """malicious pickles. Kept: nothing of them is run, in place of a checkpoint or in a part of it;
    one line says which file it is."""
    moc(stop={"at": "after step", "phase": "facts", "step": 4})
    folder, ran = run_dir(tmp_path) / "checkpoints/facts-00000003", tmp_path / "ran"
    path = folder / "training.pt"
    spoiled = malicious(kind, torch.load(path, weights_only=True), ran)
    if isinstance(spoiled, bytes):
        path.write_bytes(spoiled)
    else:
        torch.save(spoiled, path)
    sign(folder)
    code, log = moc()
    assert code == 1, log
    assert f"{path} is no checkpoint of ours" in complaint(log)
    assert "nothing of it was run" in complaint(log)
    assert not ran.exists()


def test_pickles_beside_a_checkpoint_are_not_looked_at(
    moc: Moc, tmp_path: Path, undisturbed: dict[str, Any]
) -> None:
    """malicious pickles; _instantiator in a checkpoint. Kept: what no file of ours has is ignored:
    the run goes on to the same weights."""
    moc(stop={"at": "after step", "phase": "facts", "step": 4})
    folder, ran = run_dir(tmp_path) / "checkpoints/facts-00000003", tmp_path / "ran"
    for name in (".metadata", "__0_0.distcp", "data.pkl"):  # of a sharded checkpoint, of torch's
        (folder / name).write_bytes(pickle.dumps(Runs(ran)))
    path = folder / "training.pt"
    state = torch.load(path, weights_only=True)
    hyper = {"_instantiator": "os.mkdir", "_class_path": "os.mkdir", "path": str(ran)}
    more = {"hyper_parameters": hyper, "datamodule_hyper_parameters": hyper}
    torch.save({**state, **more, "pytorch-lightning_version": "2.6.6"}, path)
    sign(folder)
    code, log = moc()
    assert code == 0, log
    assert not ran.exists()
    check_same(tmp_path, undisturbed)


def sign(folder: Path) -> None:
    """A manifest that fits: whoever can write the files can write it, too."""
    facts = {k: v for k, v in read_manifest(folder).items() if k not in ("format", "sha256")}
    (folder / "manifest.json").unlink()
    write_manifest(folder, **facts)


# code from elsewhere


def test_a_task_that_names_a_function(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """remote code and !function. Kept: code that a task or a tokenizer names is not run, unless
    `evals.allow_task_code` says so for tasks."""
    tasks, ran = tmp_path / "tasks", tmp_path / "ran"
    tasks.mkdir()
    write_lines(tasks / "items.jsonl", ITEMS)
    write_task(tasks, "quiz", more="doc_to_text: !function code.ask\n")
    (tasks / "code.py").write_text(f"import os\nos.mkdir({str(ran)!r})\ndef ask(doc): return ''\n")
    path = write_tiny_study(tmp_path)
    words = [f"evals.task_paths=[{tasks}]", "evals.tasks=[quiz]"]
    assert main(["run", str(path), *words]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "evals.allow_task_code" in err
    assert not ran.exists() and not (tmp_path / "runs").exists()


def test_a_tokenizer_that_brings_code(tmp_path: Path) -> None:
    """remote code and !function. Kept: code that a task or a tokenizer names is not run, unless
    `evals.allow_task_code` says so for tasks."""
    folder, ran = tmp_path / "tokenizer", tmp_path / "ran"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "none", "auto_map": {"AutoConfig": "a.B"}}')
    (folder / "tokenizer_config.json").write_text(
        '{"tokenizer_class": "B", "auto_map": {"AutoTokenizer": ["a.B", "a.B"]}}'
    )
    (folder / "a.py").write_text(f"import os\nos.mkdir({str(ran)!r})\nclass B: pass\n")
    with pytest.raises(ConfigError, match=r"tokenizer.path .* cannot be loaded") as caught:
        Tokenizer.load(folder)
    assert "\n" not in str(caught.value) and not ran.exists()
