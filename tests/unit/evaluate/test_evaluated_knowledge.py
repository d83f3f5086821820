"""What a model knows of a study's sources: of those it trains on, and of as many as are asked."""

from __future__ import annotations

from pathlib import Path

import pytest

from moc.config.data import SourceConfig, TokenizerConfig
from moc.config.schema import ArmConfig, EvalConfig, PhaseConfig, StudyConfig
from moc.data.tokenizer import build_tokenizer
from moc.evaluate.knowledge import Knowledge
from moc.model.config import ModelConfig
from moc.model.transformer import build_model


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> StudyConfig:
    phases = {
        "one": PhaseConfig(mixture={"records": 1.0}),
        "two": PhaseConfig(mixture={"people": 1.0, "skills": 1.0, "quiz": 1.0}),
    }
    return StudyConfig(
        cache_dir=str(tmp_path_factory.mktemp("cache")),
        tokenizer=TokenizerConfig(kind="words", vocab_size=1500),
        data={
            "records": SourceConfig(kind="records", num_records=20, num_exposures=2),
            "people": SourceConfig(num_people=12, num_phrasings=2),
            "quiz": SourceConfig(num_people=12, num_phrasings=2, documents="questions"),
            "skills": SourceConfig(kind="skills", num_examples=20),
            "unused": SourceConfig(kind="records", num_records=5),
        },
        phases=phases,
        arms={"dense": ArmConfig(phases=phases)},
        evals=EvalConfig(context_length=128, knowledge_items=10),
    )


def test_sources_that_are_trained_on_and_known_to_the_bit(study: StudyConfig) -> None:
    knowledge = Knowledge(study, build_tokenizer(study))
    model = build_model(ModelConfig(vocab_size=1500, num_layers=1, dim=16, memory=None), seed=0)
    records, samples = knowledge.score(model)
    assert list(records) == ["records", "people"]
    assert list(samples) == ["knowledge.records", "knowledge.people"]
    assert [len(items) for items in samples.values()] == [10, 10]
    assert [record["num_items"] for record in records.values()] == [10, 10]
    assert [record["num_all"] for record in records.values()] == [20, 12]

    few, first = knowledge.score(model, 3)
    assert few["records"]["num_items"] == 3 and few["records"]["num_all"] == 20
    for name, items in first.items():
        assert [item["key"] for item in items] == [item["key"] for item in samples[name][:3]]
        for item, same in zip(items, samples[name], strict=False):
            assert item["bits"] == pytest.approx(same["bits"], rel=1e-4)


def test_nothing_is_measured_where_nothing_is_asked(study: StudyConfig, tmp_path: Path) -> None:
    study.evals.knowledge_items = 0
    knowledge = Knowledge(study, build_tokenizer(study))
    model = build_model(ModelConfig(vocab_size=1500, num_layers=1, dim=16, memory=None), seed=0)
    assert knowledge.score(model) == ({}, {})
    study.evals.knowledge_items = 10
