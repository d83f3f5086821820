"""Where runs execute. So far: one after another, in this process.

In: runs that are prepared (their study's files are there), and what the process shares. Out: run
directories brought to their end, and which runs other processes had in hand.
"""
