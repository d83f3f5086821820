"""What a study will cost, and what it can see, before it starts."""

from __future__ import annotations

import json
from argparse import ArgumentParser
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from moc.errors import ConfigError
from moc.verbs.options import points

if TYPE_CHECKING:
    from moc.config.schema import StudyConfig
    from moc.plan.power import Basis


def plan_options(verb: ArgumentParser) -> None:
    """Of ``moc plan``."""
    verb.add_argument("--json", action="store_true", help="one JSON object instead of tables")
    verb.add_argument(
        "--like", type=Path, metavar="STUDY", help="an earlier study, which shows how far arms vary"
    )
    verb.add_argument(
        "--detect", type=points, metavar="POINTS", help="how many seeds that difference needs"
    )


def demand_text(study: StudyConfig) -> list[str]:
    """Lines on what the data demand, and what every dense arm can hold of it."""
    from moc.data.known import bits_demanded, demands
    from moc.plan.capacity import demands_of, render_demands

    return [*demands(study), *render_demands(demands_of(study, bits_demanded(study)))]


def plan_text(
    study: StudyConfig,
    *,
    like: Path | None = None,
    detect: float | None = None,
    as_json: bool = False,
) -> tuple[str, list[str]]:
    """The plan for a terminal, or as one JSON object, and a line for each arm beyond its tolerance.

    Args:
        like: an earlier study whose variances say what this one can see; else the defaults.
        detect: a difference between arms, in points, that it is wanted to see.

    Raises:
        ConfigError: if the study cannot be planned, or the earlier one tells no variance.
    """
    from moc.data.known import bits_demanded
    from moc.plan.capacity import demands_of
    from moc.plan.power import DEFAULTS, render_sights, sights, sights_json
    from moc.plan.study_plan import plan_study, violations
    from moc.plan.text import render_plan

    plan = plan_study(study)
    bases: Sequence[Basis] = DEFAULTS if like is None else _measured(like)
    source = "defaults" if like is None else str(like)
    found = sights(study, bases, points=detect)
    if as_json:
        planned = json.loads(plan.to_json()) | {"power": sights_json(found, source)}
        planned["demand"] = {
            one.arm: {"bits": one.bits, "capacity": one.capacity, "ratio": one.ratio}
            for one in demands_of(study, bits_demanded(study))
        }
        return json.dumps(planned, indent=2), violations(plan)
    lines = [render_plan(plan), *demand_text(study)]
    if seen := render_sights(found, source):
        lines += ["", *seen]
    return "\n".join(lines), violations(plan)


def _measured(like: Path) -> list[Basis]:
    from moc.report.numbers.power import bases_of
    from moc.report.numbers.results import load_results
    from moc.store.find import study_dir_of
    from moc.store.rundir import StudyDir

    folder = study_dir_of(like)
    if not StudyDir(folder).runs():
        raise ConfigError(f"--like {like}: no run of this study has begun yet")
    if not (found := bases_of(load_results(folder))):
        raise ConfigError(
            f"--like {like}: its variances are not known: they need a task that two arms had "
            "learned, or the loss of an arm and its iso-FLOP baseline, over two seeds or more"
        )
    return found
