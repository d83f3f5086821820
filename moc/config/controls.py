"""What ``evals.controls`` of a study may ask for; ``evals.controls`` does it to a model."""

from __future__ import annotations

import re
from typing import Literal, NamedTuple, cast

from moc.config.schema import StudyConfig
from moc.errors import ConfigError, nearest

PREVIOUS, ALL = "previous", "all"  # of bank_swap, beside the names of boundaries


class Knockout(NamedTuple):
    what: Literal["bank", "top", "chapter"]
    number: int = 0  # how many chapters of "top", which one of "chapter"


def parse_knockout(word: str) -> Knockout:
    """What ``bank``, ``top-<n>`` or ``chapter-<i>`` stands for.

    Raises:
        ConfigError: if it is none of these.
    """
    if word == "bank":
        return Knockout("bank")
    found = re.fullmatch(r"(top|chapter)-(\d+)", word)
    if found is None or (found[1] == "top" and int(found[2]) == 0):
        raise ConfigError(
            f"evals.controls.knockouts: {word!r} is none of 'bank', 'top-<n>' (the n chapters read "
            "most, n from 1), 'chapter-<i>'; write 'top-8', for example"
        )
    return Knockout(cast(Literal["top", "chapter"], found[1]), int(found[2]))


def check_controls(study: StudyConfig) -> None:
    """
    Raises:
        ConfigError: for a control that cannot be read, or that an arm with memory cannot be put to.
    """
    config = study.evals.controls
    for word in config.knockouts:
        what, number = parse_knockout(word)
        for name, arm in study.arms.items():
            memory = arm.model.memory
            if memory is None:
                continue
            routable = memory.num_chapters - memory.num_shared
            if what == "chapter" and number >= memory.num_chapters:
                raise ConfigError(
                    f"evals.controls.knockouts: arms.{name} has no {word!r}; its chapters are 0 to "
                    f"{memory.num_chapters - 1}"
                )
            if what == "top" and number > routable:
                raise ConfigError(
                    f"evals.controls.knockouts: {word!r} is more than the {routable} chapters that "
                    f"arms.{name} routes to; take fewer, or 'bank'"
                )
    earlier = list(study.phases)[:-1]  # nothing is scored after the last boundary
    for word in config.bank_swap:
        if word not in (PREVIOUS, ALL, *earlier):
            raise ConfigError(
                f"evals.controls.bank_swap: {word!r} is neither '{PREVIOUS}' nor '{ALL}' nor a "
                f"phase before the last; {nearest(word, [PREVIOUS, ALL, *earlier])}"
            )
