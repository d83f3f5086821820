"""What can go wrong by no fault of the code. The command line prints each in one line."""


class ConfigError(ValueError):
    """Something the user wrote cannot be used; the message is one line with the remedy."""


class CheckpointError(ValueError):
    """Files on disk cannot be used; the message says which and what to do."""


class TrainingDiverged(RuntimeError):
    """Too many updates in a row were not finite."""


class StudyInterrupted(Exception):
    """The user or the scheduler asked to stop; everything up to here is saved."""
