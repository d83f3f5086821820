"""Data: sources of documents, the tokenizer, the token cache and the order of samples.

``source`` yields documents, ``cache`` tokenises them once, ``order`` says which window of which
source is sample number i, and ``module`` hands them to Lightning, one batch per optimizer step.
"""
