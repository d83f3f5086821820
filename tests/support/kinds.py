"""Memories of every kind, each in the settings that a test of all of them should meet."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields, replace

import pytest
import torch

import moc.model.memory.build
from moc.model import MemoryConfig, ModelConfig, ProductKeysConfig, Transformer
from tests.integration.test_third_kind import with_third
from tests.support.small_models import DENSE, MEMORY, ROUTERS, chapters, lively


def product_keys(**changes: object) -> MemoryConfig:
    """Of kind ``product_keys``, with settings of memories in general or of product keys."""
    of_kind = {field.name for field in fields(ProductKeysConfig)}
    own = {"num_keys": 7, "num_heads": 2, "num_read": 3, "key_dim": 6}
    own |= {name: value for name, value in changes.items() if name in of_kind}  # type: ignore[misc]
    rest = {name: value for name, value in changes.items() if name not in of_kind}
    return MemoryConfig(
        kind="product_keys",
        product_keys=ProductKeysConfig(**own),  # type: ignore[arg-type]
        **{"layers": "0,2", **rest},  # type: ignore[arg-type]
    )


BY_TOKEN = chapters(MEMORY, router=ROUTERS["token"])
KINDS: dict[str, MemoryConfig] = {
    "product_keys": product_keys(),
    "product_keys, layer norm": product_keys(query_norm="layer"),
    "product_keys, batch norm": product_keys(query_norm="batch"),
    "product_keys, random": product_keys(address="random"),
    "product_keys, one row": product_keys(rows="one"),
    "product_keys, no gate": product_keys(gate="one", variant="B"),
    "product_keys, own banks": product_keys(layers_per_bank=1),
    "chapters": BY_TOKEN,
    "chapters, random": replace(BY_TOKEN, address="random"),
    "chapters, random segments": chapters(MEMORY, router=ROUTERS["segment"], address="random"),
    "chapters, one row": replace(BY_TOKEN, rows="one"),
    "token_values": MemoryConfig(kind="token_values", layers="0,2"),
    "token_values, random": MemoryConfig(kind="token_values", layers="0,2", address="random"),
}


@contextmanager
def third_kind() -> Iterator[None]:
    """``build_memory`` knows the kind of ``tests.integration.test_third_kind``."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(moc.model.memory.build, "kind_called", with_third)
        yield


def config_of(name: str) -> ModelConfig:
    return replace(DENSE, memory=KINDS[name])


def model_of(name: str) -> Transformer:
    """Every part of it matters; evaluating. To be called within ``third_kind``."""
    model = lively(config_of(name)).eval()
    generator = torch.Generator().manual_seed(5)
    for buffer_name, buffer in model.named_buffers():
        if "running" in buffer_name:  # no statistics that leave a query as it is
            buffer.normal_(generator=generator).abs_()
    return model
