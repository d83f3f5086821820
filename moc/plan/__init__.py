"""What a study costs, and what it can see, before it starts.

In: a ``StudyConfig``. Out: resolved arms (solved shapes, spelled-out mixtures), parameters, FLOPs
in two accountings, memory, traffic, and all of it as text. ``flops`` and ``iso_flop`` need torch
alone.
"""
