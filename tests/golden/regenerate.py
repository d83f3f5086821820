"""Record the golden losses anew and show the difference: ``make golden``."""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.golden.recipe import LOSSES, SCOPES, current_losses, golden_losses


def main() -> None:
    old = golden_losses()
    with tempfile.TemporaryDirectory() as folder:
        new = {scope: current_losses(Path(folder), scope) for scope in SCOPES}
    LOSSES.write_text(json.dumps(new, indent=0) + "\n")
    for scope in SCOPES:
        _compare(scope, old.get(scope, []), new[scope])
    print(f"written to {LOSSES}")


def _compare(scope: str, old: list[float], new: list[float]) -> None:
    if len(old) != len(new):
        print(f"{scope}: {len(old)} losses before, {len(new)} now")
        return
    changes = [after - before for before, after in zip(old, new, strict=True)]
    print(f"{scope}\nstep      before         now      change")
    for step, (before, after, change) in enumerate(zip(old, new, changes, strict=True), start=1):
        print(f"{step:4}  {before:10.6f}  {after:10.6f}  {change:+10.2e}")
    worst = max(range(len(changes)), key=lambda index: abs(changes[index]))
    print(f"largest change: {changes[worst]:+.2e} at step {worst + 1}")


if __name__ == "__main__":
    main()
