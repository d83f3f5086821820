"""Evaluations: what is measured at every phase boundary, and what the measurements say.

``evals.harness`` scores a model in memory, ``evals.forgetting`` compares the scores of one run's
boundaries. Nothing is imported here: ``evals.forgetting`` needs numpy alone.
"""
