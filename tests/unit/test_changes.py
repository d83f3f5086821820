"""docs/changes.md: its diffs apply, touch as few files as it says, and do what it says."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/changes.md").read_text()
# Files to edit at the most, tests not counted; what is not here needs no bound.
MOST_FILES = {
    "A mixing mode": 3,
    "A data source": 3,
    "A schedule": 2,
    "A metric, to MLflow and the report": 3,
    "An lm-eval task": 0,
    "A figure": 2,
    "A control": 3,
    "A verb": 2,
    "An optimizer group": 3,
    "A preset": 2,
    "A kind of memory": 3,
}


class Change(NamedTuple):
    title: str
    text: str
    diff: str
    program: str  # a test of what the change does
    beside: dict[str, str]  # files of the user's own, by path: their text

    @property
    def files(self) -> list[str]:
        return re.findall(r"^\+\+\+ b/(\S+)$", self.diff, re.MULTILINE)

    @property
    def slug(self) -> str:
        return re.sub(r"\W+", "_", self.title.lower())


def read_changes() -> list[Change]:
    found = []
    for section in re.split(r"^## ", PAGE, flags=re.MULTILINE)[1:]:
        title, _, text = section.partition("\n")
        diff = "".join(re.findall(r"```diff\n(.*?)```", text, re.DOTALL))
        program = "\n\n".join(re.findall(r"```python\n(.*?)```", text, re.DOTALL))
        beside = dict(re.findall(r"```(?:yaml|jsonl) (\S+)\n(.*?)```", text, re.DOTALL))
        found.append(Change(title.strip(), text, diff, program, beside))
    return found


CHANGES = read_changes()


def test_the_page_shows_the_typical_changes() -> None:
    assert [change.title for change in CHANGES] == list(MOST_FILES)
    assert all(change.program for change in CHANGES)


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.title)
def test_a_change_takes_few_files_and_a_few_lines(change: Change, tmp_path: Path) -> None:
    files = [file for file in change.files if not file.startswith("tests/")]
    assert len(files) == len(set(files)) <= MOST_FILES[change.title]
    number = re.search(r"^\*\*(\d+) files?\*\*", change.text, re.MULTILINE)
    assert number and int(number[1]) == len(files), "the section begins with '**n files**'"
    added = [line for line in change.diff.splitlines() if re.match(r"\+(?!\+\+)", line)]
    assert len(added) <= 60
    if change.diff:
        copy_sources(tmp_path)
        apply(change, tmp_path)


def test_they_do_what_they_say(tmp_path: Path) -> None:
    """All of them in one tree: then they also do not get into one another's way."""
    copy_sources(tmp_path)
    for change in CHANGES:
        if change.diff:
            apply(change, tmp_path)
        (tmp_path / f"test_{change.slug}.py").write_text(change.program)
        for name, content in change.beside.items():
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).write_text(content)
    command = [sys.executable, "-m", "pytest", "-c", str(tmp_path / "pyproject.toml")]
    command += ["--rootdir", str(tmp_path)]
    environment = os.environ | {"PYTHONPATH": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [*command, *(str(path) for path in tmp_path.glob("test_*.py"))],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert f"{len(CHANGES)} passed" in done.stdout


def copy_sources(folder: Path) -> None:
    """With their bytecode: making it takes seconds, and Python sees which file is newer."""
    for name in ("moc", "evals", "experiments", "tests/support"):
        shutil.copytree(ROOT / name, folder / name)
    shutil.copy(ROOT / "pyproject.toml", folder)


def apply(change: Change, folder: Path) -> None:
    """Line numbers move as the code does: the diffs have none that count, only their context."""
    command = ["git", "apply", "--recount"]
    # one by one: a recount takes the head of the next file for a line that goes
    for number, diff in enumerate(re.split(r"^(?=--- )", change.diff, flags=re.MULTILINE)[1:]):
        file = folder / f"{change.slug}-{number}.diff"
        file.write_text(diff)
        command.append(str(file))
    environment = os.environ | {"GIT_CEILING_DIRECTORIES": str(folder.parent)}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, f"{change.title}: {done.stderr}"
