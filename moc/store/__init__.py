"""The run directory: every path in it, files written whole, journals, and finding a study again.

In: plain values. Out: files, which are the truth that tracking and report are made from.
"""
