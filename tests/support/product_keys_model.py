"""A whole model with product keys as loops in float64, and AdamW written out.

The backbone is that of ``tests.support.oracle``, the memory that of ``product_keys_oracle``.
B batch, L length, V vocabulary, X = B * L positions.
"""

from __future__ import annotations

import torch
from torch import Tensor

from moc.model import MemoryConfig, ModelConfig, ProductKeysConfig, Transformer
from tests.support.oracle import Weights, _mlp, _self_attention, naive_norm, unfused
from tests.support.product_keys_oracle import naive_product_keys

NUM_HALF, NUM_HEADS, KEY_DIM, K = 3, 2, 4, 4  # more values per head than half-keys on a side
NORM = "memory.address.query_norm"


def small_config(
    *, query_norm: str = "none", num_keys: int = NUM_HALF, **memory: object
) -> ModelConfig:
    """Two layers, both with memory."""
    keys = ProductKeysConfig(
        num_keys=num_keys,
        num_heads=NUM_HEADS,
        num_read=K,
        key_dim=KEY_DIM,
        query_norm=query_norm,  # type: ignore[arg-type]
    )
    return ModelConfig(
        vocab_size=11,
        num_layers=2,
        dim=8,
        num_heads=2,
        num_kv_heads=1,
        mlp_dim=10,
        memory=MemoryConfig(kind="product_keys", layers="all", product_keys=keys, **memory),  # type: ignore[arg-type]
    )


def randomise(model: Transformer, std: float = 0.6) -> Transformer:
    """Large float64 weights, and running statistics of some text or other."""
    model.double()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            tensor.normal_(0.0, std, generator=generator)
            if name.endswith("running_var_Q"):
                tensor.abs_()
    return model


def leaves(model: Transformer) -> Weights:
    """Copies of all weights, every map by itself; of buffers, without a gradient."""
    copies = {
        name: tensor.detach().clone()
        for name, tensor in unfused(model.config, model.state_dict()).items()
    }
    for name in unfused(model.config, dict(model.named_parameters())):
        copies[name].requires_grad_()
    return copies


def naive_logits(
    config: ModelConfig, weights: Weights, tokens_BL: Tensor, *, training: bool = True
) -> Tensor:
    """Logits (B, L, V). Batch norm spans all positions of the batch."""
    memory = config.memory
    assert memory is not None
    streams = [[weights["embedding.weight"][token] for token in row] for row in tokens_BL]
    per_bank = memory.layers_per_bank or config.num_layers
    for layer in range(config.num_layers):
        prefix = f"blocks.{layer}."
        streams = [_sum(s, _self_attention(config, weights, prefix, s)) for s in streams]
        if memory.variant == "B":
            streams = [_sum(s, _mlp(weights, prefix + "mlp", s)) for s in streams]
        norm = weights[prefix + "memory_norm.weight"]
        x_XD = torch.stack([naive_norm(x, norm) for stream in streams for x in stream])
        bank = weights[f"banks.{layer // per_bank}.rows"]
        read = naive_product_keys(
            x_XD,
            _tensors(weights, prefix, bank),
            num_heads=NUM_HEADS,
            key_dim=KEY_DIM,
            k=K,
            query_norm=memory.product_keys.query_norm,
            training=training,
        )
        reads = read.out.split(tokens_BL.shape[1])
        streams = [_sum(s, list(out_LD)) for s, out_LD in zip(streams, reads, strict=True)]
        last = "mlp" if memory.variant == "A" else "memory_mlp"
        streams = [_sum(s, _mlp(weights, prefix + last, s)) for s in streams]
    head = weights["embedding.weight"]
    rows = [
        torch.stack([head @ naive_norm(x, weights["norm.weight"]) for x in stream])
        for stream in streams
    ]
    return torch.stack(rows)


def _tensors(weights: Weights, prefix: str, bank: Tensor) -> dict[str, Tensor]:
    names = {
        "query": "memory.address.query.weight",
        "keys": "memory.address.half_keys",
        "gate": "memory.read.gate.weight",
        "out": "memory.read.out.weight",
        "norm_weight": f"{NORM}.weight",
        "norm_bias": f"{NORM}.bias",
        "running_mean": f"{NORM}.running_mean_Q",
        "running_var": f"{NORM}.running_var_Q",
    }
    found = {key: weights[prefix + name] for key, name in names.items() if prefix + name in weights}
    return {**found, "values": bank}


def _sum(stream: list[Tensor], update: list[Tensor]) -> list[Tensor]:
    return [x + y for x, y in zip(stream, update, strict=True)]


class NaiveAdamW:
    """AdamW as its definition (arXiv 1711.05101), tensor by tensor; with ``rows``, row by row."""

    def __init__(self, lr: float, decay: float, beta1: float, beta2: float, eps: float) -> None:
        self.lr, self.decay, self.beta1, self.beta2, self.eps = lr, decay, beta1, beta2, eps
        self.steps, self.mean, self.square = 0, torch.zeros(()), torch.zeros(())

    def update(self, tensor: Tensor, gradient: Tensor) -> None:
        """One step, in place."""
        self.steps += 1
        self.mean = self.beta1 * self.mean + (1 - self.beta1) * gradient
        self.square = self.beta2 * self.square + (1 - self.beta2) * gradient * gradient
        mean = self.mean / (1 - self.beta1**self.steps)
        square = self.square / (1 - self.beta2**self.steps)
        change = self.lr * (mean / (square.sqrt() + self.eps) + self.decay * tensor)
        tensor -= change
