"""MLflow, and what must not reach it."""

from tests.mutants import Mutant

_DATABASE, _SECRETS = "tests/faults/test_database.py", "tests/faults/test_secrets.py"
_AWAY, _KILL = "tests/faults/test_tracking_away.py", "test_a_kill_while_the_database_is_made"

MUTANTS = [
    Mutant(
        "the database is made under its own name",
        "moc/tracking/database.py",
        "    partial = file.with_name(file.name + PARTIAL)\n",
        "    partial = file\n",
        (f"{_DATABASE}::{_KILL}_leaves_none",),
    ),
    Mutant(
        "a half-made database passes for whole",
        "moc/tracking/database.py",
        '("alembic_version", "experiments")',
        '("experiments",)',
        (f"{_DATABASE}::test_a_database_that_is_not_whole_is_known",),
    ),
    Mutant(
        "a locked database passes for damaged",
        "moc/tracking/database.py",
        "    sqlite3.SQLITE_BUSY,\n",
        "",
        (f"{_DATABASE}::test_a_locked_database_waits_and_gets_everything",),
    ),
    Mutant(
        "a database in the place of another is not looked at",
        "moc/tracking/server.py",
        "self._seen is not None and self._seen == identity(file)",
        "self._seen is not None",
        (f"{_DATABASE}::test_a_database_pulled_away_during_a_run_is_made_anew",),
    ),
    Mutant(
        "studies that were lost with a database are not sent again",
        "moc/tracking/server.py",
        "            self._asked = False\n            for",
        "            for",
        (f"{_DATABASE}::test_a_database_pulled_away_during_a_run_is_made_anew",),
    ),
    Mutant(
        "a cursor is believed whatever it says",
        "moc/tracking/content.py",
        "and (saved or not path.is_file()):",
        "or saved:",
        (f"{_AWAY}::test_a_damaged_cursor_is_made_anew",),
    ),
    Mutant(
        "a study whose cursor is lost gets a second parent",
        "moc/tracking/sender.py",
        "        if found is None and not self.cursor.run_id:\n",
        "        if found is None and self.cursor.run_id:\n",
        (f"{_AWAY}::test_a_damaged_cursor_is_made_anew",),
    ),
    Mutant(
        "a person's note is written over",
        "moc/tracking/sender.py",
        "        if there is None or config_hash(there) == tags.get(NOTE_HASH_TAG, sent):\n",
        "        if True:\n",
        (f"{_AWAY}::test_a_note_of_a_person_outlives_a_lost_cursor",),
    ),
    Mutant(
        "a record keeps values instead of interpolations",
        "moc/config/secrets.py",
        "        found = public_uris(tree.written)\n",
        "        found = public_uris(str(tree))\n",
        (f"{_SECRETS}::test_a_record_loads_to_the_same_study_and_without_the_environment",),
    ),
    Mutant(
        "a password is shown",
        "moc/config/secrets.py",
        "    if password or (name and not colon):\n",
        "    if name and not colon:\n",
        (f"{_SECRETS}::test_uris_are_shown_without_secrets",),
    ),
    Mutant(
        "a query is shown",
        "moc/config/secrets.py",
        '        mark = query = ""\n',
        "        pass\n",
        (f"{_SECRETS}::test_uris_are_shown_without_secrets",),
    ),
    Mutant(
        "differences say values",
        "moc/config/identity.py",
        "        old, new = as_written(before), as_written(after)\n",
        "        old, new = before, after\n",
        (f"{_SECRETS}::test_differences_show_settings_as_they_are_written",),
    ),
    Mutant(
        "logs say what libraries say",
        "moc/config/secrets.py",
        "    logging.setLogRecordFactory(_record)\n",
        "",
        (f"{_SECRETS}::test_errors_logs_and_warnings_say_nothing",),
    ),
]
