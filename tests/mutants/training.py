"""What training notices of itself, and what it is installed from."""

from tests.mutants import Mutant

SPIKES = "tests/faults/test_spikes.py"

MUTANTS = [
    Mutant(
        "a spike is skipped only in words",
        "moc/callbacks/spikes.py",
        'return not self.found or self.on_spike == "warn"',
        "return True",
        (f"{SPIKES}::test_a_spike_is_marked_and_its_update_made_or_skipped",),
    ),
    Mutant(
        "the bands of spikes are not saved",
        "moc/callbacks/spikes.py",
        "return {name: list(band.values) for name, band in self.bands.items()}",
        "return {}",
        (f"{SPIKES}::test_a_killed_run_sees_the_same_spike_again",),
    ),
    Mutant(
        "a spike widens the band as it is",
        "moc/train/spikes.py",
        "level = min(level, mean + LIMIT * spread)",
        "pass",
        (f"{SPIKES}::test_the_band_against_its_definition",),
    ),
    Mutant(
        "nobody is asked whether the weights may take a step",
        "moc/train/module.py",
        "accept=self.accept,",
        "",
        (f"{SPIKES}::test_a_run_that_must_stop_keeps_the_weights_before_the_spike",),
    ),
    Mutant(
        "an update that is not finite is taken",
        "moc/train/step.py",
        "skipped = not (finite and accept(float(loss), float(grad_norm)))",
        "skipped = finite and not accept(float(loss), float(grad_norm))",
        ("tests/faults/test_non_finite.py",),
    ),
    Mutant(
        "setup installs what the lock does not name",
        "Makefile",
        "	@$(PIP) --require-hashes --no-deps -r requirements.lock",
        "	@sed 's/ --hash.*//' requirements.lock >open; $(PIP) --no-deps -r open",
        ("tests/faults/test_packages.py::test_setup_refuses_a_package_with_another_hash",),
    ),
]
