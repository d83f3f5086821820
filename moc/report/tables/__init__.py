"""The tables of a report: a function each.

In: ``Results``. Out: one ``Table``, several, or none; one without rows is not shown. ``layout``
writes a table as HTML, CSV, LaTeX and text, ``cells`` says how numbers and marks are written in it.
"""
