"""The one model class: a decoder-only transformer, with or without memory.

B batch, L length, D model dim, V vocabulary, R rows of a bank, X their shape, U rows read.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from moc.model.config import ModelConfig
from moc.model.decode.cache import BlockState, Cache, DecodePolicy, KeyValues, check_policy
from moc.model.decode.positions import Positions
from moc.model.init import draw_parameters
from moc.model.layers import RMSNorm, SelfAttention, SwiGLU, rotary_tables
from moc.model.memory.bank import Bank
from moc.model.memory.build import build_memory
from moc.model.memory.seam import Address, Context, Kind
from moc.model.validate import validate_model
from moc.ops import linear_cross_entropy


class ModelOutput(NamedTuple):
    logits_BLV: Tensor  # none (B, L, 0) when the loss was asked for
    addresses: list[Address]  # one per memory layer, in depth order; empty without memory
    nll: Tensor | None = None  # sum over the counted targets, in nats, when asked for


class BlockInputs(NamedTuple):
    """What a block is given beside the residual stream."""

    rotary: tuple[Tensor, Tensor]
    key_values: KeyValues | None  # of the positions before, while decoding
    context: Context | None  # of its memory; None: it has none


class Block(nn.Module):
    """Variant A: attention, memory, MLP. Variant B: attention, MLP, memory, second MLP.

    Blocks without memory have neither that nor the second MLP.
    """

    def __init__(self, config: ModelConfig, kind: Kind | None) -> None:
        super().__init__()
        self.addresses_block_input = kind is not None and kind.addresses_block_input
        self.attention_norm = RMSNorm(config.dim)
        self.attention = SelfAttention(config.dim, config.num_heads, config.num_kv_heads)
        self.mlp_norm = RMSNorm(config.dim)
        self.mlp = SwiGLU(config.dim, config.mlp_dim)
        self.memory_norm = RMSNorm(config.dim) if kind else None
        self.memory = kind.build_layer() if kind else None
        second = kind is not None and kind.memory.variant == "B"
        self.memory_mlp_norm = RMSNorm(config.dim) if second else None
        self.memory_mlp = SwiGLU(config.dim, config.mlp_dim) if second else None

    def forward(self, x_BLD: Tensor, inputs: BlockInputs) -> tuple[Tensor, Address | None]:
        block_input_BLD = x_BLD
        x_BLD = x_BLD + self.attention(self.attention_norm(x_BLD), inputs.rotary, inputs.key_values)
        if self.memory is None:
            return x_BLD + self.mlp(self.mlp_norm(x_BLD)), None
        assert inputs.context is not None and self.memory_norm is not None
        looks_at_BLD = block_input_BLD if self.addresses_block_input else x_BLD
        context = inputs.context._replace(stream_BLD=looks_at_BLD)
        norm, mlp = self.mlp_norm, self.mlp
        if self.memory_mlp_norm is not None and self.memory_mlp is not None:  # variant B
            x_BLD = x_BLD + mlp(norm(x_BLD))
            norm, mlp = self.memory_mlp_norm, self.memory_mlp
        read_BLD, address = self.memory(self.memory_norm(x_BLD), context)
        x_BLD = x_BLD + read_BLD
        return x_BLD + mlp(norm(x_BLD)), address


class Transformer(nn.Module):
    """Pre-norm decoder with tied embeddings. Build it with ``build_model``."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        memory, memory_layers = config.memory, config.memory_layers()
        self.kind = build_memory(config) if memory else None
        self.embedding = nn.Embedding(config.vocab_size, config.dim)
        self.blocks = nn.ModuleList(
            Block(config, self.kind if layer in memory_layers else None)
            for layer in range(config.num_layers)
        )
        self.norm = RMSNorm(config.dim)
        per_bank = (memory and memory.layers_per_bank) or max(len(memory_layers), 1)
        self.bank_of_layer = {layer: i // per_bank for i, layer in enumerate(memory_layers)}
        self.banks = nn.ModuleList()
        if memory is not None and self.kind is not None:
            for _ in range(max(self.bank_of_layer.values()) + 1):
                one_row = memory.rows == "one"
                self.banks.append(Bank(self.kind.num_rows, self.kind.row_shape, one_row=one_row))

    def forward(
        self,
        tokens_BL: Tensor,
        *,
        pool_BL: Tensor | None = None,
        real_BL: Tensor | None = None,
        cache: Cache[Any] | None = None,
        targets_BL: Tensor | None = None,
        counted_BL: Tensor | None = None,
        slots: Sequence[Tensor] = (),
        measure: bool = False,
    ) -> ModelOutput:
        """Logits (B, L, V) at every position, or their loss, and every memory layer's address.

        Args:
            tokens_BL: int64 ids. Padding must be on the right, where no other position looks.
            pool_BL: bool, which positions ``sequence`` routing may pool: False at padding, and at
                an answer that must not steer. None: all. The causal scopes look at nothing to the
                right, so to them it makes no difference. Not with a cache.
            cache: the positions follow those that it holds, and are added to it. Addresses are
                then per position, without logits and probabilities.
            real_BL: with a cache: bool, which tokens are real (in the first call, at least one a
                row). None: all.
            targets_BL: int64 ids to predict: ``nll`` instead of logits, which then never exist at
                once; ``counted_BL`` (bool) says which of them count.
            slots: from ``gradient_slots``: the banks' gradients go there.
            measure: also fill ``Address.health`` (diagnostics; slow).
        """
        assert pool_BL is None if cache is not None else real_BL is None
        x_BLD = self.embedding(tokens_BL)
        if cache is None:
            position_L = torch.arange(tokens_BL.shape[1], device=tokens_BL.device)
        else:
            position_L = cache.begin(tokens_BL, real_BL)
        head_dim = self.config.dim // self.config.num_heads
        rotary = rotary_tables(position_L, head_dim, x_BLD)
        addresses: list[Address] = []
        for layer, block in enumerate(self.blocks):
            state = cache.blocks[layer] if cache is not None else None
            context = None
            if layer in self.bank_of_layer:
                bank = self.banks_in_order()[self.bank_of_layer[layer]]
                rows = bank.view(slots[len(addresses)] if slots else None)
                memory_state = state.memory if state else None
                context = Context(rows, tokens_BL, x_BLD, pool_BL, memory_state, measure)
            inputs = BlockInputs(rotary, state.attention if state else None, context)
            if self.config.activation_checkpointing and torch.is_grad_enabled():
                x_BLD, address = checkpoint(block, x_BLD, inputs, use_reentrant=False)
            else:
                x_BLD, address = block(x_BLD, inputs)
            if address is not None:
                addresses.append(address)
        if cache is not None:
            cache.end()
        x_BLD = self.norm(x_BLD)
        if targets_BL is None:
            return ModelOutput(F.linear(x_BLD, self.embedding.weight), addresses)
        assert counted_BL is not None
        nll = linear_cross_entropy(
            x_BLD.flatten(0, 1), self.embedding.weight, targets_BL.flatten(), counted_BL.flatten()
        )
        return ModelOutput(x_BLD.new_empty(*tokens_BL.shape, 0), addresses, nll)

    def banks_in_order(self) -> list[Bank]:
        return [cast(Bank, bank) for bank in self.banks]

    def bank_rows(self) -> list[nn.Parameter]:
        """The banks' parameters, (R, X) each, as they are now: sharding replaces them."""
        return [bank.rows for bank in self.banks_in_order()]

    def gradient_slots(self, batch: int, length: int) -> list[Tensor]:
        """Where a forward pass over (batch, length) tokens leaves the gradients of its rows.

        One leaf (U, X) per memory layer, zero and of no size in memory, U the most rows that the
        layer can read. After the backward pass row u of ``slot.grad`` is the gradient of row
        ``address.row_U[u]``, further ones mean nothing, and the banks have no gradients themselves:
        a large bank costs what is read of it.
        """
        if self.kind is None:
            return []
        most = self.kind.most_rows_read(batch, length)
        return [self.banks_in_order()[bank].slot(most) for bank in self.bank_of_layer.values()]

    def new_cache(
        self,
        batch: int,
        max_length: int,
        *,
        policy: DecodePolicy = "prompt",
        window_tokens: int | None = None,
    ) -> Cache[Any]:
        """An empty cache for ``batch`` rows of at most ``max_length`` tokens; see ``Cache``.

        Raises:
            ValueError: for an unknown policy or a window of no tokens.
        """
        check_policy(policy, window_tokens)
        positions = Positions(batch, max_length, self.embedding.weight.device)
        blocks = []
        for layer in range(self.config.num_layers):
            state = None
            if layer in self.bank_of_layer and self.kind is not None:
                state = self.kind.new_state(positions, policy, window_tokens)
            blocks.append(BlockState(KeyValues(positions), state))
        return Cache(positions, blocks)


def build_model(config: ModelConfig, seed: int = 0) -> Transformer:
    """A freshly initialised model in float32 on the CPU, drawn as ``draw_parameters`` says.

    Raises:
        ValueError: if the config cannot be built.
    """
    validate_model(config)
    model = Transformer(config)
    draw_parameters(model, config, seed)
    return model


def parameter_group(name: str) -> str:
    """``bank``, ``memory_layers`` or ``backbone``, by the parameter's name in ``Transformer``."""
    if name.startswith("banks."):
        return "bank"
    return "memory_layers" if ".memory" in name else "backbone"


def is_fixed(name: str, config: ModelConfig) -> bool:
    """Whether a parameter never trains: those of an address that is to stay random."""
    return config.memory is not None and config.memory.address == "random" and _ADDRESS in name


_ADDRESS = ".memory.address."
