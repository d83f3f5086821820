"""The schema of a study and how it is loaded.

``load_study`` lays ``defaults <- preset <- extends <- yaml <- command line`` over one another, then
every arm over the result, and returns plain dataclasses. The comment beside a field documents it.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import types
import typing
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, is_dataclass
from pathlib import Path
from typing import Any, Literal

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from moc.errors import ConfigError
from moc.model.config import ModelConfig, preset, validate_model


@dataclass
class TokenizerConfig:
    path: str | None = None  # a Hugging Face tokenizer by name or folder; null: train our own
    vocab_size: int = 2048  # of the trained byte-level BPE; at most model.vocab_size
    training_bytes: int = 4_000_000  # of the study's own training text, per source


@dataclass
class SourceConfig:
    """One named source of documents. Fields that its kind does not use are ignored by it."""

    kind: Literal["facts", "skills", "text", "chat"] = "facts"
    seed: int = 0  # of everything generated or split off
    # facts: synthetic people; skills: synthetic instructions
    num_people: int = 1000  # facts: how many people exist
    num_phrasings: int = 50  # facts: biographies per person in one pass over the source
    question_share: float = 0.5  # facts: share of the people whose questions are trained
    question_ratio: float = 0.5  # facts: trained question documents per biography of those people
    num_examples: int = 20_000  # skills: instructions in one pass over the source
    # text and chat: files, or a dataset on the Hugging Face hub
    path: str | None = None  # a file or glob: .txt .md .jsonl .parquet
    validation_path: str | None = None  # null: hold out validation_fraction of the documents
    validation_fraction: float = 0.01
    name: str | None = None  # a hub dataset, streamed; used when path is null
    subset: str | None = None  # of the hub dataset
    split: str = "train"
    validation_split: str | None = None  # null: hold out validation_fraction
    column: str = "text"  # text: the column or JSON key that holds the document


@dataclass
class GroupConfig:
    lr: float = 1e-3  # peak learning rate
    weight_decay: float = 0.1  # on matrices; norms and biases are never decayed
    freeze: bool = False


@dataclass
class OptimizerConfig:
    """AdamW; a parameter's group is chosen by its name."""

    backbone: GroupConfig = field(default_factory=GroupConfig)
    memory_layers: GroupConfig = field(default_factory=GroupConfig)
    bank: GroupConfig = field(default_factory=GroupConfig)
    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-8
    clip_norm: float = 1.0  # of the global gradient norm; 0 switches clipping off


@dataclass
class ScheduleConfig:
    kind: Literal["wsd", "cosine", "linear", "constant"] = "wsd"
    warmup_steps: int = 0  # linear from 0
    decay_fraction: float = 0.15  # wsd: share of all steps spent decaying (linearly) at the end
    final_ratio: float = 0.1  # last learning rate / peak


@dataclass
class CarryConfig:
    """What crosses into this phase from the one before. Weights always do."""

    optimizer: bool = False  # Adam moments
    schedule: bool = False  # go on counting schedule steps, over both phases' lengths
    data_position: bool = False  # go on in the data order instead of at its start


@dataclass
class PhaseConfig:
    tokens: int = 1_000_000  # budget; steps = tokens // tokens_per_step
    tokens_per_step: int = 8192  # over all devices and micro-batches
    context_length: int = 128  # L
    micro_batch: int | None = None  # sequences per device and forward; null: about 8,192 tokens
    mixture: dict[str, float] = field(default_factory=dict)  # source -> weight
    loss_on: Literal["all", "assistant"] = "all"
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    carry: CarryConfig = field(default_factory=CarryConfig)

    def num_steps(self) -> int:
        return self.tokens // self.tokens_per_step


@dataclass
class IsoFlopConfig:
    """Match this arm's training FLOPs per token to another arm's."""

    target: str = "moc"
    solve: bool = True  # false: keep the arm's own shape and only check it
    tolerance: float = 0.005  # largest relative deviation
    accounting: Literal["paper", "hardware"] = "paper"


@dataclass
class ArmConfig:
    """One model variant and its phases: the study's base with the arm laid over it."""

    description: str = ""
    model: ModelConfig = field(default_factory=ModelConfig)
    phases: dict[str, PhaseConfig] = field(default_factory=dict)
    iso_flop: IsoFlopConfig | None = None


@dataclass
class EvalConfig:
    tasks: list[str] = field(default_factory=list)  # facts_choice, facts_answer, skills_answer
    num_items: int = 200  # per task
    context_length: int = 128  # one length for all phases: changing it changes the task
    batch_size: int = 64  # speed only; scores do not depend on it
    validation_tokens: int = 16_384  # per source, for bits per byte


