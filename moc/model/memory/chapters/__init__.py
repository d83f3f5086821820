"""Chapters, the memory of arXiv 2603.21096: a router picks rows of tokens, attention reads them.

In: the residual stream, a bank of chapters. Out: what is added to the stream, and its address.
"""
