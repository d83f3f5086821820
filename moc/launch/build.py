"""From the words of ``--launch`` to a launcher."""

from __future__ import annotations

from moc.config.schema import StudyConfig
from moc.errors import ConfigError
from moc.launch.launcher import Launcher
from moc.launch.processes import Processes


def build_launcher(words: str | None, study: StudyConfig) -> Launcher | None:
    """The launcher that ``words`` name; None for no words: runs go one by one in this process.

    Raises:
        ConfigError: for words that name none, or more at once than there is room for.
    """
    if words is None:
        return None
    kind, _, how = words.partition(":")
    match kind:
        case "processes" if how.isdecimal() and 0 < int(how) < 10_000:
            return Processes(int(how), study)
        case "processes":
            raise ConfigError(f"--launch {words[:50]}: how many at once? Try processes:2")
    raise ConfigError(f"--launch {words[:50]}: there is processes:N, so many runs at once")
