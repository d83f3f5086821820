"""What scores alone do not say: controls, leakage, which chapters are read.

In: a model and windows of text. Out: plain records.
"""
