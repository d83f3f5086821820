"""Runs of the tiny study in child processes, one of them undisturbed, to compare with."""

from __future__ import annotations

import shutil
import signal
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Run
from tests.support.helpers_runs import Moc, outcome
from tests.support.helpers_training import write_tiny_study
from tests.support.launched import one_process
from tests.support.promises import table
from tests.support.ranks import Ranks


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def moc(tmp_path: Path, cache: Path, in_child: Run) -> Moc:
    """``moc(*overrides, stop=..., fault=..., ...)``: run the tiny study's memory arm in
    ``tmp_path``; its exit code and output."""
    return lambda *overrides, stop=None, **faults: run_in(
        tmp_path, cache, in_child, overrides, stop, **faults
    )


@pytest.fixture(scope="session")
def serial(tmp_path_factory: pytest.TempPathFactory, in_child: Run) -> Path:
    """The folder of the longer tiny study, done by one process, to compare launched runs with."""
    return one_process(tmp_path_factory.mktemp("serial"), in_child)


@pytest.fixture
def ranks(tmp_path: Path, cache: Path, in_child: Run) -> Ranks:
    return Ranks(tmp_path, cache, in_child)


@pytest.fixture(scope="session", name="undisturbed_ranks")
def _undisturbed_ranks(tmp_path_factory: pytest.TempPathFactory, cache: Path, in_child: Run) -> Any:
    """What two ranks come to, by strategy."""

    @lru_cache
    def of(strategy: str) -> dict[str, Any]:
        folder = tmp_path_factory.mktemp(strategy)
        codes, logs = Ranks(folder, cache, in_child)(f"trainer.strategy={strategy}")
        assert codes == [0, 0], logs
        return outcome(folder)

    return of


def run_in(
    folder: Path, cache: Path, in_child: Run, overrides: tuple[str, ...], stop: Any, **faults: Any
) -> tuple[int | None, str]:
    study, log = write_tiny_study(folder), folder / "log"
    argv = ["run", str(study), "--arms", "moc", f"cache_dir={cache}", *overrides]
    if stop is not None:
        stop = {"signal": signal.SIGKILL, **stop}
    code, *_ = in_child("command", log=log, argv=argv, stop=stop, **faults)
    return code, log.read_text()


@pytest.fixture(scope="session")
def undisturbed_folder(
    tmp_path_factory: pytest.TempPathFactory, cache: Path, in_child: Run
) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed")
    code, log = run_in(folder, cache, in_child, (), None)
    assert code == 0, log
    return folder


@pytest.fixture(scope="session")
def undisturbed(undisturbed_folder: Path) -> dict[str, Any]:
    return outcome(undisturbed_folder)


@pytest.fixture
def finished(undisturbed_folder: Path, tmp_path: Path) -> None:
    """``tmp_path`` holds a finished run."""
    shutil.copytree(undisturbed_folder / "runs", tmp_path / "runs")


def pytest_report_collectionfinish(config: pytest.Config, start_path: Path) -> list[str]:
    """The table of promises, whenever these tests are collected alone."""
    here = Path(__file__).parent
    asked = {
        (config.invocation_params.dir / arg.partition("::")[0]).resolve() for arg in config.args
    }
    return table().splitlines() if asked == {here} else []
