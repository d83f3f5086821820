"""What a model knows, what a bank stores of it, and whether a study could have seen that."""

from tests.mutants import Mutant

RECORDS = "tests/unit/data/test_record_source.py::"
PACKING = "tests/unit/data/test_packing.py::"
MEASURE = "tests/unit/evals/measures/test_knowledge.py::"
STORED = "tests/unit/report/test_report_stored.py::"
TWINS = "tests/unit/config/test_assay.py::"

MUTANTS: list[Mutant] = [
    Mutant(
        "a changed record may keep a value",
        "moc/data/records.py",
        "1 + draws.below(2**b - 1) if b else 0",
        "draws.below(2**b)",
        (f"{RECORDS}test_changed_records_have_the_same_keys_and_every_value_is_new",),
    ),
    Mutant(
        "padding counts for the loss",
        "moc/data/module.py",
        "            loss_mask[row, held - 1 :] = False\n",
        "",
        (f"{PACKING}test_every_row_is_one_document_cut_or_padded",),
    ),
    Mutant(
        "padding is pooled",
        "moc/data/module.py",
        "            real[row, held - 1 :] = False\n",
        "",
        (f"{PACKING}test_every_row_is_one_document_cut_or_padded",),
    ),
    Mutant(
        "a value that is cut off counts for what was read of it",
        "evals/measures/knowledge.py",
        "        seen_NA[n, cut[cut >= 0]] = False\n",
        "",
        (f"{MEASURE}test_a_value_whose_end_is_cut_off_is_not_known",),
    ),
    Mutant(
        "a value is right if any of its tokens is",
        "evals/measures/knowledge.py",
        "np.logical_and.at(",
        "np.logical_or.at(",
        (f"{MEASURE}test_values_of_several_tokens_cost_their_sum_and_are_right_as_a_whole",),
    ),
    Mutant(
        "who is wrong holds less than nothing",
        "moc/report/numbers/stored.py",
        "        stored_SNA[..., mean_A > 0].sum(-1),",
        "        stored_SNA.sum(-1),",
        (f"{STORED}test_an_attribute_that_costs_more_than_its_bits_is_not_known",),
    ),
    Mutant(
        "a twin's bank trains",
        "moc/config/layers.py",
        '    frozen = {"optimizer": {"bank": {"freeze": True}}}',
        '    frozen = {"optimizer": {"bank": {"freeze": False}}}',
        (f"{TWINS}test_a_twin_is_its_arm_with_a_frozen_bank",),
    ),
    Mutant(
        "an assay passes without its positive control",
        "moc/report/numbers/assay.py",
        "        return self.stores == (self.role == POSITIVE)",
        "        return self.stores or self.role == POSITIVE",
        (f"{STORED}test_a_failed_assay_gives_no_verdict_anywhere",),
    ),
    Mutant(
        "verdicts about forgetting do not ask the assay",
        "moc/report/numbers/verdicts.py",
        "        if passed(results, arm, base)",
        "        if True",
        (f"{STORED}test_a_failed_assay_gives_no_verdict_anywhere",),
    ),
]
