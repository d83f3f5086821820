"""What a study asks to be scored on, and whether that can be had."""

from __future__ import annotations

from evals.scoring.loading import load
from evals.scoring.study_tasks import study_tasks
from evals.scoring.task_names import expand_tasks
from evals.scoring.user_tasks import UserTasks
from moc.config.schema import StudyConfig
from moc.errors import ConfigError, nearest


def check_evals(study: StudyConfig) -> None:
    """
    Raises:
        ConfigError: if the study asks for scores that cannot be had.
    """
    own = user_tasks(study)
    known = all_tasks(study, own)
    for name in own.names.intersection(known):
        load(name, study.dir, None, study.evals.num_fewshot.get(name), user_tasks=own)
    asked = {"evals.in_phase.tasks": study.evals.in_phase.tasks or []}
    asked |= {f"probes.{name}.tasks": probe.tasks for name, probe in study.probes.items()}
    asked["evals.num_fewshot"] = list(study.evals.num_fewshot)
    for where, names in asked.items():
        for name in names:
            if name not in known:
                raise ConfigError(f"{where}: {name!r} is not scored; {nearest(name, known)}")
    for name, shots in study.evals.num_fewshot.items():
        if shots < 0:
            raise ConfigError(f"evals.num_fewshot.{name} must be at least 0, not {shots}")


def user_tasks(study: StudyConfig) -> UserTasks:
    """
    Raises:
        ConfigError: for folders of tasks that cannot be used.
    """
    return UserTasks(study.evals.task_paths, allow_code=study.evals.allow_task_code)


def all_tasks(study: StudyConfig, own: UserTasks) -> list[str]:
    """What is scored at a boundary: suites taken apart, and our tasks once for every source.

    Args:
        own: ``user_tasks``.

    Raises:
        ConfigError: for an unknown task.
    """
    return expand_tasks(study.evals.tasks, of_study=study_tasks(study), user_tasks=own)
