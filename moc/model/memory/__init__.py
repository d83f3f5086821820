"""Memories: store, address, read, and what a memory layer keeps while it decodes.

In: the residual stream, the rows of a bank. Out: what is added to the stream, and how it was
routed.
"""
