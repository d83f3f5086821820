"""Every mutant, by the room that it breaks."""

from tests.mutants import files, knowledge, processes, settings, tracking, training

GROUPS = (files, knowledge, processes, settings, tracking, training)
MUTANTS = [mutant for group in GROUPS for mutant in group.MUTANTS]
