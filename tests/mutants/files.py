"""What is on disk."""

from tests.mutants import Mutant

STORE = "tests/unit/store/test_files.py"
POWER = f"{STORE}::test_what_must_survive_a_power_cut_is_on_disk_before_and_after_its_name"
DATA = "tests/faults/test_data_faults.py"
CHANGED = "tests/faults/test_data_changed.py"
SETTINGS = "tests/faults/test_settings_and_damage.py"

MUTANTS = [
    Mutant(
        "a manifest's files are not verified",
        "moc/store/files.py",
        "or sha256(folder / name) != expected",
        "or False",
        ("tests/unit/train/test_checkpoints.py::test_a_damaged_checkpoint_is_passed_over",),
    ),
    Mutant(
        "a file gets its name before it is on disk",
        "moc/store/files.py",
        "        if sync:\n            sync_path(partial)\n        os.replace(partial, path)\n",
        "        os.replace(partial, path)\n",
        (POWER,),
    ),
    Mutant(
        "the folder that holds a new name is not synced",
        "moc/store/files.py",
        "    partial.rename(target)\n    sync_path(target.parent)\n",
        "    partial.rename(target)\n",
        (POWER,),
    ),
    Mutant(
        "an old folder is removed before the new one has its name",
        "moc/store/files.py",
        "        target.rename(old)  #",
        "        shutil.rmtree(target)  #",
        (POWER,),
    ),
    Mutant(
        "an object's checksum is not compared",
        "moc/store/files.py",
        'if found["checksum"] != _checksum(',
        "if False and _checksum(",
        (f"{STORE}::test_a_changed_object_is_noticed",),
    ),
    Mutant(
        "half of a text is read as the whole",
        "moc/store/files.py",
        "if not mark or checksum.strip()",
        "if mark and checksum.strip()",
        (f"{STORE}::test_a_changed_text_is_noticed",),
    ),
    Mutant(
        "a journal line's checksum is not compared",
        "moc/store/journal.py",
        'if found["crc"] != _crc(',
        "if False and _crc(",
        (
            "tests/unit/store/test_journal.py"
            "::test_a_damaged_line_in_the_middle_is_named_and_left_out",
        ),
    ),
    Mutant(
        "a journal keeps what came after the checkpoint",
        "moc/store/journal.py",
        'record.get("step", 0) > step',
        "False",
        (
            "tests/unit/store/test_journal.py::test_resuming_drops_later_steps_and_later_phases_only",
        ),
    ),
    Mutant(
        "a large cache is not verified where it is read",
        "moc/data/cache.py",
        "if (name, block) not in self._sound:",
        "if False:",
        (f"{DATA}::test_a_large_cache_is_verified_where_it_is_read",),
    ),
    Mutant(
        "a small cache is not verified when it is opened",
        "moc/data/cache.py",
        'if found != manifest["blocks"][name]:',
        "if False:",
        (f"{DATA}::test_a_damaged_cache_is_built_again",),
    ),
    Mutant(
        "a saved tokenizer is not verified",
        "moc/data/tokenizer.py",
        "if own.fingerprint != fingerprint:",
        "if False:",
        (f"{DATA}::test_a_damaged_cached_tokenizer_is_trained_again",),
    ),
    Mutant(
        "NUL bytes are taken for text",
        "moc/data/files.py",
        'if mark is None and b"\\0" not in head:',
        "if mark is None:",
        (f"{DATA}::test_another_encoding_is_refused",),
    ),
    Mutant(
        "samples behind a score are not verified",
        "moc/evaluate/record.py",
        'return not damaged_files(boundary.samples, record.get("samples", {}))',
        "return True",
        ("tests/unit/evaluate/test_record.py",),
    ),
    Mutant(
        "the data that weights were trained on are not compared",
        "moc/run/settings.py",
        "if run.streams.get(source) != trained_on:",
        "if False:",
        (f"{CHANGED}::test_a_replaced_file_is_refused",),
    ),
    Mutant(
        "data that change while a study runs are trained on",
        "moc/run/settings.py",
        "if found[source] != expected:",
        "if False:",
        (f"{CHANGED}::test_a_file_replaced_while_the_study_runs",),
    ),
    Mutant(
        "scores do not depend on the text that was scored",
        "moc/evaluate/evaluator.py",
        "config_hash(EVALUATION, *self._asked, texts)",
        "config_hash(EVALUATION, *self._asked)",
        (f"{CHANGED}::test_other_validation_text_is_scored_anew",),
    ),
    Mutant(
        "a run that the study does not name is hidden",
        "moc/study.py",
        "            check_nothing_hides(study)\n",
        "",
        (f"{SETTINGS}::test_a_study_that_would_hide_a_run_is_refused",),
    ),
]
