"""What an unfinished batch keeps, so that a new token costs one position; and sampling.

In: a model, token ids. Out: logits of the new positions, new tokens.
"""
