"""MLflow, and what must not reach it."""

from tests.mutants import Mutant

MUTANTS: list[Mutant] = []
