"""From the words of ``--launch`` to a launcher."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from moc.config.schema import StudyConfig
from moc.errors import ConfigError
from moc.launch.launcher import Launcher

LAUNCHERS = "processes:N (so many runs at once), slurm, or ray[:ADDRESS]"


def build_launcher(words: str | None, study: StudyConfig) -> Launcher | None:
    """The launcher that ``words`` name; None for no words: runs go one by one in this process.

    Raises:
        ConfigError: for words that name none, one that is not installed or not here, or more at
            once than there is room for.
    """
    if words is None:
        return None
    kind, _, how = words.partition(":")
    match kind:
        case "processes" if how.isdecimal() and 0 < int(how) < 10_000:
            from moc.launch.processes import Processes

            return Processes(int(how), study)
        case "processes":
            raise ConfigError(f"--launch {words[:50]}: how many at once? Try processes:2")
        case "slurm" if not how:
            with needing("submitit", "slurm"):
                from moc.launch.slurm import Slurm
            return Slurm(study)
        case "ray":
            with needing("ray", "ray"):
                from moc.launch.on_ray import OnRay
            return OnRay(how or None, study)
    raise ConfigError(f"--launch {words[:50]}: there is {LAUNCHERS}")


@contextmanager
def needing(package: str, launch: str) -> Iterator[None]:
    """
    Raises:
        ConfigError: if ``package`` is not installed.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name != package:
            raise
        raise ConfigError(f"--launch {launch} needs {package}: pip install {package}") from error
