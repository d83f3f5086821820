"""Names that stand for tasks: suites, and our tasks where several sources answer to one."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence

from moc.errors import ConfigError, nearest

# The paper's four benchmarks, zero-shot: its table states no shots, so this is our choice (and
# lm-eval's own default for each). The headline metric is accuracy by the whole answer's
# log-likelihood, for all four alike: then a score, its prediction histogram and its majority rate
# speak of the same picks. ARC-Challenge and OpenBookQA also record acc_norm (per character).
PAPER_SHOTS = {"mmlu": 0, "arc_challenge": 0, "boolq": 0, "openbookqa": 0}

SUITES: dict[str, list[str]] = {
    "facts": ["facts_choice", "facts_answer"],
    "skills": ["skills_answer"],
    "paper": list(PAPER_SHOTS),
}


def expand_tasks(
    names: Sequence[str], *, of_study: Mapping[str, tuple[str, str]] | None = None
) -> list[str]:
    """The tasks that ``names`` stand for, each once, in order.

    A suite stands for its tasks, and a base task of ours for its task about each source.

    Args:
        of_study: of our tasks those that the study's data can be asked, with base task and source;
            None: each as it is named.

    Raises:
        ConfigError: for a name that is neither a suite, one of ``of_study``, nor in lm-eval.
    """
    from evals.scoring.hub import is_stock
    from evals.scoring.local_tasks import base_task

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
        elif is_stock(name):
            tasks[name] = None
        else:
            raise ConfigError(unknown_task(name))
    return list(tasks)


def unknown_task(name: str) -> str:
    """What to say of a task that nobody knows; names of lm-eval only if one is near."""
    from evals.scoring.hub import stock_names
    from evals.scoring.local_tasks import task_names

    ours = [*SUITES, *task_names()]
    everything = [*ours, *stock_names()]
    near = difflib.get_close_matches(name, everything, n=1, cutoff=0.5)
    hint = nearest(name, everything if near else ours)
    return f"evals.tasks: no task {name!r}; {hint}{'' if near else ', or any task of lm-eval'}"
