"""The figures of a report: a function each.

In: ``Results``. Out: one ``Figure``, several, or none. Drawn with matplotlib's Agg and SVG backends
and no global state; ``drawing`` has what they share.
"""