@dataclass
class TrainerConfig:
    accelerator: Literal["auto", "cpu", "gpu"] = "auto"
    strategy: Literal["auto", "ddp", "fsdp"] = "auto"
    devices: int | None = None  # per node; null: 1 on CPU, every GPU otherwise
    num_nodes: int = 1
    precision: Literal["32-true", "bf16-mixed"] = "32-true"
    compile: bool = False  # torch.compile the model
    num_workers: int = 0  # data loading processes
    log_every_steps: int = 10
    checkpoint_every_steps: int = 100
    keep_last: int = 1  # checkpoints inside a phase; boundaries are always kept


@dataclass
class TrackingConfig:
    uri: str | None = None  # MLflow tracking URI; null: sqlite in runs_dir
    experiment: str | None = None  # null: the study's name


@dataclass
class StudyConfig:
    name: str = ""  # also the folder under runs_dir
    description: str = ""
    seeds: list[int] = field(default_factory=lambda: [0])
    runs_dir: str = "runs"
    cache_dir: str = "runs/cache"  # tokenised documents, by fingerprint
    model: ModelConfig = field(default_factory=ModelConfig)
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    data: dict[str, SourceConfig] = field(default_factory=dict)
    phases: dict[str, PhaseConfig] = field(default_factory=dict)
    arms: dict[str, ArmConfig] = field(default_factory=dict)
    evals: EvalConfig = field(default_factory=EvalConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)

    @property
    def dir(self) -> Path:
        return Path(self.runs_dir) / self.name


def load_study(path: str | Path, overrides: Sequence[str] = ()) -> StudyConfig:
    """The study in ``path`` with ``overrides`` (``key=value``) laid over it.

    Raises:
        ConfigError: one line naming the file or argument, the key and the nearest valid choice.
    """
    raw = _read_with_parents(Path(path))
    for override in overrides:
        raw = OmegaConf.merge(raw, _read_override(override))
    assert isinstance(raw, DictConfig)
    return _resolve(raw, str(path))


def save_study(study: StudyConfig, path: Path) -> None:
    """Write the resolved study; ``load_study(path)`` gives the same object."""
    path.write_text(OmegaConf.to_yaml(OmegaConf.create(asdict(study))))


def config_hash(*parts: Any) -> str:
    """Twelve hex digits that change when any of the dataclasses (or plain values) does."""
    encoded = json.dumps(parts, sort_keys=True, default=asdict)
    return hashlib.sha256(encoded.encode()).hexdigest()[:12]


def nearest(word: str, choices: Sequence[str]) -> str:
    """`` (did you mean 'x'?)``, or the list of choices when nothing is near."""
    close = difflib.get_close_matches(word, choices, n=1, cutoff=0.5)
    if close:
        return f"did you mean {close[0]!r}?"
    return f"choose from {', '.join(choices)}" if choices else "there is none"


def _read_with_parents(path: Path, depth: int = 0) -> DictConfig:
    if not path.is_file():
        folder = path.parent if path.parent.is_dir() else Path(".")
        found = sorted(str(file) for file in folder.rglob("*.yaml") if ".venv" not in file.parts)
        raise ConfigError(f"{path}: no such study file; {nearest(str(path), found)}")
    if depth > 8:
        raise ConfigError(f"{path}: 'extends' goes round in a circle")
    try:
        raw = OmegaConf.load(path)
    except Exception as error:  # YAML and OmegaConf errors share no base class
        raise ConfigError(f"{path}: not readable as YAML: {_one_line(error)}") from error
    if not isinstance(raw, DictConfig):
        raise ConfigError(f"{path}: a study is a mapping of keys, not {type(raw).__name__}")
    parent = raw.pop("extends", None)
    _check_keys(OmegaConf.to_container(raw), StudyConfig, "", str(path))
    if parent is None:
        return raw
    merged = OmegaConf.merge(_read_with_parents(path.parent / str(parent), depth + 1), raw)
    assert isinstance(merged, DictConfig)
    return merged


def _read_override(override: str) -> DictConfig:
    if "=" not in override:
        raise ConfigError(f"{override!r}: an override is key=value")
    try:
        raw = OmegaConf.from_dotlist([override])
    except Exception as error:
        raise ConfigError(f"{override!r}: {_one_line(error)}") from error
    _check_keys(OmegaConf.to_container(raw), StudyConfig, "", "command line")
    return raw


