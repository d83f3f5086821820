"""The names that ``moc.model`` offers, in one import; it imports torch, which takes seconds."""

from moc.model.config import (
    ChaptersConfig,
    MemoryConfig,
    ModelConfig,
    ProductKeysConfig,
    RouterConfig,
    parse_layers,
)
from moc.model.decode.generate import generate, stream
from moc.model.files import load_model, read_safetensors, save_model, write_safetensors
from moc.model.memory.build import build_memory, is_causal, routing_scope
from moc.model.memory.seam import Address, Kind
from moc.model.presets import preset
from moc.model.transformer import ModelOutput, Transformer, build_model
from moc.model.validate import validate_model

__all__ = [
    "Address",
    "ChaptersConfig",
    "Kind",
    "MemoryConfig",
    "ModelConfig",
    "ModelOutput",
    "ProductKeysConfig",
    "RouterConfig",
    "Transformer",
    "build_memory",
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
