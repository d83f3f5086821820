"""MLflow, and nothing else imports it.

In: run directories, read as they grow. Out: runs, metrics, params, tables and artifacts, sent in
the background; and ``moc ui``.
"""
