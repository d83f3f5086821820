"""Named starting points of a model."""

from __future__ import annotations

from moc.model.config import (
    ChaptersConfig,
    MemoryConfig,
    ModelConfig,
    ProductKeysConfig,
    RouterConfig,
)


def preset(name: str) -> ModelConfig:
    """One of the named starting points: ``paper`` (arXiv 2603.21096), ``small``, ``tiny``, and
    ``bench``, on which ``python -m moc.bench`` measures.

    Raises:
        ValueError: for any other name.
    """
    match name:
        case "paper":
            return ModelConfig(
                preset="paper",
                vocab_size=49152,
                num_layers=16,
                dim=768,
                num_heads=12,
                num_kv_heads=4,
                mlp_dim=2304,
                residual_init_std=0.00378,
                memory=MemoryConfig(
                    layers="2,6,10,14",
                    chapters=ChaptersConfig(
                        num_chapters=4097,
                        num_routed=64,
                        chapter_tokens=64,
                        router=RouterConfig(scope="sequence", balance_over="all"),
                    ),
                    product_keys=ProductKeysConfig(num_keys=512, key_dim=512, num_read=32),
                ),
            )
        case "small":
            return ModelConfig(
                preset="small",
                vocab_size=8192,
                num_layers=8,
                dim=384,
                num_heads=6,
                num_kv_heads=2,
                mlp_dim=1152,
                memory=MemoryConfig(
                    layers="every 2",
                    chapters=ChaptersConfig(num_chapters=513, num_routed=16, chapter_tokens=32),
                    product_keys=ProductKeysConfig(num_keys=128),
                ),
            )
        case "bench":
            return ModelConfig(
                preset="bench",
                vocab_size=4096,
                num_layers=8,
                dim=256,
                mlp_dim=768,
                memory=MemoryConfig(
                    layers="1,3,5,7",
                    chapters=ChaptersConfig(
                        num_chapters=1025,
                        num_routed=16,
                        chapter_tokens=64,
                        router=RouterConfig(segment_tokens=64),
                    ),
                    product_keys=ProductKeysConfig(num_keys=256),
                ),
            )
        case "tiny":
            return ModelConfig(preset="tiny")
    raise ValueError(f"model.preset {name!r} is none of paper, small, bench, tiny")
