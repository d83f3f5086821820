"""``moc tune``: which trials every arm has, how far each goes, and what is chosen.

In: a study that says what to try, and ``moc.plan.trials``, which makes a study of it. Out: that
study run, and ``tuned.yaml``.
"""
