"""Text as LaTeX wants it."""

from __future__ import annotations

import re
from collections.abc import Sequence

_SPECIAL = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"$<$",
    ">": r"$>$",
    "|": r"$|$",
    "−": r"$-$",
    "≈": r"$\approx$",
    "†": r"$\dagger$",
    "→": r"$\rightarrow$",
    "×": r"$\times$",
    "≥": r"$\geq$",
    "≤": r"$\leq$",
    "—": "---",
    **{character: f"\\{character}" for character in "&%$#_{}"},
}


def text(words: str) -> str:
    """``words`` with every character that LaTeX would take for a command written out."""
    return "".join(_SPECIAL.get(character, character) for character in words)


def label(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9]+", "-", name)


def row(cells: Sequence[str]) -> str:
    r"""One line of a ``tabular``. A ``[`` right after ``\\`` would be read as a length."""
    line = " & ".join(text(cell) for cell in cells)
    return (f"{{}}{line}" if line.startswith("[") else line) + r" \\"
