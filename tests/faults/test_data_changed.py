"""Text that was replaced since a run began: refused, and nothing of the study's folder changes."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from moc.store.files import read_json
from tests.conftest import Run
from tests.faults.conftest import run_in
from tests.support.helpers_runs import BOUNDARIES, Moc, check_same, complaint, contents, run_dir
from tests.support.helpers_training import TINY_STUDY

NEVER = {"at": "after step"}  # any training step would kill it
PROBE = """
probes:
  again:
    phase: {tokens: 512, tokens_per_step: 256, context_length: 32, mixture: {extra: 1.0}}
    every_tokens: 256
    num_items: 4
"""


def text(start: int, stop: int) -> str:
    return "".join(
        f"Line {i} says that {i} and {i + 1} make {2 * i + 1}.\n" for i in range(start, stop)
    )


@pytest.fixture(scope="module")
def text_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("text-cache")


@pytest.fixture
def text_moc(tmp_path: Path, text_cache: Path, in_child: Run) -> Moc:
    """As ``moc``, of a study whose second phase reads text; the tokenizer learns from the first
    33 kB of it."""
    study = TINY_STUDY.format(folder=tmp_path).replace("skills: 3.0, people: 1.0", "mine: 1.0")
    study = study.replace("\n    loss_on: assistant", "")
    val = f"validation_path: {tmp_path}/val.txt"
    sources = "".join(
        f"  {name}: {{kind: text, path: {tmp_path}/{name}.txt, {val}}}\n"
        for name in ("mine", "extra")
    )
    (tmp_path / "tiny.yaml").write_text(
        study.replace("phases:\n", f"{sources}phases:\n", 1) + PROBE
    )
    (tmp_path / "mine.txt").write_text(text(0, 2000))
    (tmp_path / "val.txt").write_text(text(5000, 5100))
    (tmp_path / "extra.txt").write_text(text(6000, 6500))
    return lambda *overrides, stop=None: run_in(tmp_path, text_cache, in_child, overrides, stop)


def replace_end(file: Path) -> None:
    """Behind what the tokenizer has seen, in what the run trains on; of the same size."""
    content = file.read_text()
    file.write_text(content[:40_000] + content[40_000:].replace("make", "give"))


@pytest.mark.parametrize("step", [None, 1, 5], ids=["finished", "one step", "a checkpoint"])
def test_a_replaced_file_is_refused(text_moc: Moc, tmp_path: Path, step: int | None) -> None:
    """data changed. Kept: weights and records; a line names the source, and nothing is written."""
    stop = {"at": "after step", "phase": "skills", "step": step} if step else None
    code, log = text_moc(stop=stop)
    assert code == (-signal.SIGKILL if step else 0), log
    old = (tmp_path / "mine.txt").read_text()
    replace_end(tmp_path / "mine.txt")
    before = contents(tmp_path)
    if step == 1:  # nothing was saved of the text yet
        code, log = text_moc()
        assert code == 0, log
        return
    code, log = text_moc()
    assert code == 2, log
    said = complaint(log)
    assert f"data.mine ({tmp_path / 'mine.txt'}) has changed" in said
    assert "arm moc, phase skills" in said and "put the old one back" in said
    assert contents(tmp_path) == before
    (tmp_path / "mine.txt").write_text(old)
    code, log = text_moc(stop=NEVER if step is None else None)
    assert code == 0, log
    code, log = text_moc("name=another")
    assert code == 0, log


def test_a_file_with_another_date_is_the_same(text_moc: Moc, tmp_path: Path) -> None:
    """data changed. Kept: a run whose files have only another date goes on."""
    code, log = text_moc()
    assert code == 0, log
    for name in ("mine.txt", "val.txt", "extra.txt"):
        os.utime(tmp_path / name, (1, 1))
    code, log = text_moc(stop=NEVER)
    assert code == 0, log


def test_other_validation_text_is_scored_anew(text_moc: Moc, tmp_path: Path) -> None:
    """data changed. Kept: no two scores in a table are of two texts; all are made again."""
    code, log = text_moc()
    assert code == 0, log
    weights = [path.read_bytes() for path in sorted(tmp_path.rglob("*.safetensors"))]
    (tmp_path / "val.txt").write_text(text(7000, 7100))
    before = records(tmp_path)
    code, log = text_moc("probes.again.after=[facts]", stop=NEVER | {"phase": "skills", "step": 1})
    assert code == 0, log
    for old, new in zip(before, records(tmp_path), strict=True):
        assert old["bits_per_byte"]["mine"] != new["bits_per_byte"]["mine"]
        assert old["bits_per_byte"]["people"] == new["bits_per_byte"]["people"]
        assert old["eval_hash"] != new["eval_hash"]
    assert [path.read_bytes() for path in sorted(tmp_path.rglob("*.safetensors"))] == weights


def records(folder: Path) -> list[dict[str, Any]]:
    return [read_json(run_dir(folder) / f"boundaries/{name}/evals.json") for name in BOUNDARIES]


def test_a_probe_on_other_text_is_made_again(text_moc: Moc, tmp_path: Path) -> None:
    """data changed. Kept: the run; the probe, which nothing goes on from, is made again."""
    code, log = text_moc()
    assert code == 0, log
    file = run_dir(tmp_path) / "probes/again/2-skills/probe.json"
    before = read_json(file)
    (tmp_path / "extra.txt").write_text(text(8000, 8500))
    code, log = text_moc(stop={"at": "after step", "phase": "skills", "step": 1})
    assert code == 0, log
    after = read_json(file)
    assert after["config_hash"] != before["config_hash"]
    assert after["points"][0]["tasks"] == before["points"][0]["tasks"]
    assert after["points"][-1] != before["points"][-1]


def test_text_that_the_tokenizer_learned_from(text_moc: Moc, tmp_path: Path) -> None:
    """data changed. Kept: weights and records; a line names the source."""
    code, log = text_moc(stop={"at": "after step", "phase": "facts", "step": 4})
    (tmp_path / "mine.txt").write_text(text(0, 2000).replace("says", "told"))
    before = contents(tmp_path)
    code, log = text_moc()
    assert code == 2, log
    said = complaint(log)
    assert "was trained with another tokenizer" in said and "data.mine (" in said
    assert "put the old one back" in said and contents(tmp_path) == before


def test_a_tokenizer_that_was_replaced(text_moc: Moc, tmp_path: Path) -> None:
    """data changed. Kept: weights and records; a line names the tokenizer's path."""
    code, log = text_moc(stop={"at": "after step", "phase": "facts", "step": 1})
    own = tmp_path / "tokenizer"
    (tmp_path / "runs/tiny/tokenizer").rename(own)
    option = f"tokenizer.path={own}"
    code, log = text_moc(option, "name=own", stop={"at": "after step", "phase": "facts", "step": 4})
    assert code == -signal.SIGKILL, log
    config, file = own / "tokenizer_config.json", own / "tokenizer.json"
    settings, tokenizer = json.loads(config.read_text()), json.loads(file.read_text())
    vocab = tokenizer["model"]["vocab"]
    *_, one, other = vocab
    vocab[one], vocab[other] = vocab[other], vocab[one]
    file.write_text(json.dumps(tokenizer))
    del settings["saved_by"]  # somebody else's, as far as anyone can tell
    config.write_text(json.dumps(settings))
    code, log = text_moc(option, "name=own")
    assert code == 2, log
    assert f"tokenizer.path {own} has changed" in complaint(log)
    file.write_text("{")
    code, log = text_moc(option, "name=own")
    assert code == 2, log
    assert f"tokenizer.path '{own}' cannot be loaded" in complaint(log)


