"""Decoding: what an unfinished batch keeps, so that a new token costs one position; and sampling.

In: a model, token ids. Out: logits of the new positions, new tokens. A memory's own state is beside
its kind, in ``moc.model.memory``; here it is only something whose rows can be kept.
"""
