"""The tables of a report: a function each, from ``Results`` to one table, several, or none.

A table without rows has nothing to show. ``layout`` writes a table as HTML, CSV, LaTeX and text,
``cells`` says how numbers and marks are written in it.
"""
