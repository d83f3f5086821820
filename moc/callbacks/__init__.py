"""What watches training: one concern a file, and none of them changes the weights' course, but for
``revival``, which restarts chapters that nobody read.

In: Lightning's hooks, the result of each optimizer step. Out: journal records, checkpoints, scores.
"""
