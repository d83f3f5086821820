"""Intervals, tests and their power, forgetting, savings and scaling; numpy and scipy alone.

In: arrays of scores by seed and item. Out: estimates with intervals, verdicts, curves.
"""
