"""Memories: store, address, read.

In: the residual stream, the rows of a bank. Out: what is added to the stream, and how it was
routed.
"""
