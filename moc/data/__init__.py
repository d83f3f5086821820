"""Sources of documents, the tokenizer, the token cache and the order of samples.

In: ``SourceConfig``s, a phase's mixture. Out: one batch per optimizer step, and windows of text to
evaluate on. ``source`` yields documents, ``cache`` tokenises them once, ``order`` says which window
of which source is sample number i, ``module`` hands them to Lightning.
"""
