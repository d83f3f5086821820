"""What the command line's other verbs do: plan, score, generate, measure leakage, compare, fit.

In: paths below a study's folder. Out: text and records; what the study recorded stays as it is.
"""
