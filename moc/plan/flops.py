"""What a model costs: parameters, and FLOPs in two accountings.

``paper`` counts what arXiv 2603.21096 (appendix A.2) counts, element-wise work included.
``hardware`` counts the matrix products that ``moc.model`` executes, as ``torch.utils.flop_counter``
does. Both are closed forms; what a memory costs is said beside its kind.

B batch, L sequence length, D model dim, V vocabulary.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from moc.model.config import ModelConfig
from moc.model.memory.arithmetic import attention, linear, norm
from moc.model.memory.build import build_memory
from moc.model.memory.seam import Products


@dataclass(frozen=True)
class Parameters:
    """Numbers of parameters, by optimizer group."""

    backbone: int
    memory_layers: int
    bank: int

    @property
    def total(self) -> int:
        return self.backbone + self.memory_layers + self.bank


def parameter_counts(config: ModelConfig) -> Parameters:
    """Exact parameter counts; the tied embedding counts once, in the backbone."""
    dim = config.dim
    attention_maps = 2 * dim * dim + 2 * dim * kv_dim(config)
    mlp = 3 * dim * config.mlp_dim
    backbone = config.vocab_size * dim + config.num_layers * (attention_maps + mlp + 2 * dim) + dim
    memory = config.memory
    if memory is None:
        return Parameters(backbone, 0, 0)
    kind = build_memory(config)
    layer = dim + kind.layer_parameters()
    if memory.variant == "B":
        layer += dim + mlp
    num_layers = len(config.memory_layers())
    num_rows = 1 if memory.rows == "one" else kind.num_rows
    bank = num_rows * math.prod(kind.row_shape)
    return Parameters(backbone, num_layers * layer, num_banks(config) * bank)


def num_banks(config: ModelConfig) -> int:
    if config.memory is None:
        return 0
    num_layers = len(config.memory_layers())
    return -(-num_layers // (config.memory.layers_per_bank or num_layers))


def paper_forward_flops(config: ModelConfig, context_length: int, batch: int = 1) -> int:
    """FLOPs of one forward pass over ``batch`` sequences with its losses (paper, appendix A.2).

    Backward is twice this.
    """
    dim, tokens = config.dim, batch * context_length
    block = (
        2 * linear(tokens, dim, dim)
        + 2 * linear(tokens, dim, kv_dim(config))
        + attention(batch, context_length, context_length, dim, config.num_heads)
        + 3 * tokens * (dim + kv_dim(config))  # rotary embedding
        + norm(tokens, dim)
        + tokens * dim  # residual
        + _paper_mlp(config, tokens)
    )
    head = linear(tokens, dim, config.vocab_size) + 5 * (tokens - 1) * config.vocab_size
    total = config.num_layers * block + norm(tokens, dim) + head
    if config.memory is not None:
        layer = build_memory(config).paper_flops(context_length, batch)
        layer += norm(tokens, dim) + tokens * dim  # residual
        if config.memory.variant == "B":
            layer += _paper_mlp(config, tokens)
        total += len(config.memory_layers()) * layer
    return total


def hardware_train_flops_per_token(
    config: ModelConfig, context_length: int, micro_batch: int, *, gpu: bool = False
) -> float:
    """FLOPs per token of one forward and backward pass over ``micro_batch`` sequences.

    Matrix products only, a multiply-add counting as two, nothing frozen, causal scores in full.
    Attention keeps no scores: its backward pass makes five products where the forward pass made
    two.
    """
    dim, tokens = config.dim, micro_batch * context_length
    mlp = 3 * linear(tokens, dim, config.mlp_dim)
    maps: float = config.num_layers * (
        2 * linear(tokens, dim, dim) + 2 * linear(tokens, dim, kv_dim(config)) + mlp
    )
    scores: float = config.num_layers * 4 * tokens * context_length * dim
    head = linear(tokens, dim, config.vocab_size)
    skipped = 0.0
    memory = config.memory
    if memory is not None:
        num_layers = len(config.memory_layers())
        read: Products = build_memory(config).products(context_length, micro_batch, gpu=gpu)
        maps += num_layers * read.linear + num_layers * mlp * (memory.variant == "B")
        scores += num_layers * read.attention
        skipped += num_layers * read.saved
    passes, attention_passes = 3.0, 3.5
    if config.activation_checkpointing:
        passes, attention_passes = passes + 1, attention_passes + 1
        # recomputation stops at the last tensor that backward needs, so a block's last product,
        # the MLP's down projection, is not repeated
        skipped += config.num_layers * linear(tokens, config.mlp_dim, dim)
    return (passes * maps + attention_passes * scores + 3 * head - skipped) / tokens


def kv_dim(config: ModelConfig) -> int:
    """Width of self-attention's keys, and of its values."""
    return config.num_kv_heads * (config.dim // config.num_heads)


def _paper_mlp(config: ModelConfig, tokens: int) -> int:
    """SwiGLU with its norm and residual."""
    products = 3 * linear(tokens, config.dim, config.mlp_dim)
    activation = 5 * tokens * config.mlp_dim
    return products + activation + norm(tokens, config.dim) + tokens * config.dim
