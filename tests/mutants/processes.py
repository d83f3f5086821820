"""Signals, ranks, loaders, and the machine."""

from tests.mutants import Mutant

SIGNALS, RANKS = "tests/faults/test_signals.py", "tests/faults/test_ranks.py"
MACHINE, LOCKS = "tests/faults/test_machine.py", "tests/faults/test_locks.py"

SUPERVISE = "tests/unit/launch/test_supervise.py"

MUTANTS: list[Mutant] = [
    Mutant(
        "workers of the loader die of the group's SIGTERM",
        "moc/data/module.py",
        "        signal.signal(number, signal.SIG_IGN)\n",
        "        signal.signal(number, signal.SIG_DFL)\n",
        (f"{SIGNALS}::test_the_whole_group_is_asked",),
    ),
    Mutant(
        "a request that comes twice at once stops at once",
        "moc/train/signals.py",
        "_SAME_REQUEST_SEC = 1.0",
        "_SAME_REQUEST_SEC = 0.0",
        (f"{SIGNALS}::test_asked_twice_at_once",),
    ),
    Mutant(
        "SIGTERM exits as Ctrl-C does",
        "moc/train/signals.py",
        "raise Terminated if number == signal.SIGTERM else KeyboardInterrupt",
        "raise KeyboardInterrupt",
        (f"{SIGNALS}::test_asked_to_stop",),
    ),
    Mutant(
        "asked to stop, a run ends without saving the step",
        "moc/callbacks/checkpoint.py",
        "if number or step % self.every == 0 or step == self.pause_step:",
        "if step % self.every == 0 or step == self.pause_step:",
        (f"{SIGNALS}::test_asked_to_stop",),
    ),
    Mutant(
        "a rank does not tell the others that it was asked to stop",
        "moc/callbacks/checkpoint.py",
        "        if not is_distributed():\n            return self._requested\n",
        "        return self._requested\n",
        (f"{SIGNALS}::test_ranks_are_asked",),
    ),
    Mutant(
        "a rank that keeps the others waiting is waited for",
        "moc/train/ranks.py",
        "if behind and self._still_sec >= self.timeout_sec:",
        "if behind and self._still_sec >= 1000 * self.timeout_sec:",
        (f"{RANKS}::test_a_rank_that_hangs",),
    ),
    Mutant(
        "what the main process does alone counts as hanging",
        "moc/train/ranks.py",
        'behind = state["waiting"] and tuple',
        "behind = tuple",
        (f"{RANKS}::test_what_the_main_process_does_alone_is_waited_for",),
    ),
    Mutant(
        "saving counts as hanging",
        "moc/train/distributed.py",
        "    _working_alone.set()\n",
        "",
        (f"{RANKS}::test_what_the_main_process_does_alone_is_waited_for",),
    ),
    Mutant(
        "a rank leaves without a word",
        "moc/train/ranks.py",
        "            _watch.goodbye(*_last_words(error))\n",
        "            pass\n",
        (f"{RANKS}::test_the_others_learn_why_a_rank_fails",),
    ),
    Mutant(
        "a torn record stays in the journal",
        "moc/store/journal.py",
        "            self.close()  # whoever goes on cuts what was written of the line\n",
        "",
        (f"{MACHINE}::test_a_journal_cannot_be_written", "tests/unit/store/test_journal.py"),
    ),
    Mutant(
        "a folder that was deleted is made again",
        "moc/store/lock.py",
        'if file in _held and read_json(file).get("pid") != os.getpid():',
        "if False:",
        (f"{MACHINE}::test_the_folder_is_deleted",),
    ),
    Mutant(
        "a process id that came back holds the lock",
        "moc/store/lock.py",
        "return start_of(pid) == started and",
        "return",
        (f"{LOCKS}::test_a_lock_that_nobody_holds",),
    ),
    Mutant(
        "a lock is not looked at",
        "moc/store/lock.py",
        "        if (holder := holder_of(run, task)) is not None:\n",
        "        if (holder := holder_of(run, task)) is not None and holder.pid < 0:\n",
        ("tests/unit/store/test_lock.py",),
    ),
    Mutant(
        "a full disk ends in a traceback",
        "moc/errors.py",
        '    errno.ENOSPC: ("the disk is full", "free some space"),\n',
        "",
        (f"{MACHINE}::test_the_disk_is_full",),
    ),
    Mutant(
        "runs in other hands are not waited for",
        "moc/launch/supervise.py",
        "for one in [one for one in self.waiting if one not in held]:",
        "for one in list(self.waiting):",
        (f"{SUPERVISE}::test_runs_in_other_hands_are_waited_for_and_take_up_room",),
    ),
    Mutant(
        "runs of a launcher that was killed take up no room",
        "moc/launch/supervise.py",
        "busy = [*self.running, *held, *starting]",
        "busy = [*self.running, *starting]",
        (f"{SUPERVISE}::test_runs_in_other_hands_are_waited_for_and_take_up_room",),
    ),
    Mutant(
        "a launched run gets the launcher's threads",
        "moc/launch/processes.py",
        '"OMP_NUM_THREADS": str(self.cpus)',
        '"OMP_NUM_THREADS": "4"',
        ("tests/unit/launch/test_processes.py::test_what_runs_are_forked_from",),
    ),
    Mutant(
        "a dead machine's lock stays",
        "moc/store/lock.py",
        "    return not task or holder.task != task\n",
        "    return True\n",
        ("tests/unit/store/test_lock.py::test_what_a_dead_machine_left",),
    ),
    Mutant(
        "a job that began while it was interrupted is nobody's",
        "moc/launch/supervise.py",
        "        with stop_signals_held_back():  # or a job would have begun that nobody knows\n",
        "        if True:\n",
        (f"{SUPERVISE}::test_without_a_terminal_it_cancels_what_it_started",),
    ),
    Mutant(
        "what was cancelled in SLURM is submitted again",
        "moc/launch/slurm.py",
        'End(STOPPED, "it was cancelled in SLURM", again=False)',
        'End(STOPPED, "it was cancelled in SLURM")',
        ("tests/unit/launch/test_slurm_jobs.py::test_how_a_job_ended",),
    ),
]
