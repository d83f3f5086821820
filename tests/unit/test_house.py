"""The rules of the house: who may import whom, how large a file may be, what a folder says."""

from __future__ import annotations

import ast
import re
import shutil
import statistics
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CONTRACTS = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
LAYERS: list[str] = CONTRACTS["contracts"][0]["layers"]
SOURCES = [path for name in ("moc", "evals") for path in (ROOT / name).rglob("*.py")]


def lint_imports(root: Path) -> subprocess.CompletedProcess[str]:
    command = [Path(sys.executable).with_name("lint-imports"), "--no-cache"]
    environment = {"PYTHONPATH": str(root), "PATH": "/usr/bin:/bin"}
    return subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True)


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    for name in ("moc", "evals"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("file", "line", "complaint"),
    [
        (
            "moc/store/files.py",
            "import moc.train.fit",
            "moc.store is not allowed to import moc.train",
        ),
        ("moc/ops/norm.py", "import omegaconf", "moc.ops is not allowed to import omegaconf"),
        ("moc/report/page.py", "import mlflow", "moc is not allowed to import mlflow"),
        ("moc/plan/flops.py", "import lightning", "moc is not allowed to import lightning"),
        ("evals/statistics/savings.py", "import torch", "not allowed to import torch"),
        ("moc/store/manifest.py", "import moc.store.rundir", "cycl"),
    ],
    ids=["upward", "model", "mlflow", "lightning", "statistics", "circle"],
)
def test_an_import_against_the_rules_fails(
    copy: Path, file: str, line: str, complaint: str
) -> None:
    text = (copy / file).read_text()
    (copy / file).write_text(f"{text}\n\ndef _later() -> None:\n    {line}  # hidden\n")
    found = lint_imports(copy)
    assert found.returncode and complaint in found.stdout, found.stdout[-3000:]


def test_the_contract_is_about_every_room() -> None:
    rooms = {f"moc.{path.stem}" for path in (ROOT / "moc").iterdir() if is_room(path)}
    rooms |= {f"evals.{path.stem}" for path in (ROOT / "evals").iterdir() if is_room(path)}
    assert rooms == set(LAYERS)


def is_room(path: Path) -> bool:
    if path.is_dir():
        return (path / "__init__.py").is_file()
    return path.suffix == ".py" and path.stem != "__init__"


def test_every_folder_says_what_comes_in_and_what_goes_out() -> None:
    folders = {path.parent for path in SOURCES}
    for folder in folders - {ROOT / "moc", ROOT / "evals"}:
        text = ast.get_docstring(ast.parse((folder / "__init__.py").read_text()))
        assert text and "In:" in text and "Out:" in text, folder


def test_files_are_read_at_one_sitting() -> None:
    lengths = {path: len(path.read_text().splitlines()) for path in SOURCES}
    assert max(lengths.values()) <= 300, max(lengths, key=lambda path: lengths[path])
    assert statistics.median(lengths.values()) <= 150
    assert sum(path.parent == ROOT / "moc" for path in SOURCES) <= 7
    for path in (ROOT / "tests").rglob("*.py"):
        assert len(path.read_text().splitlines()) <= 400, path


def test_the_drawing_shows_the_imports() -> None:
    """Of the arrows that imports make, those that do not follow from others."""
    page = (ROOT / "docs/architecture.md").read_text()
    (drawing,) = re.findall(r"```mermaid\n(.*?)```", page, re.DOTALL)
    drawn = set(re.findall(r"^ *(\S+) --> (\S+)$", drawing, re.MULTILINE))
    expected = reduced(set(room_imports()))
    lines = "\n".join(f"  {a} --> {b}" for a, b in sorted(expected, key=by_layer))
    assert drawn == expected, f"docs/architecture.md should draw\n{lines}"
    for room in LAYERS:
        assert f"`{room}`" in page, f"docs/architecture.md says nothing of {room}"


def by_layer(arrow: tuple[str, str]) -> tuple[int, int]:
    return LAYERS.index(arrow[0]), LAYERS.index(arrow[1])


def room_imports() -> Iterator[tuple[str, str]]:
    for path in SOURCES:
        importer = room_of(".".join(path.relative_to(ROOT).with_suffix("").parts))
        for node in ast.walk(ast.parse(path.read_text())):
            names = []
            if isinstance(node, ast.ImportFrom) and node.module:
                names = [f"{node.module}.{alias.name}" for alias in node.names]
            elif isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            for imported in (room_of(name) for name in names):
                if importer and imported and importer != imported:
                    yield importer, imported


def room_of(module: str) -> str | None:
    return next((room for room in LAYERS if f"{module}.".startswith(f"{room}.")), None)


def reduced(arrows: set[tuple[str, str]]) -> set[tuple[str, str]]:
    """The smallest set of arrows with the same ways (there are no circles)."""

    def ways(room: str) -> set[str]:
        direct = {below for above, below in arrows if above == room}
        return direct.union(*(ways(below) for below in direct))

    return {
        (above, below)
        for above, below in arrows
        if not any(
            below in ways(other) for start, other in arrows if start == above and other != below
        )
    }
