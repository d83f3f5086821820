"""The model as a whole: sizes, initialisation, and a backbone that others know.

What would break for a user: counts that are not the published ones, arms of one seed that differ in
more than their memory, weights that mean something else elsewhere.
"""

import math
from dataclasses import replace

import pytest
import torch

from moc.model import Transformer, build_model, preset
from moc.model.memory.build import build_memory
from moc.model.transformer import parameter_group
from tests.support.oracle import unfused
from tests.support.small_models import DENSE, MEMORY, MOC, chapters, lively, tokens_of

# sizes


def test_parameter_counts_are_the_published_ones():
    paper = preset("paper")
    shapes = {
        "backbone": (replace(paper, memory=None), (147_874_560, 0, 0)),
        "iso_flop": (replace(paper, memory=None, num_layers=24), (202_937_088, 0, 0)),
        "moc": (paper, (147_874_560, 22_042_628, 201_375_744)),
    }
    for name, (config, expected) in shapes.items():
        with torch.device("meta"):
            model = Transformer(config)
        counts = {"backbone": 0, "memory_layers": 0, "bank": 0}
        for parameter_name, parameter in model.named_parameters():
            counts[parameter_group(parameter_name)] += parameter.numel()
        assert tuple(counts.values()) == expected, name
    assert sum(expected) == 371_292_932


def test_every_parameter_is_in_the_group_that_its_learning_rate_is_meant_for():
    model = build_model(replace(MOC, memory=chapters(MEMORY, variant="B", layers_per_bank=1)))
    groups = {name: parameter_group(name) for name, _ in model.named_parameters()}
    assert {name for name, group in groups.items() if group == "bank"} == {
        "banks.0.rows",
        "banks.1.rows",
    }
    parts = ("memory.", "memory_norm.", "memory_mlp.", "memory_mlp_norm.")
    assert {name for name, group in groups.items() if group == "memory_layers"} == {
        name for name in groups if name.split(".", 2)[-1].startswith(parts)
    }


# initialisation


def test_a_fresh_memory_changes_nothing():
    """Variant A with its memory at init is the dense model of the same seed, bit for bit."""
    dense, moc = build_model(DENSE, 5), build_model(MOC, 5)
    tokens_BL = tokens_of(2, 10)
    assert torch.equal(moc(tokens_BL).logits_BLV, dense(tokens_BL).logits_BLV)
    normal = build_model(replace(MOC, memory=chapters(MEMORY, output_init="normal")), 5)
    assert not torch.equal(normal(tokens_BL).logits_BLV, dense(tokens_BL).logits_BLV)


def test_a_fresh_memory_in_variant_b_adds_only_the_second_mlp():
    model = build_model(replace(MOC, memory=chapters(MEMORY, variant="B")), 5)
    tokens_BL = tokens_of(2, 10)
    fresh_BLV = model(tokens_BL).logits_BLV
    for layer in MOC.memory_layers():
        model.blocks[layer].memory.forward = lambda x_BLD, context: (torch.zeros_like(x_BLD), None)
    assert torch.equal(model(tokens_BL).logits_BLV, fresh_BLV)
    assert not torch.equal(build_model(DENSE, 5)(tokens_BL).logits_BLV, fresh_BLV)


def test_arms_of_one_seed_start_from_the_same_backbone():
    """Paired comparisons assume it: the arms differ in their memory, not in their luck."""
    dense = build_model(DENSE, 3).state_dict()
    for config in (
        MOC,
        replace(MOC, memory=chapters(MEMORY, variant="B", num_chapters=30, layers="all")),
        replace(DENSE, num_layers=5),
    ):
        torch.manual_seed(torch.randint(1000, ()).item())  # the global generator plays no part
        other = build_model(replace(config, residual_init_std=0.02 / math.sqrt(6)), 3).state_dict()
        for name, tensor in dense.items():
            assert torch.equal(other[name], tensor), name
    assert not torch.equal(build_model(DENSE, 4).embedding.weight, dense["embedding.weight"])


@pytest.mark.parametrize(
    ("residual_init_std", "residual"), [(0.00378, 0.00378), (None, 0.02 / math.sqrt(2 * 3))]
)
def test_initial_standard_deviations(residual_init_std, residual):
    config = replace(
        DENSE,
        vocab_size=512,
        dim=128,
        mlp_dim=256,
        residual_init_std=residual_init_std,
        memory=chapters(MEMORY, num_chapters=33, chapter_tokens=16, variant="B"),
    )
    for name, parameter in build_model(config).named_parameters():
        leaf = name.split(".", 2)[-1]
        if name.endswith("norm.weight"):
            assert (parameter == 1).all(), name
            continue
        if leaf in ("memory.read.out.weight", "memory.address.router.linear.bias"):
            assert (parameter == 0).all(), name
            continue
        small = leaf in ("attention.out.weight", "mlp.down.weight", "memory_mlp.down.weight")
        std = residual if small else 0.02
        # five standard errors of a standard deviation, of a mean
        error = 5 * std / math.sqrt(parameter.numel())
        assert parameter.std().item() == pytest.approx(std, abs=error), name
        assert parameter.mean().item() == pytest.approx(0, abs=error), name


def test_paper_preset_has_the_published_init():
    paper = preset("paper")
    assert (paper.init_std, paper.residual_init_std) == (0.02, 0.00378)
    assert paper.memory.bank_init_std is None and build_memory(paper).bank_init_std == 0.02
    assert paper.memory.output_init == "zero"


# the backbone


def test_backbone_is_the_llama_architecture():
    """Weights copied into an independent implementation give the same logits."""
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        vocab_size=37,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 100_000.0},
        tie_word_embeddings=True,
        attention_bias=False,
        mlp_bias=False,
        attn_implementation="eager",
    )
    llama = transformers.LlamaForCausalLM(config).eval()
    model = lively(DENSE)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("norm.weight"):
                parameter.uniform_(0.5, 1.5)
    renamed = {}
    for name, tensor in unfused(DENSE, model.state_dict()).items():
        for ours, theirs in (
            ("blocks.", "model.layers."),
            ("embedding.", "model.embed_tokens."),
            ("attention_norm.", "input_layernorm."),
            ("mlp_norm.", "post_attention_layernorm."),
            ("attention.out.", "self_attn.o_proj."),
            ("attention.", "self_attn."),
            ("mlp.", "mlp."),
        ):
            name = name.replace(ours, theirs)
        for short in ("q", "k", "v", "gate", "up", "down"):
            name = name.replace(f".{short}.weight", f".{short}_proj.weight")
        renamed["model.norm.weight" if name == "norm.weight" else name] = tensor
    renamed["lm_head.weight"] = renamed["model.embed_tokens.weight"]
    llama.load_state_dict(renamed)
    tokens_BL = tokens_of(2, 50)
    with torch.no_grad():
        logits_BLV, theirs_BLV = model(tokens_BL).logits_BLV, llama(tokens_BL).logits
    assert logits_BLV.std() > 0.1
    scale = theirs_BLV.abs().max()
    # float32: another processor was 1.6e-5 off; another architecture is by 1e-2 and more
    torch.testing.assert_close(logits_BLV / scale, theirs_BLV / scale, rtol=0, atol=5e-5)
