"""Signals, ranks, loaders, and the machine."""

from tests.mutants import Mutant

MUTANTS: list[Mutant] = []
