"""Configs that cannot be built, and how memory layers are named.

What would break for a user: a mistake found after hours, or in words of another layer.
"""

from dataclasses import replace

import pytest

from moc.model import (
    RouterConfig,
    build_model,
    is_causal,
    preset,
    routing_scope,
    validate_model,
)
from tests.support.small_models import CAUSAL, DENSE, MEMORY, MOC, chapters, with_router


@pytest.mark.parametrize(
    ("changes", "memory", "words"),
    [
        ({"dim": 33}, {}, "model.num_heads 4 does not divide model.dim 33"),
        ({"num_kv_heads": 3}, {}, "model.num_kv_heads 3 does not divide 4 heads"),
        ({"num_heads": 32, "num_kv_heads": 1}, {}, "even head width"),
        ({"vocab_size": 0}, {}, "model.vocab_size must be from 1 to 10_000_000, not 0"),
        ({"num_heads": -4}, {}, "model.num_heads must be from 1 to 10_000, not -4"),
        ({}, {"num_chapters": 0, "num_shared": 0}, "num_chapters must be from 1"),
        ({}, {"chapter_tokens": 0}, "chapter_tokens must be from 1"),
        ({}, {"num_shared": 10}, "num_shared is 10, but there are 9"),
        ({}, {"num_shared": -1}, "num_shared must be from 0"),
        ({}, {"num_routed": 9}, "num_routed must be 1 to 8"),
        ({}, {"num_routed": 0}, "num_routed must be from 1"),
        ({}, {"layers": "0,3"}, "'0,3' does not fit a model of 3 layers"),
        ({}, {"layers": "every other"}, "'every other' is none of"),
        ({}, {"layers": "every 0"}, "'every 0' does not fit"),
        ({}, {"layers": ""}, "'' is none of"),
        ({}, {"layers_per_bank": 0}, "layers_per_bank must be from 1"),
        ({}, {"num_heads": 5}, "model.memory.chapters.num_heads 5 does not divide model.dim 32"),
        ({}, {"num_heads": -2}, "model.memory.chapters.num_heads must be from 1"),
        ({}, {"num_kv_heads": 3}, "model.memory.chapters.num_kv_heads 3 does not divide 4"),
        ({}, {"dim": 0}, "model.memory.chapters.dim must be from 1"),
        ({}, {"variant": "C"}, "model.memory.variant 'C' is none of A, B"),
        ({}, {"mixing": "sum"}, "model.memory.chapters.mixing 'sum' is none of joint"),
        ({}, {"output_init": "one"}, "model.memory.output_init 'one'"),
        ({}, {"router": RouterConfig(scope="batch")}, "model.memory.chapters.router.scope 'batch'"),
        ({}, {"router": RouterConfig(input="output")}, "memory.chapters.router.input 'output'"),
        (
            {},
            {"router": RouterConfig(segment_tokens=0)},
            "segment_tokens must be from 1",
        ),
        ({}, {"router": RouterConfig(window_tokens=0)}, "window_tokens must be from 1"),
        ({}, {"router": RouterConfig(scope="token", window_tokens=3)}, "for scope token"),
        (
            {},
            {"router": RouterConfig(scope="sequence", window_tokens=3)},
            "for scope sequence",
        ),
        ({}, {"router": RouterConfig(bias_rate=-0.1)}, "router.bias_rate must be from 0"),
        ({}, {"router": RouterConfig(z_loss_coefficient=-1)}, "z_loss_coefficient must be from 0"),
    ],
)
def test_impossible_configs_are_refused_in_one_line(changes, memory, words):
    config = replace(MOC, **changes, memory=chapters(MEMORY, **memory))
    with pytest.raises(ValueError) as caught:  # noqa: PT011 the words are checked below
        build_model(config)
    message = str(caught.value)
    assert words in message and "\n" not in message


@pytest.mark.parametrize(
    ("spec", "num_layers", "expected"),
    [
        ("every 4", 16, [2, 6, 10, 14]),
        ("every 2", 4, [1, 3]),
        ("every 1", 3, [0, 1, 2]),
        ("all", 3, [0, 1, 2]),
        ("first 2", 4, [0, 1]),
        ("last 2", 4, [2, 3]),
        ("last 9", 3, [0, 1, 2]),
        ("3, 1,1", 4, [1, 3]),
    ],
)
def test_memory_layers_can_be_named(spec, num_layers, expected):
    config = replace(MOC, num_layers=num_layers, memory=chapters(MEMORY, layers=spec))
    validate_model(config)
    assert config.memory_layers() == expected
    reads = [block.memory is not None for block in build_model(config).blocks]
    assert [i for i, read in enumerate(reads) if read] == expected


def test_the_label_follows_the_routing():
    """What stands in the plan, the tags and every table; the published preset is non-causal."""
    for scope in CAUSAL:
        config = with_router(scope)
        assert routing_scope(config) == ("token" if scope == "token" else "segment")
        assert is_causal(config)
    assert routing_scope(with_router("sequence")) == "sequence"
    assert not is_causal(with_router("sequence"))
    every_chapter = with_router("sequence", num_routed=None).memory
    for config in (DENSE, replace(DENSE, memory=every_chapter)):
        assert routing_scope(config) == "none" and is_causal(config)
    assert [is_causal(preset(name)) for name in ("paper", "small", "tiny")] == [False, True, True]
