"""What is on disk."""

from tests.mutants import Mutant

MUTANTS: list[Mutant] = []
