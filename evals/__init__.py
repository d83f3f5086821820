"""Evaluations: what is measured at every phase boundary, and what the measurements say.

``scoring`` scores a model in memory, ``measures`` says what scores alone do not, ``statistics``
(numpy and scipy alone) compares what was scored. Nothing is imported here.
"""