def _resolve(raw: DictConfig, source: str) -> StudyConfig:
    plain = typing.cast(dict[str, Any], OmegaConf.to_container(raw))
    arms = plain.pop("arms", None) or {}
    try:
        base = OmegaConf.merge(
            OmegaConf.structured(StudyConfig), {"model": _preset_of(plain)}, plain
        )
        for name, overlay in arms.items():
            overlay = overlay or {}
            arm = OmegaConf.merge(
                OmegaConf.structured(ArmConfig), {"model": base.model, "phases": base.phases}
            )
            if (overlay.get("model") or {}).get("preset"):
                arm.model = _preset_of(overlay)
                base_model = {k: v for k, v in (plain.get("model") or {}).items() if k != "preset"}
                arm = OmegaConf.merge(arm, {"model": base_model})
            base.arms[name] = OmegaConf.merge(arm, overlay)
        study = OmegaConf.to_object(base)
    except OmegaConfBaseException as error:
        key = getattr(error, "full_key", None)
        raise ConfigError(f"{source}: {key + ': ' if key else ''}{_one_line(error)}") from error
    assert isinstance(study, StudyConfig)
    try:
        _validate(study)
    except ConfigError as error:
        raise ConfigError(f"{source}: {error}") from error
    except ValueError as error:
        raise ConfigError(f"{source}: {error}") from error
    return study


def _preset_of(raw: dict[str, Any]) -> ModelConfig:
    name = (raw.get("model") or {}).get("preset")
    if name is None:
        return ModelConfig()
    try:
        return preset(str(name))
    except ValueError as error:
        raise ConfigError(f"{error}; {nearest(str(name), ['paper', 'small', 'tiny'])}") from error


def _validate(study: StudyConfig) -> None:
    if not study.name or "/" in study.name:
        raise ConfigError(f"name must be a plain word, not {study.name!r}")
    for section in ("arms", "phases", "data", "seeds"):
        if not getattr(study, section):
            raise ConfigError(f"a study needs at least one entry under {section!r}")
    for arm_name, arm in study.arms.items():
        where = f"arms.{arm_name}"
        validate_model(arm.model)
        if list(arm.phases) != list(study.phases):
            raise ConfigError(f"{where}.phases must be among {', '.join(study.phases)}")
        if study.tokenizer.path is None and study.tokenizer.vocab_size > arm.model.vocab_size:
            raise ConfigError(
                f"tokenizer.vocab_size {study.tokenizer.vocab_size} is more than "
                f"{where}.model.vocab_size {arm.model.vocab_size}"
            )
        if arm.iso_flop is not None and (
            arm.iso_flop.target not in study.arms or arm.iso_flop.target == arm_name
        ):
            others = [name for name in study.arms if name != arm_name]
            raise ConfigError(
                f"{where}.iso_flop.target {arm.iso_flop.target!r} is no other arm; "
                f"{nearest(arm.iso_flop.target, others)}"
            )
        for phase_name, phase in arm.phases.items():
            _validate_phase(study, phase, f"{where}.phases.{phase_name}")


def _validate_phase(study: StudyConfig, phase: PhaseConfig, where: str) -> None:
    if not phase.mixture:
        raise ConfigError(f"{where}.mixture is empty; name at least one of {', '.join(study.data)}")
    for source, weight in phase.mixture.items():
        if source not in study.data:
            raise ConfigError(
                f"{where}.mixture names {source!r}, not a source under 'data'; "
                f"{nearest(source, list(study.data))}"
            )
        if weight <= 0:
            raise ConfigError(f"{where}.mixture.{source} must be positive, not {weight}")
    if phase.context_length < 2 or phase.tokens_per_step % phase.context_length:
        raise ConfigError(
            f"{where}.tokens_per_step {phase.tokens_per_step} is no multiple of "
            f"context_length {phase.context_length}"
        )
    if phase.num_steps() < 1:
        raise ConfigError(f"{where}.tokens {phase.tokens} is less than one step's tokens")


def _check_keys(raw: Any, schema: Any, path: str, source: str) -> None:
    """Every key of ``raw`` is in ``schema``: a typo is reported with its place and a suggestion."""
    schema = _unwrap_optional(schema)
    if typing.get_origin(schema) is dict and isinstance(raw, dict):
        for key, value in raw.items():
            _check_keys(value, typing.get_args(schema)[1], f"{path}{key}.", source)
    elif is_dataclass(schema) and isinstance(raw, dict):
        hints = typing.get_type_hints(schema)
        for key, value in raw.items():
            if key not in hints:
                raise ConfigError(
                    f"{source}: unknown key {path + str(key)!r}; {nearest(str(key), list(hints))}"
                )
            _check_keys(value, hints[key], f"{path}{key}.", source)


def _unwrap_optional(hint: Any) -> Any:
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        return next(arg for arg in typing.get_args(hint) if arg is not type(None))
    return hint


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split("\n    ")[0].split())
