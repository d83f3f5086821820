"""What a study's YAML and command line mean, and what a typo in them says."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import pytest

from moc.config.identity import config_hash
from moc.config.load import load_study, save_study
from moc.config.schema import GroupConfig, PhaseConfig
from moc.errors import ConfigError, nearest
from moc.model import preset

EXPERIMENTS = Path(__file__).parents[3] / "experiments"
STUDY = """
name: words
model: {preset: tiny}
data: {people: {kind: facts}, skills: {kind: skills}}
phases:
  pretrain: {mixture: {people: 1}, context_length: 64}
  ift: {mixture: {skills: 1}, loss_on: assistant}
arms:
  moc: {}
  dense: {model: {memory: null}, iso_flop: {target: moc}}
"""


@pytest.fixture
def write(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def write(text=STUDY, name="study.yaml"):
        (tmp_path / name).write_text(text)
        return tmp_path / name

    return write


def refusal(path, *overrides):
    """The one line that is said; and nothing was written on the way to it."""
    before = sorted(Path.cwd().rglob("*"))
    with pytest.raises(ConfigError) as caught:
        load_study(path, overrides)
    message = str(caught.value)
    assert "\n" not in message and message == message.strip()
    assert sorted(Path.cwd().rglob("*")) == before
    return message


# precedence


def test_each_layer_overrides_the_one_below(write):
    """defaults <- preset <- extends <- yaml <- command line, one value decided at each."""
    write(
        STUDY.replace("preset: tiny", "preset: small, num_heads: 12, mlp_dim: 96, init_std: 0.7"),
        "parent.yaml",
    )
    path = write("extends: parent.yaml\nmodel: {mlp_dim: 64, init_std: 0.8}\n")
    model = load_study(path, ["model.init_std=0.9"]).model
    assert model.activation_checkpointing is False  # default
    assert (model.num_layers, model.vocab_size, model.memory.chapters.num_chapters) == (
        8,
        8192,
        513,
    )
    assert model.num_heads == 12  # parent
    assert model.mlp_dim == 64  # yaml
    assert model.init_std == 0.9  # command line
    assert load_study(path).model.init_std == 0.8
    assert load_study(path, ["model.mlp_dim=1", "model.mlp_dim=2"]).model.mlp_dim == 2


def test_extends_goes_through_several_files_relative_to_each(write, tmp_path):
    (tmp_path / "base").mkdir()
    write(STUDY, "base/root.yaml")
    write("extends: root.yaml\nseeds: [1, 2]\n", "base/middle.yaml")
    study = load_study(write("extends: base/middle.yaml\nname: leaf\n"))
    assert (study.name, study.seeds, list(study.arms)) == ("leaf", [1, 2], ["moc", "dense"])


def test_a_childs_preset_replaces_its_parents(write):
    write(STUDY, "parent.yaml")
    path = write("extends: parent.yaml\nmodel: {preset: small}\n")
    assert load_study(path).model == preset("small")


def test_phases_and_arms_keep_the_order_of_the_file(write):
    study = load_study(write(), ["phases.ift.tokens=2_000_000", "phases.pretrain.tokens=3000000"])
    assert list(study.phases) == ["pretrain", "ift"] and list(study.arms) == ["moc", "dense"]
    assert [phase.tokens for phase in study.phases.values()] == [3_000_000, 2_000_000]


def test_an_arm_is_the_study_with_the_arm_laid_over_it(write):
    study = load_study(
        write(),
        [
            "model.mlp_dim=200",
            "arms.moc.model.num_layers=2",
            "arms.moc.phases.ift.optimizer.bank.lr=0.5",
            "phases.ift.tokens=9_000_000",
        ],
    )
    moc, dense = study.arms["moc"], study.arms["dense"]
    assert (moc.model.num_layers, moc.model.mlp_dim) == (2, 200)
    assert (dense.model.num_layers, dense.model.mlp_dim, dense.model.memory) == (4, 200, None)
    assert moc.phases["ift"].optimizer.bank == GroupConfig(lr=0.5)
    assert dense.phases == study.phases
    assert moc.phases["ift"].tokens == 9_000_000 and moc.phases["ift"].loss_on == "assistant"
    assert study.model.num_layers == 4  # the arm does not leak into the study


def test_an_arm_may_start_from_a_preset_of_its_own(write):
    path = write(STUDY + "  big: {model: {preset: small, dim: 768}}\n")
    study = load_study(path, ["model.init_std=0.5"])
    expected = replace(preset("small"), dim=768, init_std=0.5)
    assert study.arms["big"].model == expected


def test_an_arm_may_bring_memory_back(write):
    text = STUDY.replace("preset: tiny", "preset: tiny, memory: null")
    study = load_study(write(text), ["arms.moc.model.memory.chapters.num_routed=4"])
    assert study.model.memory is None and study.arms["dense"].model.memory is None
    assert study.arms["moc"].model.memory.chapters.num_routed == 4


# saving


@pytest.mark.parametrize(
    "path", sorted(EXPERIMENTS.rglob("*.yaml")), ids=lambda path: str(path.relative_to(EXPERIMENTS))
)
def test_a_shipped_study_is_saved_as_the_same_object(path, tmp_path):
    study = load_study(path)
    save_study(study, tmp_path / "study.yaml")
    # its arms are as they were tuned
    assert load_study(tmp_path / "study.yaml") == replace(study, tuned=None)


def test_a_study_with_everything_changed_is_saved_as_the_same_object(write, tmp_path):
    overrides = [
        "description='a: b # c'",
        "seeds=[3,-1]",
        "phases.ift.optimizer.beta2=0.98",
        "model.memory.layers='1,3'",
        "model.memory.chapters.num_routed=null",
        "trainer.devices=2",
        "tracking.uri=http://localhost:1",
        "arms.moc.model.preset=small",
        "evals.tasks=[facts_choice]",
        "evals.route_on=both",
        "evals.leakage_windows=0",
        "phases.ift.revive_every_steps=50",  # of the dense arm too, which has nothing to revive
        "model.memory.chapters.router={segment_tokens: 16, window_tokens: 48, bias_rate: 0.001}",
    ]
    study = load_study(write(), overrides)
    save_study(study, tmp_path / "saved.yaml")
    assert load_study(tmp_path / "saved.yaml") == study
    assert study.seeds == [3, -1] and study.model.memory.layers == "1,3"
    assert study.arms["dense"].phases["ift"].revive_every_steps == 50


# typos


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("phasess.ift.tokens=3", "command line: unknown key 'phasess'; did you mean 'phases'?"),
        ("phases.ift.tokns=3", "unknown key 'phases.ift.tokns'; did you mean 'tokens'?"),
        (
            "model.memory.chapters.router.inputs=a",
            "memory.chapters.router.inputs'; did you mean 'input'?",
        ),
        (
            "model.memory.chapters.mixing=joit",
            "model.memory.chapters.mixing cannot be 'joit'; did you mean 'joint'?",
        ),
        ("phases.ift.loss_on=asistant", "cannot be 'asistant'; did you mean 'assistant'?"),
        ("model.preset=papr", "command line: model.preset cannot be 'papr'; did you mean 'paper'?"),
        ("arms.moc.model.preset=smal", "arms.moc.model.preset cannot be 'smal'; did you mean 'sm"),
        ("arms.moc.model.dim=big", "command line: arms.moc.model.dim: Value 'big'"),
        ("phases.ifft.tokens=3", "command line: no phase 'ifft'; did you mean 'ift'?"),
        ("arms.mocc.model.dim=8", "command line: no arm 'mocc'; did you mean 'moc'?"),
        ("data.peple.seed=3", "command line: no data source 'peple'; did you mean 'people'?"),
        ("arms.moc.phases.pretran.tokens=3", "no phase 'pretran'; did you mean 'pretrain'?"),
        ("phases.ift.mixture.skill=1", "names 'skill', not a source under 'data'; did you mean 's"),
        ("arms.dense.iso_flop.target=mc", "target 'mc' is no other arm; did you mean 'moc'?"),
        ("arms.dense.iso_flop.target=dense", "target 'dense' is no other arm"),
        ("model=3", "command line: model takes a mapping of keys, not 3"),
        ("arms=[moc]", "command line: arms takes a mapping of keys"),
        ("arms.moc=3", "command line: arms.moc takes a mapping of keys, not 3"),
        ("model=null", "command line: model: field 'model' is not Optional"),
        ("seeds=3", "command line: seeds: Invalid value"),
        ("seeds=[]", "at least one entry under 'seeds'"),
        ("seeds=[1,1]", "seeds [1, 1] are not all different"),
        ("phases.ift.tokens=1e6", "command line: phases.ift.tokens: Value '1000000.0'"),
        ("phases.ift.tokens=100", "phases.ift.tokens 100 is less than one step's tokens"),
        ("phases.ift.context_length=100", "tokens_per_step 8192 is no multiple of context_length"),
        (
            "phases.ift.mixture.skills=0",
            "mixture.skills must be above 0 and at most 1_000_000, not 0",
        ),
        ("model.dim=-4", "model.dim must be from 1 to 131_072, not -4"),
        ("arms.moc.model.num_heads=3", "arms.moc: model.num_heads 3 does not divide"),
        (
            "model.memory.chapters.router.scope=segmnt",
            "cannot be 'segmnt'; did you mean 'segment'?",
        ),
        (
            "model.memory.chapters.router.segment_tokens=0",
            "segment_tokens must be from 1 to 10_000_000, not 0",
        ),
        (
            "model.memory.chapters.router.window_tokens=0",
            "window_tokens must be from 1 to 10_000_000, not 0",
        ),
        (
            "model.memory.chapters.router={scope: token, window_tokens: 8}",
            "what scope segment looks back on; set it to null for scope token",
        ),
        ("model.memory.chapters.router.bias_rate=-1", "bias_rate must be from 0 to 10, not -1"),
        (
            "arms.moc.model.memory.chapters.router.z_loss_coefficient=-1",
            "arms.moc.model.memory.chapters.router.z_loss_coefficient must be from 0 to 100",
        ),
        ("evals.route_on=contxt", "evals.route_on cannot be 'contxt'; did you mean 'context'?"),
        ("evals.leakage_windows=-1", "evals.leakage_windows must be from 0 to 1_000_000, not -1"),
        (
            "phases.ift.revive_every_steps=-1",
            "ift.revive_every_steps must be from 0 to 1_000_000_000, not -1",
        ),
        (
            "data.skills.documents=questions",
            "data.skills.documents: a source of kind skills has no questions",
        ),
        ("model.memory.layers=evry 2", "model.memory.layers 'evry 2' is none of"),
        ("tokenizer.vocab_size=9999", "tokenizer.vocab_size 9999 is more than"),
        ("name=../up", "'../up' cannot name a study"),
        ("model.dim=${nowhere}", "model.dim: Interpolation key 'nowhere' not found"),
        ("model.dim={a", "model.dim: Value '{a'"),
        ("model.dim", "'model.dim': an override is key=value"),
    ],
)
def test_an_unusable_override_says_what_was_meant(write, override, words):
    assert words in refusal(write(), override)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (STUDY.replace("mixture: {people", "mixtur: {people"), "'phases.pretrain.mixtur'; did you"),
        (STUDY.replace("preset: tiny", "preset: tine"), "cannot be 'tine'; did you mean 'tiny'?"),
        (STUDY.replace("preset: tiny", "dim: wide"), "model.dim: Value 'wide'"),
        (STUDY.replace("name: words", "name: two words"), "'two words' cannot name a study"),
        (STUDY.replace("  moc: {}", "  a/b: {}\n  moc: {}"), "'a/b' cannot name a study, arm"),
        (
            STUDY.replace("people: {", "people/a: {"),
            "'people/a' cannot name a study, arm, phase",
        ),
        (STUDY.replace("people: {", "full: {"), "data.full: give the source another name"),
        (STUDY.replace("mixture: {people: 1}, ", ""), "phases.pretrain.mixture is empty"),
        (STUDY.replace("name: words", "name: [a"), "not readable as YAML"),
        ("- a\n- b\n", "a study is a mapping of keys"),
        ("", "at least one entry under 'arms'"),
        (STUDY + "  moc: {}\n", "not readable as YAML"),
    ],
)
def test_an_unusable_file_is_named(write, text, words):
    message = refusal(write(text))
    assert words in message and "study.yaml: " in message


def test_the_old_form_of_a_memory_is_answered_with_the_new_one(write):
    """Studies of before there were kinds of memory; what is said can be typed."""
    old = STUDY.replace("preset: tiny", "preset: tiny, memory: {num_chapters: 9}")
    message = refusal(write(old))
    assert "study.yaml: model.memory.num_chapters is now model.memory.chapters.num_chapters" in (
        message
    )
    assert "{kind: chapters, chapters: {num_chapters: ...}}" in message
    new = "memory: {kind: chapters, chapters: {num_chapters: 9}}"
    study = load_study(write(STUDY.replace("preset: tiny", f"preset: tiny, {new}")))
    assert study.model.memory.chapters.num_chapters == 9
    for where in ("", "arms.moc."):
        message = refusal(write(), f"{where}model.memory.router.scope=token")
        assert message.startswith(
            f"command line: {where}model.memory.router is now {where}model.memory.chapters.router: "
        )
    study = load_study(write(), ["model.memory.chapters.router.scope=token"])
    assert study.arms["moc"].model.memory.chapters.router.scope == "token"


def test_an_unknown_kind_of_memory_is_told_which_there_are(write):
    message = refusal(write(), "model.memory.kind=chaptrs")
    assert "model.memory.kind 'chaptrs' is none of chapters, product_keys" in message


def test_questions_of_other_halves_would_train_what_is_asked(write):
    """Whose questions are trained depends on the number of people and on their share."""
    quiz = "skills: {kind: skills}, quiz: {documents: questions, %s}"
    for setting in ("num_people: 500", "question_share: 0.6"):
        message = refusal(write(STUDY.replace("skills: {kind: skills}", quiz % setting)))
        assert f"data.quiz.{setting.replace(':', '')} must be data.people's" in message
    same = quiz % "num_phrasings: 2"
    other_people = quiz % "num_people: 500, seed: 1"
    for allowed in (same, other_people):
        assert load_study(write(STUDY.replace("skills: {kind: skills}", allowed)))


def test_a_mistake_in_a_parent_names_the_parent(write):
    write("model: {dimm: 3}\n", "parent.yaml")
    message = refusal(write("extends: parent.yaml\n"))
    assert "parent.yaml: unknown key 'model.dimm'; did you mean 'dim'?" in message


def test_a_mistyped_path_suggests_a_file(write):
    write()
    assert refusal("studdy.yaml") == "studdy.yaml: no such study file; did you mean 'study.yaml'?"
    assert "no such study file" in refusal("no/such/folder/x.yaml")


@pytest.mark.parametrize("length", [1, 2, 3])
def test_extends_in_a_circle_is_noticed(write, length):
    for i in range(length):
        write(f"extends: {(i + 1) % length}.yaml\n", f"{i}.yaml")
    assert "'extends' goes round in a circle" in refusal("0.yaml")


def test_nearest_lists_the_choices_when_none_is_near():
    assert nearest("xyz", ["alpha", "beta"]) == "choose from alpha, beta"
    assert nearest("alpa", ["alpha", "beta"]) == "did you mean 'alpha'?"
    assert nearest("x", []) == "there is nothing to choose from"


# hashes


def test_config_hash_is_the_same_in_every_process():
    """Caches and resumed runs are found by it."""
    expected = hashlib.sha256(json.dumps([{"a": 1, "b": [2]}, "x"]).encode()).hexdigest()[:12]
    assert config_hash({"b": [2], "a": 1}, "x") == expected
    group = {"freeze": False, "lr": 0.001, "weight_decay": 0.1}
    expected = hashlib.sha256(json.dumps([group]).encode()).hexdigest()[:12]
    assert config_hash(GroupConfig()) == expected


def test_config_hash_changes_with_every_setting():
    phase = PhaseConfig()
    changed = [
        replace(phase, tokens=5),
        replace(phase, mixture={"a": 1.0}),
        replace(phase, micro_batch=1),
        replace(phase, optimizer=replace(phase.optimizer, bank=GroupConfig(freeze=True))),
    ]
    hashes = {config_hash(config) for config in (phase, *changed)}
    assert len(hashes) == 5
    assert config_hash(PhaseConfig()) == config_hash(phase)
    assert config_hash("a", "b") != config_hash("ab") != config_hash(["a", "b"])
