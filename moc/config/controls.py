"""What ``evals.controls`` of a study may ask for; ``evals.controls`` does it to a model."""

from __future__ import annotations

import re
from typing import Literal, NamedTuple, cast

from moc.config.schema import StudyConfig
from moc.errors import ConfigError, nearest
from moc.model.memory.build import build_memory

PREVIOUS, ALL = "previous", "all"  # of bank_swap, beside the names of boundaries


class Knockout(NamedTuple):
    what: Literal["bank", "top", "row"]
    number: int = 0  # how many rows of "top", which one of "row"


def parse_knockout(word: str) -> Knockout:
    """What ``bank``, ``top-<n>`` or ``row-<i>`` stands for.

    Raises:
        ConfigError: if it is none of these.
    """
    if word == "bank":
        return Knockout("bank")
    found = re.fullmatch(r"(top|row)-(\d{1,9})", word)
    if found is None or (found[1] == "top" and int(found[2]) == 0):
        raise ConfigError(
            f"evals.controls.knockouts: {word!r} is none of 'bank', 'top-<n>' (the n rows picked "
            "most, n from 1), 'row-<i>'; write 'top-8', for example"
        )
    return Knockout(cast(Literal["top", "row"], found[1]), int(found[2]))


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
            if memory is None or memory.rows == "one":
                continue  # of a single row, there is only all to knock out
            kind = build_memory(arm.model)
            if what == "row" and number >= kind.num_rows:
                raise ConfigError(
                    f"evals.controls.knockouts: arms.{name} has no {word!r}; its rows are 0 to "
                    f"{kind.num_rows - 1}"
                )
            choices = kind.num_rows - kind.num_always
            if what == "top" and kind.num_picked and number > choices:
                raise ConfigError(
                    f"evals.controls.knockouts: {word!r} is more than the {choices} rows that "
                    f"arms.{name} can pick; take fewer, or 'bank'"
                )
    earlier = list(study.phases)[:-1]  # nothing is scored after the last boundary
    for word in config.bank_swap:
        if word not in (PREVIOUS, ALL, *earlier):
            raise ConfigError(
                f"evals.controls.bank_swap: {word!r} is neither '{PREVIOUS}' nor '{ALL}' nor a "
                f"phase before the last; {nearest(word, [PREVIOUS, ALL, *earlier])}"
            )
