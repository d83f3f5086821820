"""What ``make setup`` installs is what the locks name, file by file."""

from __future__ import annotations

import itertools
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.support.lock import CUDA_LOCK, LOCK, ROOT, versions

PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
ASKED = [
    Requirement(text)
    for text in [
        *PYPROJECT["project"]["dependencies"],
        *itertools.chain(*PYPROJECT["project"]["optional-dependencies"].values()),
    ]
]


@pytest.mark.parametrize("requirement", ASKED, ids=str)
def test_the_lock_has_what_pyproject_asks_for(requirement: Requirement) -> None:
    assert versions(LOCK)[canonicalize_name(requirement.name)] in requirement.specifier


def test_every_pin_has_hashes() -> None:
    for file in (LOCK, CUDA_LOCK):
        entries = re.split(r"\n(?=\S)", file.read_text().strip())[1:]  # after the comment
        assert len(entries) == len(versions(file)) > 10
        for entry in entries:
            first, *hashes = [line.strip(" \\") for line in entry.split("\n")]
            assert re.fullmatch(r"[a-z0-9.-]+==[^\s;]+( ; .*)?", first), first
            assert hashes and all(re.fullmatch(r"--hash=sha256:[0-9a-f]{64}", h) for h in hashes)


def test_nothing_that_is_installed_came_from_elsewhere() -> None:
    """What this environment's packages need, down to the last one, is pinned and installed so."""
    pins, open_names, seen = versions(), {r.name for r in ASKED}, set[str]()
    while open_names:
        name = canonicalize_name(open_names.pop())
        if name in seen:
            continue
        seen.add(name)
        try:
            installed = distribution(name)
        except PackageNotFoundError:  # of another platform
            assert name in pins
            continue
        assert installed.version.partition("+")[0] == pins[name], name
        for text in installed.requires or []:
            requirement = Requirement(text)
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                open_names.add(requirement.name)
    assert len(seen) > 100


def test_setup_refuses_a_package_with_another_hash(tmp_path: Path) -> None:
    """a package that is not the one that was locked. Kept: it is not installed; make setup ends
    with pip's line that names it."""
    wheel = _wheel(tmp_path / "index", "torch", "2.13.0")  # by name: the Makefile asks for torch
    setuptools = _wheel(tmp_path / "index", "setuptools", "84.0.0")
    project = tmp_path / "project"
    project.mkdir()
    shutil.copy(ROOT / "Makefile", project)
    (project / "pyproject.toml").write_text("")
    (project / "requirements-cuda.lock").write_text("")
    for sha256 in ("0" * 64, _sha256(wheel)):  # the second time into the .venv that is there
        (project / "requirements.lock").write_text(
            f"torch==2.13.0 --hash=sha256:{sha256}\n"
            f"setuptools==84.0.0 --hash=sha256:{_sha256(setuptools)}\n"
        )
        done = subprocess.run(
            ["make", f"PYTHON={sys.executable}", "setup"],
            cwd=project,
            env={"PATH": "/usr/bin:/bin", "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(wheel.parent)},
            capture_output=True,
            text=True,
        )
        there = list((project / ".venv").rglob("torch-2.13.0.dist-info"))
        if sha256 == _sha256(wheel):
            assert there, done.stderr  # what follows, installing this project, is not tried here
        else:
            assert done.returncode and not there
            assert "DO NOT MATCH THE HASHES" in done.stderr and "torch" in done.stderr
        assert not (project / ".venv" / "ready").exists()


def _wheel(folder: Path, name: str, version: str) -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / f"{name}-{version}-py3-none-any.whl"
    info = f"{name}-{version}.dist-info"
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr(
            f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
        )
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")
    return path


def _sha256(path: Path) -> str:
    import hashlib

    return hashlib.sha256(path.read_bytes()).hexdigest()
