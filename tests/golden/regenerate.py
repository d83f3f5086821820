"""Record the golden losses anew and show the difference: ``make golden``."""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.golden.recipe import LOSSES, current_losses, golden_losses


def main() -> None:
    old = golden_losses() if LOSSES.is_file() else []
    with tempfile.TemporaryDirectory() as folder:
        new = current_losses(Path(folder))
    LOSSES.write_text(json.dumps(new, indent=0) + "\n")
    if len(old) != len(new):
        print(f"{LOSSES}: {len(old)} losses before, {len(new)} now")
        return
    changes = [after - before for before, after in zip(old, new, strict=True)]
    print("step      before         now      change")
    for step, (before, after, change) in enumerate(zip(old, new, changes, strict=True), start=1):
        print(f"{step:4}  {before:10.6f}  {after:10.6f}  {change:+10.2e}")
    worst = max(range(len(changes)), key=lambda index: abs(changes[index]))
    print(f"largest change: {changes[worst]:+.2e} at step {worst + 1}; written to {LOSSES}")


if __name__ == "__main__":
    main()
