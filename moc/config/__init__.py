"""A study's settings: their schema, how files and command line are laid over it, what is refused.

In: a YAML file, ``key=value`` words. Out: a ``StudyConfig`` of plain dataclasses that can be run.
"""
