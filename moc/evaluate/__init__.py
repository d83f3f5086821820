"""The evaluations of one model at one boundary, and what is written of them.

In: a model and its study. Out: ``evals.json``, samples, and points for the journal.
"""
