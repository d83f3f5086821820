"""Routed attention in hand-written Triton kernels, forward and backward, for GPUs.

In: queries, keys, values and what each group reads. Out: what the queries read.
"""
