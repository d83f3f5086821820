"""The ``assay:`` section of a study: could it have seen a memory store anything at all?"""

from __future__ import annotations

from dataclasses import dataclass, field

from moc.errors import ConfigError, nearest

FROZEN = "_frozen"  # end of the name of an arm's twin


@dataclass
class AssayConfig:
    """Arms that must show an effect and arms that must not.

    Every memory has a twin whose bank stays at its initial values: keys, gates and maps store too,
    so what a *bank* stores is what its arm holds beyond its twin.
    """

    # must store more than its twin; else no verdict about memory is given
    positive: str = ""
    # must not
    negative: list[str] = field(default_factory=list)
    # arms that get a twin, <arm>_frozen; null: every arm with memory
    twins: list[str] | None = None


def check_assay(assay: AssayConfig, twin_of: dict[str, str | None], sizes: list[str]) -> None:
    """
    Args:
        twin_of: arm -> whose twin it is, of all arms.
        sizes: of a ladder, each of which has an assay of its own.

    Raises:
        ConfigError: for an arm that is not there, or has no twin.
    """
    names = [("twins", name) for name in assay.twins or []]
    names += [("positive", assay.positive), *(("negative", name) for name in assay.negative)]
    ends = [f"-{size}" for size in sizes] or [""]
    for where, name in names:
        for end in ends:
            if name + end not in twin_of:
                known = list(dict.fromkeys(arm.removesuffix(end) for arm in twin_of))
                raise ConfigError(f"assay.{where}: no arm {name!r}; {nearest(name, known)}")
            if name + end not in twin_of.values():
                raise ConfigError(
                    f"assay.{where}: arm {name!r} has no twin: it needs a memory, and a place in "
                    "assay.twins, if that lists any"
                )
