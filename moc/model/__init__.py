"""The model: needs torch alone.

In: a ``ModelConfig``, token ids. Out: logits or their loss, and how every memory layer was routed.

>>> from moc.model import build_model, generate, load_model, preset
"""

from moc.model.config import (
    MemoryConfig,
    ModelConfig,
    RouterConfig,
    is_causal,
    parse_layers,
    preset,
    routing_scope,
    validate_model,
)
from moc.model.decode.generate import generate, stream
from moc.model.files import load_model, read_safetensors, save_model, write_safetensors
from moc.model.memory.router import Routing
from moc.model.transformer import ModelOutput, Transformer, build_model

__all__ = [
    "MemoryConfig",
    "ModelConfig",
    "ModelOutput",
    "RouterConfig",
    "Routing",
    "Transformer",
    "build_model",
    "generate",
    "is_causal",
    "load_model",
    "parse_layers",
    "preset",
    "read_safetensors",
    "routing_scope",
    "save_model",
    "stream",
    "validate_model",
    "write_safetensors",
]
