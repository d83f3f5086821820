"""Every mutant, by the room that it breaks."""

from tests.mutants import files, processes, settings, tracking

MUTANTS = [*files.MUTANTS, *processes.MUTANTS, *settings.MUTANTS, *tracking.MUTANTS]