def test_a_file_replaced_while_the_study_runs(text_moc: Moc, tmp_path: Path) -> None:
    """data changed. Kept: the phases before; the phase that would read other text is refused."""
    other = text(0, 2000).replace("make", "give")
    change = {"file": str(tmp_path / "mine.txt"), "text": other, "phase": "facts", "step": 2}
    code, log = text_moc(stop={"at": "replace file", **change})
    assert code == 2, log
    said = complaint(log)
    assert "arm moc, phase skills: since the start, data.mine" in said
    assert not (run_dir(tmp_path) / "boundaries/2-skills").exists()
    (tmp_path / "mine.txt").write_text(text(0, 2000))
    code, log = text_moc()
    assert code == 0, log


def test_the_tiny_study_remembers_its_data(
    moc: Moc, tmp_path: Path, undisturbed: dict[str, Any]
) -> None:
    """Generated data too: they may be others in another version of the code."""
    assert moc(stop={"at": "after step", "phase": "facts", "step": 7})[0] == -signal.SIGKILL
    folder = run_dir(tmp_path) / "checkpoints/facts-00000006"
    datasets = read_json(tmp_path / "runs/tiny/datasets.json")
    assert read_json(folder / "manifest.json")["data"] == datasets["facts"]
    assert moc()[0] == 0
    check_same(tmp_path, undisturbed)
    manifest = read_json(run_dir(tmp_path) / "boundaries/2-skills/manifest.json")
    assert manifest["data"] == datasets["skills"]
