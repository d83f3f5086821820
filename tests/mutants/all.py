"""Every mutant, by the room that it breaks."""

from tests.mutants import files, processes, settings, tracking, training

GROUPS = (files, processes, settings, tracking, training)
MUTANTS = [mutant for group in GROUPS for mutant in group.MUTANTS]
