"""Nothing changes what training computes without anybody noticing."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.golden.recipe import SCOPES, current_losses, golden_losses

# BLAS libraries round differently, and fifty steps of AdamW magnify that. Any change to the model,
# the data order or the optimizer is far larger. Not a bug? `make golden` records the losses anew.
RELATIVE_TOLERANCE = 1e-3


@pytest.mark.parametrize("scope", SCOPES)
def test_fifty_losses_of_the_tiny_study(tmp_path: Path, scope: str) -> None:
    golden = golden_losses()[scope]
    assert len(golden) == 50 and golden[-1] < golden[0] - 1
    assert current_losses(tmp_path, scope) == pytest.approx(golden, rel=RELATIVE_TOLERANCE)
