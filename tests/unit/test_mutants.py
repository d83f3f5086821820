"""The list of ``make mutants`` fits today's sources; whether tests notice them is its own run."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from tests.mutants import Mutant
from tests.mutants.all import MUTANTS

ROOT = Path(__file__).parents[2]


def test_there_are_enough_and_each_has_a_name() -> None:
    assert len(MUTANTS) >= 25
    assert max(Counter(mutant.what for mutant in MUTANTS).values()) == 1


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.what)
def test_a_mutant_fits_the_sources(mutant: Mutant) -> None:
    assert (ROOT / mutant.file).read_text().count(mutant.old) == 1
    for test in mutant.tests:
        file, _, name = test.partition("::")
        assert (ROOT / file).exists()
        if name:
            assert f"def {name.partition('[')[0]}(" in (ROOT / file).read_text()
