"""The README's table of promises is what these tests show."""

from __future__ import annotations

import pytest

from tests.support.promises import FAULTS, ROOT, promises, table, with_table


@pytest.mark.parametrize("fault", FAULTS)
def test_every_fault_has_a_test(fault: str) -> None:
    assert any(fault in promise.faults for promise in promises())


def test_the_readme_shows_the_table_as_it_is() -> None:
    """``make promises`` writes it."""
    readme = (ROOT / "README.md").read_text()
    assert table() in readme and with_table(readme) == readme
