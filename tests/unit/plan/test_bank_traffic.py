"""What fetching chapters from other devices moves, against gathering the bank."""

import json

import pytest

from moc.config.load import load_study
from moc.model.config import ModelConfig, RouterConfig
from moc.plan.bank_traffic import bank_traffic
from moc.plan.study_plan import plan_study
from moc.plan.text import render_plan
from tests.support.small_models import chapters
from tests.unit.plan.test_plan import STUDY


def model(*, scope: str = "sequence", **settings) -> ModelConfig:
    memory = {"num_chapters": 4097, "num_shared": 1, "num_routed": 64, "chapter_tokens": 64}
    memory |= {"layers": "all", "router": RouterConfig(scope=scope, segment_tokens=64)}
    memory |= {key: settings.pop(key) for key in list(settings) if key in ("layers_per_bank",)}
    config = ModelConfig(num_layers=4, dim=256, num_heads=4, **settings)
    config.memory = chapters(**memory)
    return config


@pytest.mark.parametrize(
    ("config", "micro_batch", "fetched", "gathered"),
    [
        (model(), 1, 4 * (1 + 64), 4097),
        (model(), 3, 4 * (1 + 3 * 64), 4097),
        (model(activation_checkpointing=True), 1, 2 * 4 * (1 + 64), 4097),
        (model(scope="segment"), 1, 4 * (1 + 16 * 64), 4097),  # 16 segments in 1024 tokens
        (model(scope="token"), 1, 4 * 4097, 4097),  # 65,536 picks cannot be distinct
        (model(layers_per_bank=2), 1, 4 * (1 + 64), 2 * 4097),
    ],
)
def test_chapters_by_hand(
    config: ModelConfig, micro_batch: int, fetched: int, gathered: int
) -> None:
    found = bank_traffic(config, 1024, micro_batch)
    assert (found.fetched_rows, found.gathered_rows) == (fetched, gathered)
    assert found.row_bytes == 64 * 256 * 4 and found.row_name == "chapter"
    assert found.fetching_moves_less == (fetched < gathered)


def test_the_plan_gives_the_verdict_for_arms_with_memory(tmp_path) -> None:
    path = tmp_path / "study.yaml"
    path.write_text(STUDY)
    options = [
        "trainer.strategy=fsdp",
        "trainer.devices=2",
        "model.memory.chapters.chapter_tokens=64",
    ]
    options += [
        "model.memory.chapters.num_chapters=4097",
        "model.memory.chapters.num_routed=64",
        "model.dim=256",
    ]
    options += ["model.memory.layers=all", "model.memory.chapters.router.scope=sequence"]
    options += [f"phases.{phase}.micro_batch=1" for phase in ("pretrain", "tune")]
    options += ["arms.iso_flop.iso_flop=null", "model.num_layers=4"]
    plan = plan_study(load_study(path, options))
    text = " ".join(render_plan(plan).split())
    assert (
        "moc: a micro-batch fetches at most 260 chapters per device (17.0 MB), gathering the bank "
        "would move 4,097 (269 MB): fetching moves less" in text
    )
    assert text.count("fetches") == 1  # the other arms have no bank
    arms = json.loads(plan.to_json())["arms"]
    assert "bank_traffic" not in arms["backbone"]
    assert arms["moc"]["bank_traffic"] == {
        "fetched_rows": 260,
        "fetched_bytes": 260 * 65_536,
        "gathered_rows": 4097,
        "gathered_bytes": 4097 * 65_536,
        "fetching_moves_less": True,
    }
    worse = plan_study(load_study(path, [*options, "model.memory.chapters.router.scope=token"]))
    text = " ".join(render_plan(worse).split())
    assert "fetching moves more; consider ddp or a smaller micro-batch" in text
    alone = plan_study(load_study(path, ["trainer.strategy=ddp", "trainer.devices=2"]))
    assert "fetches" not in render_plan(alone) and "bank_traffic" not in alone.to_json()
