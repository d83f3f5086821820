"""Memories: store, address, read. ``seam`` says what a kind is, ``build`` which ones there are.

In: the residual stream, the rows of a bank. Out: what is added to the stream, and its address.
"""
