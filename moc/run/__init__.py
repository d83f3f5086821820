"""One arm with one seed through its phases.

In: a study, the arm's name and the seed. Out: its run directory: boundaries, journal, scores,
probes.
"""
