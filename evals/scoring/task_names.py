"""What the names in ``evals.tasks`` and ``--suite`` stand for.

A name is a suite, one of our tasks (once for every source that it is about), one of the user's, or
one of lm-eval's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from evals.scoring import hub
from evals.scoring.known_names import unknown_task
from evals.scoring.local_tasks import base_task
from evals.scoring.suites import SUITES
from evals.scoring.user_tasks import UserTasks
from moc.errors import ConfigError, nearest


def expand_tasks(
    names: Sequence[str],
    *,
    of_study: Mapping[str, tuple[str, str]] | None = None,
    user_tasks: UserTasks | None = None,
) -> list[str]:
    """The tasks that ``names`` stand for, each once, in order.

    A suite stands for its tasks, and a base task of ours for its task about each source.

    Args:
        of_study: of our tasks those that the study's data can be asked, with base task and source;
            None: each as it is named.
        user_tasks: the user's own.

    Raises:
        ConfigError: for a name that is neither a suite, one of ``of_study``, of the user's tasks or
            of lm-eval's, or that both of the latter have.
    """
    own = set() if user_tasks is None else user_tasks.names
    if of_study is None:
        of_study = {name: (base_task(name) or "", "") for name in names if base_task(name)}
    tasks: dict[str, None] = {}
    for name in (task for entry in names for task in SUITES.get(entry, [entry])):
        if name in of_study:
            tasks[name] = None
        elif found := [task for task, (base, _) in of_study.items() if base == name]:
            tasks |= dict.fromkeys(found)
        elif base_task(name):
            hint = nearest(name, list(of_study))
            raise ConfigError(f"evals.tasks: the study has no source for {name!r}; {hint}")
        elif name in own or hub.is_stock(name):
            tasks[name] = None
        else:
            raise ConfigError(unknown_task(name, sorted(own), hub.stock_names()))
    if user_tasks is not None:
        for name in tasks:
            if name in own and hub.is_stock(name):
                raise ConfigError(
                    f"{user_tasks.file_of(name)}: lm-eval has a task {name!r} too; give yours "
                    "another name"
                )
    return list(tasks)
