"""Named lists of tasks, for ``moc eval --suite``."""

from __future__ import annotations

from collections.abc import Sequence

from moc.config import nearest
from moc.errors import ConfigError

SUITES = {
    "facts": ["facts_choice", "facts_answer"],
    "skills": ["skills_answer"],
}


def suite_tasks(name: str, of_study: Sequence[str]) -> list[str]:
    """The tasks of suite ``name``; ``study`` stands for the study's own.

    Raises:
        ConfigError: for an unknown suite.
    """
    if name == "study":
        return list(of_study)
    if name not in SUITES:
        raise ConfigError(f"--suite {name!r}: {nearest(name, ['study', *SUITES])}")
    return list(SUITES[name])
