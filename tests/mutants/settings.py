"""What a study may say."""

from tests.mutants import Mutant

RANGES = ("tests/unit/config/test_ranges.py",)
NAMES = "tests/faults/test_names.py::"
ATTACKS = "tests/faults/test_attacks.py::"
SEARCH = "tests/unit/tuning/test_search.py::"

MUTANTS: list[Mutant] = [
    Mutant(
        "a range has no upper end",
        "moc/ranges.py",
        'return above and (value < self.high if self.without == "high" else value <= self.high)',
        "return above",
        (f"{RANGES[0]}::test_what_a_range_holds",),
    ),
    Mutant(
        "the walk does not enter lists",
        "moc/ranges.py",
        "    elif isinstance(value, list):",
        "    elif isinstance(value, tuple):",
        (f"{RANGES[0]}::test_the_walk_reaches_every_number_and_names_it",),
    ),
    Mutant(
        "numbers that were text or interpolated are not checked",
        "moc/config/validate.py",
        "    check_ranges(study)\n",
        "",
        (f"{RANGES[0]}::test_values_that_make_no_sense_are_refused",),
    ),
    Mutant(
        "a phase may be called start",
        "moc/config/names.py",
        "_refuse(name, where, (_START,),",
        "_refuse(name, where, (),",
        (f"{NAMES}test_a_name_that_means_something_else",),
    ),
    Mutant(
        "names are compared with their case",
        "moc/config/names.py",
        "seen.setdefault(name.casefold(), name)",
        "seen.setdefault(name, name)",
        (f"{NAMES}test_names_that_differ_by_case_alone",),
    ),
    Mutant(
        "a study may lie in the cache",
        "moc/config/names.py",
        "    if _is_in_cache(study):",
        "    if False:",
        (f"{NAMES}test_a_study_named_like_something_beside_it",),
    ),
    Mutant(
        "a name of any length",
        "moc/config/names.py",
        "if len(name.encode()) > MAX_BYTES:",
        "if False:",
        (f"{NAMES}test_a_name_that_means_something_else",),
    ),
    Mutant(
        "NUL characters pass",
        "moc/config/load.py",
        'if isinstance(raw, str) and "\\0" in raw:',
        "if False:",
        (f"{ATTACKS}test_a_study_that_was_made_to_do_harm[NUL, escaped]",),
    ),
    Mutant(
        "Python's own errors of a merge pass",
        "moc/config/load.py",
        "    except _OF_OMEGACONF as error:",
        "    except OSError as error:",
        (f"{RANGES[0]}::test_what_python_says_of_a_value_is_one_line",),
    ),
    Mutant(
        "a checkpoint is unpickled without limits",
        "moc/train/checkpoints.py",
        'return torch.load(path, map_location="cpu", weights_only=True)',
        'return torch.load(path, map_location="cpu", weights_only=False)',
        (f"{ATTACKS}test_a_checkpoint_that_runs_code_when_it_is_loaded[among the weights]",),
    ),
    Mutant(
        "a plan does not look at names of tasks",
        "moc/cli.py",
        "overrides, check=check, untuned",
        "overrides, untuned",
        (f"{NAMES}test_an_unknown_task_is_answered_with_the_nearest",),
    ),
    Mutant(
        "GPUs are not counted",
        "moc/train/strategies.py",
        "if config.devices is not None and config.devices > found:",
        "if False:",
        (f"{NAMES}test_a_gpu_that_is_absent",),
    ),
    Mutant(
        "options take any number",
        "moc/verbs/options.py",
        "if value not in limits:",
        "if False:",
        (f"{NAMES}test_numbers_of_options_have_ranges",),
    ),
    Mutant(
        "what ASHA prunes trains on",
        "moc/tuning/loop.py",
        "elif searches[arm].prunes(number, rung, metric):",
        "elif False:",
        (f"{SEARCH}test_a_trial_goes_on_if_it_is_among_the_best_third_so_far",),
    ),
    Mutant(
        "a search that goes on after a kill draws other points",
        "moc/tuning/search.py",
        "(seed=seed), pruner",
        "(seed=None), pruner",
        (f"{SEARCH}test_a_search_that_is_killed_anywhere_comes_to_the_same",),
    ),
    Mutant(
        "the metric of a pruned trial is compared with those at the end",
        "moc/tuning/choice.py",
        'if one.state == "finished"]',
        'if one.state != "diverged"]',
        ("tests/unit/tuning/test_choice.py::test_a_point_that_diverges_is_never_chosen",),
    ),
    Mutant(
        "a run that is told to pause goes on to its end",
        "moc/callbacks/checkpoint.py",
        "        if step == self.pause_step:\n            raise RunPaused",
        "",
        ("tests/integration/test_pause.py::test_it_goes_on_to_the_same_weights_and_journal",),
    ),
]
