"""What a study may say."""

from tests.mutants import Mutant

MUTANTS: list[Mutant] = []
