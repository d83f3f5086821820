"""Where runs execute: one after another in this process, or as tasks that a launcher starts.

In: runs that are prepared (their study's files are there), and what the process shares. Out: run
directories brought to their end, and why some are not.
"""
