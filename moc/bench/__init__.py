"""How fast this machine trains, reads and decodes: ``python -m moc.bench``. Needs torch alone.

In: a preset and sizes. Out: medians of interleaved repetitions, as text and JSON.
"""
