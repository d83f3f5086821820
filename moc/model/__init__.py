"""The model: needs torch alone.

In: a ``ModelConfig``, token ids. Out: logits or their loss, and every memory layer's address.

>>> from moc.model import build_model, generate, load_model, preset
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from moc.model.names import *  # noqa: F403


def __getattr__(name: str) -> Any:
    """Torch is imported with the first name: a study's settings are read, and refused, without."""
    import moc.model.names

    if name in moc.model.names.__all__:
        return getattr(moc.model.names, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
