"""The one model class: a decoder-only transformer, with or without memory.

B batch, L length, D model dim, V vocabulary, C chapters, T tokens per chapter, M memory width.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from moc.model.config import ModelConfig, validate_model
from moc.model.decode.cache import BlockState, Cache, DecodePolicy
from moc.model.layers import FusedLinear, RMSNorm, SelfAttention, SwiGLU, rotary_tables
from moc.model.memory.bank import Bank, most_distinct
from moc.model.memory.chapters import MemoryRead
from moc.model.memory.router import Routing, group_tokens
from moc.ops import linear_cross_entropy


class ModelOutput(NamedTuple):
    logits_BLV: Tensor  # none (B, L, 0) when the loss was asked for
    routing: list[Routing]  # one per memory layer, in depth order; empty without memory
    nll: Tensor | None = None  # sum over the counted targets, in nats, when asked for


class Block(nn.Module):
    """Variant A: attention, memory read, MLP. Variant B: attention, MLP, memory read, second MLP.

    Blocks without memory have neither the read nor the second MLP.
    """

    def __init__(self, config: ModelConfig, *, reads_memory: bool) -> None:
        super().__init__()
        memory = config.memory if reads_memory else None
        self.variant = memory.variant if memory else "A"
        self.tap = memory.router.tap if memory else "block_input"
        self.attention_norm = RMSNorm(config.dim)
        self.attention = SelfAttention(config.dim, config.num_heads, config.num_kv_heads)
        self.mlp_norm = RMSNorm(config.dim)
        self.mlp = SwiGLU(config.dim, config.mlp_dim)
        self.memory = MemoryRead(config) if memory else None
        second = memory is not None and memory.variant == "B"
        self.memory_mlp_norm = RMSNorm(config.dim) if second else None
        self.memory_mlp = SwiGLU(config.dim, config.mlp_dim) if second else None

    def forward(
        self,
        x_BLD: Tensor,
        rotary: tuple[Tensor, Tensor],
        bank_CTM: Tensor | None,
        pooled_BL: Tensor | None,
        state: BlockState | None,
        tap_UTM: Tensor | None,
        measure_mass: bool,
    ) -> tuple[Tensor, Routing | None]:
        tapped_BLD = x_BLD
        attended = state.attention if state else None
        x_BLD = x_BLD + self.attention(self.attention_norm(x_BLD), rotary, attended)
        if self.tap == "post_attention":
            tapped_BLD = x_BLD
        if self.variant == "B":
            x_BLD = x_BLD + self.mlp(self.mlp_norm(x_BLD))
        routing = None
        if self.memory is not None:
            assert bank_CTM is not None
            read_BLD, routing = self.memory(
                x_BLD,
                tapped_BLD,
                bank_CTM,
                pooled_BL,
                state=state.memory if state else None,
                tap_UTM=tap_UTM,
                measure_mass=measure_mass,
            )
            x_BLD = x_BLD + read_BLD
        if self.variant == "A":
            x_BLD = x_BLD + self.mlp(self.mlp_norm(x_BLD))
        if self.memory_mlp is not None and self.memory_mlp_norm is not None:
            x_BLD = x_BLD + self.memory_mlp(self.memory_mlp_norm(x_BLD))
        return x_BLD, routing


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
        pooled_BL: Tensor | None = None,
        *,
        cache: Cache | None = None,
        targets_BL: Tensor | None = None,
        counted_BL: Tensor | None = None,
        taps: Sequence[Tensor] = (),
        measure_mass: bool = False,
    ) -> ModelOutput:
        """Logits (B, L, V) at every position, or their loss, and every memory layer's routing.

        Args:
            tokens_BL: int64 ids. Padding must be on the right, where no other position looks.
            pooled_BL: bool, which positions ``sequence`` routing may pool: False at padding, and at
                an answer that must not steer. None: all. The causal scopes look at nothing to the
                right, so to them it makes no difference.
            cache: the positions follow those that it holds, and are added to it; ``pooled_BL``
                then says which tokens are real (in the first call, at least one a row). The
                routing's index and weights are per position, its logits and probabilities empty.
            targets_BL: int64 ids to predict: ``nll`` instead of logits, which then never exist at
                once; ``counted_BL`` (bool) says which of them count.
            taps: from ``taps``: the banks' gradients go there.
            measure_mass: also fill ``Routing.shared_mass`` (diagnostics; slow).
        """
        x_BLD = self.embedding(tokens_BL)
        if cache is None:
            position_L = torch.arange(tokens_BL.shape[1], device=tokens_BL.device)
        else:
            position_L = cache.begin(tokens_BL, pooled_BL)
        head_dim = self.config.dim // self.config.num_heads
        rotary = rotary_tables(position_L, head_dim, x_BLD)
        routings: list[Routing] = []
        for layer, block in enumerate(self.blocks):
            bank = self.bank_of_layer.get(layer)
            bank_CTM: Tensor | None = None if bank is None else self.bank_tokens()[bank]
            state = cache.blocks[layer] if cache is not None else None
            tap_UTM = None
            if taps and bank_CTM is not None:
                tap_UTM = taps[len(routings)]
                # else a sharded block, which hooks its inputs, would give the bank a gradient
                bank_CTM = bank_CTM.detach()
            arguments = (x_BLD, rotary, bank_CTM, pooled_BL, state, tap_UTM, measure_mass)
            if self.config.activation_checkpointing and torch.is_grad_enabled():
                x_BLD, routing = checkpoint(block, *arguments, use_reentrant=False)
            else:
                x_BLD, routing = block(*arguments)
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

    def taps(self, batch: int, length: int) -> list[Tensor]:
        """Where a forward pass over (batch, length) tokens leaves the gradients of its chapters.

        One leaf (U, T, M) per memory layer, zero and of no size in memory, U the most chapters that
        the layer can read. After the backward pass row u of ``tap.grad`` is the gradient of chapter
        ``routing.chapter_U[u]``, further rows mean nothing, and the banks have no gradients
        themselves: a large bank costs what is read of it.
        """
        memory = self.config.memory
        if memory is None:
            return []
        taps = []
        for bank in self.bank_of_layer.values():
            tokens_CTM = self.bank_tokens()[bank]
            num_groups, num_read = 1, memory.num_chapters
            if memory.num_routed is not None:
                num_groups = -(-length // group_tokens(memory.router, length))
                num_read = memory.num_shared + memory.num_routed
            shape_BGN = (batch, num_groups, num_read)
            most = most_distinct(memory.num_chapters, shape_BGN, memory.num_shared)
            zero = torch.zeros((), dtype=tokens_CTM.dtype, device=tokens_CTM.device)
            taps.append(zero.expand(most, *tokens_CTM.shape[1:]).requires_grad_())
        return taps

    def new_cache(
        self,
        batch: int,
        max_length: int,
        *,
        policy: DecodePolicy = "prompt",
        window_tokens: int | None = None,
    ) -> Cache:
        """An empty cache for ``batch`` rows of at most ``max_length`` tokens; see ``Cache``."""
        weight = self.embedding.weight
        return Cache(
            self.config,
            batch,
            max_length,
            policy=policy,
            window_tokens=window_tokens,
            device=weight.device,
        )


def build_model(config: ModelConfig, seed: int = 0) -> Transformer:
    """A freshly initialised model in float32 on the CPU.

    Every parameter is drawn from a generator of its own, seeded by (seed, name): two arms with one
    seed start from the same backbone, whatever else they contain.

    Raises:
        ValueError: if the config cannot be built.
    """
    validate_model(config)
    model = Transformer(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            std = _init_std(name, config)
            if std is None:
                continue  # norms stay at one
            for part_name, part in _parts(model, name, parameter):
                digest = hashlib.sha256(f"{seed}/{part_name}".encode()).digest()
                generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "little"))
                part.normal_(0.0, std, generator=generator) if std else part.zero_()
    return model


def _parts(model: Transformer, name: str, parameter: Tensor) -> list[tuple[str, Tensor]]:
    """What is drawn by itself: the maps of a fused projection are ``<parent>.<part>.weight``."""
    owner = name.rpartition(".")[0]
    module = model.get_submodule(owner)
    if not isinstance(module, FusedLinear):
        return [(name, parameter)]
    parent = owner.rpartition(".")[0]
    rows = parameter.split(list(module.parts.values()))
    return [(f"{parent}.{part}.weight", row) for part, row in zip(module.parts, rows, strict=True)]


def parameter_group(name: str) -> str:
    """``bank``, ``memory_layers`` or ``backbone``, by the parameter's name in ``Transformer``."""
    if name.startswith("banks."):
        return "bank"
    return "memory_layers" if ".memory" in name else "backbone"


def _init_std(name: str, config: ModelConfig) -> float | None:
    """None: leave at its default (norm weights); 0: zero."""
    residual = config.residual_init_std
    if residual is None:
        residual = config.init_std / (2 * config.num_layers) ** 0.5
    if name.endswith("norm.weight"):
        return None
    if name.endswith(".bias"):
        return 0.0
    if name.startswith("banks."):
        assert config.memory is not None
        return config.memory.bank_init_std
    if name.endswith("memory.out.weight"):
        assert config.memory is not None
        return 0.0 if config.memory.output_init == "zero" else residual
    if name.endswith(("attention.out.weight", "mlp.down.weight")):
        return residual
    return config.init_std
