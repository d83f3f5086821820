"""The one model class: a decoder-only transformer, with or without memory.

B batch, L length, D model dim, V vocabulary, C chapters, T tokens per chapter, M memory width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from moc.model.config import ModelConfig, validate_model
from moc.model.decode.cache import BlockState, Cache, DecodePolicy, KeyValues, check_policy
from moc.model.decode.positions import Positions
from moc.model.init import draw_parameters
from moc.model.layers import RMSNorm, SelfAttention, SwiGLU, rotary_tables
from moc.model.memory.bank import Bank, most_distinct
from moc.model.memory.chapters import MemoryInputs, MemoryRead
from moc.model.memory.memory_state import MemoryState
from moc.model.memory.router import Routing, group_tokens
from moc.ops import linear_cross_entropy


class ModelOutput(NamedTuple):
    logits_BLV: Tensor  # none (B, L, 0) when the loss was asked for
    routing: list[Routing]  # one per memory layer, in depth order; empty without memory
    nll: Tensor | None = None  # sum over the counted targets, in nats, when asked for


class BlockInputs(NamedTuple):
    """What a block is given beside the residual stream."""

    rotary: tuple[Tensor, Tensor]
    key_values: KeyValues | None  # of the positions before, while decoding
    memory: MemoryInputs | None  # None: it reads none


class Block(nn.Module):
    """Variant A: attention, memory read, MLP. Variant B: attention, MLP, memory read, second MLP.

    Blocks without memory have neither the read nor the second MLP.
    """

    def __init__(self, config: ModelConfig, *, reads_memory: bool) -> None:
        super().__init__()
        memory = config.memory if reads_memory else None
        self.routes_on_block_input = memory is None or memory.router.input == "block_input"
        self.attention_norm = RMSNorm(config.dim)
        self.attention = SelfAttention(config.dim, config.num_heads, config.num_kv_heads)
        self.mlp_norm = RMSNorm(config.dim)
        self.mlp = SwiGLU(config.dim, config.mlp_dim)
        self.memory = MemoryRead(config) if memory else None
        second = memory is not None and memory.variant == "B"
        self.memory_mlp_norm = RMSNorm(config.dim) if second else None
        self.memory_mlp = SwiGLU(config.dim, config.mlp_dim) if second else None

    def forward(self, x_BLD: Tensor, inputs: BlockInputs) -> tuple[Tensor, Routing | None]:
        block_input_BLD = x_BLD
        x_BLD = x_BLD + self.attention(self.attention_norm(x_BLD), inputs.rotary, inputs.key_values)
        router_input_BLD = block_input_BLD if self.routes_on_block_input else x_BLD
        norm, mlp = self.mlp_norm, self.mlp
        if self.memory_mlp_norm is not None and self.memory_mlp is not None:  # variant B
            x_BLD = x_BLD + mlp(norm(x_BLD))
            norm, mlp = self.memory_mlp_norm, self.memory_mlp
        routing = None
        if self.memory is not None:
            assert inputs.memory is not None
            read_BLD, routing = self.memory(x_BLD, router_input_BLD, inputs.memory)
            x_BLD = x_BLD + read_BLD
        return x_BLD + mlp(norm(x_BLD)), routing


class Transformer(nn.Module):
    """Pre-norm decoder with tied embeddings. Build it with ``build_model``."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        memory, memory_layers = config.memory, config.memory_layers()
        self.embedding = nn.Embedding(config.vocab_size, config.dim)
        self.blocks = nn.ModuleList(
            Block(config, reads_memory=layer in memory_layers) for layer in range(config.num_layers)
        )
        self.norm = RMSNorm(config.dim)
        per_bank = (memory and memory.layers_per_bank) or max(len(memory_layers), 1)
        self.bank_of_layer = {layer: i // per_bank for i, layer in enumerate(memory_layers)}
        self.banks = nn.ModuleList()
        if memory is not None:
            for _ in range(max(self.bank_of_layer.values()) + 1):
                width = memory.dim or config.dim
                self.banks.append(Bank(memory.num_chapters, memory.chapter_tokens, width))

    def forward(
        self,
        tokens_BL: Tensor,
        *,
        pool_BL: Tensor | None = None,
        real_BL: Tensor | None = None,
        cache: Cache[MemoryState] | None = None,
        targets_BL: Tensor | None = None,
        counted_BL: Tensor | None = None,
        slots: Sequence[Tensor] = (),
        measure_mass: bool = False,
    ) -> ModelOutput:
        """Logits (B, L, V) at every position, or their loss, and every memory layer's routing.

        Args:
            tokens_BL: int64 ids. Padding must be on the right, where no other position looks.
            pool_BL: bool, which positions ``sequence`` routing may pool: False at padding, and at
                an answer that must not steer. None: all. The causal scopes look at nothing to the
                right, so to them it makes no difference. Not with a cache.
            cache: the positions follow those that it holds, and are added to it. The routing's
                index and weights are per position, its logits and probabilities empty.
            real_BL: with a cache: bool, which tokens are real (in the first call, at least one a
                row). None: all.
            targets_BL: int64 ids to predict: ``nll`` instead of logits, which then never exist at
                once; ``counted_BL`` (bool) says which of them count.
            slots: from ``gradient_slots``: the banks' gradients go there.
            measure_mass: also fill ``Routing.shared_mass`` (diagnostics; slow).
        """
        assert pool_BL is None if cache is not None else real_BL is None
        x_BLD = self.embedding(tokens_BL)
        if cache is None:
            position_L = torch.arange(tokens_BL.shape[1], device=tokens_BL.device)
        else:
            position_L = cache.begin(tokens_BL, real_BL)
        head_dim = self.config.dim // self.config.num_heads
        rotary = rotary_tables(position_L, head_dim, x_BLD)
        routings: list[Routing] = []
        for layer, block in enumerate(self.blocks):
            state = cache.blocks[layer] if cache is not None else None
            memory = None
            if layer in self.bank_of_layer:
                bank_CTM: Tensor = self.bank_tokens()[self.bank_of_layer[layer]]
                slot_UTM = slots[len(routings)] if slots else None
                if slot_UTM is not None:
                    # else a sharded block, which hooks its inputs, would give the bank a gradient
                    bank_CTM = bank_CTM.detach()
                memory_state = state.memory if state else None
                memory = MemoryInputs(bank_CTM, slot_UTM, pool_BL, memory_state, measure_mass)
            inputs = BlockInputs(rotary, state.attention if state else None, memory)
            if self.config.activation_checkpointing and torch.is_grad_enabled():
                x_BLD, routing = checkpoint(block, x_BLD, inputs, use_reentrant=False)
            else:
                x_BLD, routing = block(x_BLD, inputs)
            if routing is not None:
                routings.append(routing)
        if cache is not None:
            cache.end()
        x_BLD = self.norm(x_BLD)
        if targets_BL is None:
            return ModelOutput(F.linear(x_BLD, self.embedding.weight), routings)
        assert counted_BL is not None
        nll = linear_cross_entropy(
            x_BLD.flatten(0, 1), self.embedding.weight, targets_BL.flatten(), counted_BL.flatten()
        )
        return ModelOutput(x_BLD.new_empty(*tokens_BL.shape, 0), routings, nll)

    def bank_tokens(self) -> list[nn.Parameter]:
        """The banks' parameters, (C, T, M) each, as they are now: sharding replaces them."""
        return [cast(Bank, bank).tokens for bank in self.banks]

    def gradient_slots(self, batch: int, length: int) -> list[Tensor]:
        """Where a forward pass over (batch, length) tokens leaves the gradients of its chapters.

        One leaf (U, T, M) per memory layer, zero and of no size in memory, U the most chapters that
        the layer can read. After the backward pass row u of ``slot.grad`` is the gradient of
        chapter ``routing.chapter_U[u]``, further rows mean nothing, and the banks have no gradients
        themselves: a large bank costs what is read of it.
        """
        memory = self.config.memory
        if memory is None:
            return []
        slots = []
        for bank in self.bank_of_layer.values():
            tokens_CTM = self.bank_tokens()[bank]
            num_groups, num_read = 1, memory.num_chapters
            if memory.num_routed is not None:
                num_groups = -(-length // group_tokens(memory.router, length))
                num_read = memory.num_shared + memory.num_routed
            shape_BGN = (batch, num_groups, num_read)
            most = most_distinct(memory.num_chapters, shape_BGN, memory.num_shared)
            zero = torch.zeros((), dtype=tokens_CTM.dtype, device=tokens_CTM.device)
            slots.append(zero.expand(most, *tokens_CTM.shape[1:]).requires_grad_())
        return slots

    def new_cache(
        self,
        batch: int,
        max_length: int,
        *,
        policy: DecodePolicy = "prompt",
        window_tokens: int | None = None,
    ) -> Cache[MemoryState]:
        """An empty cache for ``batch`` rows of at most ``max_length`` tokens; see ``Cache``.

        Raises:
            ValueError: for an unknown policy or a window of no tokens.
        """
        check_policy(policy, window_tokens)
        positions = Positions(batch, max_length, self.embedding.weight.device)
        blocks = []
        for layer in range(self.config.num_layers):
            state = None
            if layer in self.bank_of_layer and self.config.memory is not None:
                state = MemoryState(self.config.memory, positions, policy, window_tokens)
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
