"""From run directories to typed records, and everything computed of them; no text, no drawing.

In: a study's folder. Out: ``Results``, and effects, losses, verdicts and raw rows, with intervals.
``read`` alone opens files, ``parse`` alone knows their keys: above, no raw dictionary is seen.
"""
