"""Scores of a model in memory, by lm-eval-harness.

In: a model, a tokenizer, names of tasks (ours, the study's, the user's, lm-eval's). Out: a record
per task and a sample per item.
"""
