"""The schema of a study: plain dataclasses. The comment beside a field documents it.

``moc.config.load`` loads and checks them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from moc.config.assay import AssayConfig
from moc.config.data import SourceConfig, TokenizerConfig
from moc.config.machines import LaunchConfig
from moc.config.tuning import TuningConfig
from moc.model.config import ModelConfig
from moc.ranges import Range

OnSpike = Literal["warn", "skip", "stop"]


@dataclass
class GroupConfig:
    lr: Annotated[float, Range(0, 10)] = 1e-3  # peak learning rate
    # on matrices; norms and biases are never decayed
    weight_decay: Annotated[float, Range(0, 10)] = 0.1
    freeze: bool = False


@dataclass
class OptimizerConfig:
    """AdamW; a parameter's group is chosen by its name."""

    backbone: GroupConfig = field(default_factory=GroupConfig)
    memory_layers: GroupConfig = field(default_factory=GroupConfig)
    bank: GroupConfig = field(default_factory=GroupConfig)  # values of product keys never decay
    beta1: Annotated[float, Range(0, 1, without="high")] = 0.9
    beta2: Annotated[float, Range(0, 1, without="high")] = 0.95
    # of the global gradient norm; 0 switches clipping off
    clip_norm: Annotated[float, Range(0, 10**6)] = 1.0
    # update only the rows that a step has read, each in a time of its own; another experimental
    # condition (moc.train.lazy_adamw says how), for banks that are large beside what a step reads
    lazy_bank: bool = False


@dataclass
class ScheduleConfig:
    kind: Literal["wsd", "cosine", "linear", "constant"] = "wsd"
    # linear: step i of them at (i + 1) / warmup_steps
    warmup_steps: Annotated[int, Range(0, 10**9)] = 0
    # wsd: share of all steps spent decaying (linearly) at the end
    decay_fraction: Annotated[float, Range(0, 1)] = 0.15
    final_ratio: Annotated[float, Range(0, 1)] = 0.1  # last learning rate / peak


@dataclass
class CarryConfig:
    """What crosses into this phase from the one before. Weights always do."""

    optimizer: bool = False  # Adam moments
    schedule: bool = False  # go on counting schedule steps, over both phases' lengths
    data_position: bool = False  # go on in the data order instead of at its start


@dataclass
class PhaseConfig:
    # budget; steps = tokens // tokens_per_step
    tokens: Annotated[int, Range(1, 10**15)] = 1_000_000
    tokens_per_step: Annotated[int, Range(1, 10**9)] = 8192  # over all devices and micro-batches
    context_length: Annotated[int, Range(2, 10**7)] = 128  # L
    # sequences per device and forward; null: about 8,192 tokens
    micro_batch: Annotated[int | None, Range(1, 10**6)] = None
    # source -> weight
    mixture: Annotated[dict[str, float], Range(0, 10**6, without="low")] = field(
        default_factory=dict
    )
    # assistant: a chat's answers, the values of records
    loss_on: Literal["all", "assistant"] = "all"
    # packed: documents one after the other, cut anywhere into rows of context_length; documents:
    # one a row, from its start, cut or padded at its end (padding counts as tokens of the budget)
    packing: Literal["packed", "documents"] = "packed"
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    carry: CarryConfig = field(default_factory=CarryConfig)
    # restart the rows unread for so many steps; 0: never
    revive_every_steps: Annotated[int, Range(0, 10**9)] = 0
    # share of the samples that come from the data of all earlier phases
    replay: Annotated[float, Range(0, 1, without="high")] = 0.0
    no_op: bool = False  # control: the same tokens at learning rate zero; no weight changes

    def num_steps(self) -> int:
        return self.tokens // self.tokens_per_step


@dataclass
class IsoParamConfig:
    """Match this arm's number of parameters to another arm's."""

    target: str = "moc"
    solve: bool = True  # false: keep the arm's own shape and only check it
    tolerance: Annotated[float, Range(0, 1)] = 0.005  # largest relative deviation


@dataclass
class IsoFlopConfig(IsoParamConfig):
    """Match this arm's training FLOPs per token to another arm's."""

    accounting: Literal["paper", "hardware"] = "paper"


@dataclass
class ArmConfig:
    """One model variant and its phases: the study's base with the arm laid over it."""

    description: str = ""
    model: ModelConfig = field(default_factory=ModelConfig)
    phases: dict[str, PhaseConfig] = field(default_factory=dict)
    iso_flop: IsoFlopConfig | None = None
    iso_param: IsoParamConfig | None = None
    joint: bool = False  # control: every phase trains on the data of all phases together
    twin_of: str | None = None  # its bank frozen at its initial values, of a study with an assay
    size: str | None = None  # of the ladder, which sets it: ``moc`` at size ``s`` is arm ``moc-s``


@dataclass
class SizeConfig:
    """One size of a ladder; what it says lies over the study and below every arm."""

    model: ModelConfig = field(default_factory=ModelConfig)
    phases: dict[str, PhaseConfig] = field(default_factory=dict)


@dataclass
class InPhaseConfig:
    """Evaluations while a phase trains; they change nothing but the clock on the wall."""

    # training tokens between two of them; 0: at boundaries alone
    every_tokens: Annotated[int, Range(0, 10**15)] = 0
    # per task: the first of those that boundaries score
    num_items: Annotated[int, Range(1, 10**9)] = 50
    tasks: list[str] | None = None  # null: all of evals.tasks


@dataclass
class ControlConfig:
    """How much of a score lives in the bank: memory arms, scored again at every phase's end."""

    knockouts: list[str] = field(default_factory=lambda: ["bank"])  # and "top-<n>", "row-<i>"
    # the bank of an earlier boundary in its place: "previous", "all", or boundaries by name
    bank_swap: list[str] = field(default_factory=lambda: ["previous"])
    # per task: the first of those that boundaries score
    num_items: Annotated[int, Range(1, 10**9)] = 100


@dataclass
class EvalConfig:
    # ours (facts_choice, facts_answer, skills_answer), any of lm-eval, a suite ("paper"), your own
    tasks: list[str] = field(default_factory=list)
    task_paths: list[str] = field(default_factory=list)  # folders of your own lm-eval task YAMLs
    allow_task_code: bool = False  # run the !function code that those YAMLs name
    num_items: Annotated[int | None, Range(1, 10**9)] = 200  # per task; null: all
    # task -> shots; else the task's own
    num_fewshot: Annotated[dict[str, int], Range(0, 1000)] = field(default_factory=dict)
    hub_mirror: str | None = None  # <dataset>/<config>/<split>.parquet; null: $MOC_HUB_MIRROR
    # one length for all phases: changing it changes the task
    context_length: Annotated[int, Range(2, 10**7)] = 128
    # sequences of context_length read at once, of shorter ones as many as take up as much memory
    batch_size: Annotated[int, Range(1, 10**6)] = 64  # speed only; scores do not depend on it
    validation_tokens: Annotated[int, Range(1, 10**12)] = 16_384  # per source, for bits per byte
    # people or records per source of facts or records, of whose values it is measured how many bits
    # the model holds; 0: do not
    knowledge_items: Annotated[int, Range(0, 10**7)] = 2000
    # may an answer steer the routing that scores it? (scope sequence alone; both: side by side)
    route_on: Literal["context", "full", "both"] = "context"
    # per source, to measure leakage on (scope sequence); 0: do not
    leakage_windows: Annotated[int, Range(0, 10**6)] = 32
    controls: ControlConfig = field(default_factory=ControlConfig)
    in_phase: InPhaseConfig = field(default_factory=InPhaseConfig)


@dataclass
class ProbeConfig:
    """What a boundary's model still knows, or learns again: training on a copy, scored as it goes.

    Relearning on an earlier phase's data gives the savings; a few examples about other people tell
    lost alignment from lost knowledge. No phase goes on from a probe.
    """

    phase: PhaseConfig = field(default_factory=PhaseConfig)  # as of a study's phases
    after: list[str] = field(default_factory=list)  # boundaries to start from; empty: the last
    tasks: list[str] = field(default_factory=list)  # of evals.tasks; empty: all
    # per task: the first of those that boundaries score
    num_items: Annotated[int, Range(1, 10**9)] = 100
    # between two scorings; the first is before the first step
    every_tokens: Annotated[int, Range(1, 10**15)] = 8192


@dataclass
class TrainerConfig:
    accelerator: Literal["auto", "cpu", "gpu"] = "auto"
    strategy: Literal["auto", "ddp", "fsdp"] = "auto"
    # per node; null: 1 on CPU, every GPU otherwise
    devices: Annotated[int | None, Range(1, 1024)] = None
    num_nodes: Annotated[int, Range(1, 10**5)] = 1
    precision: Literal["32-true", "bf16-mixed"] = "32-true"
    compile: bool = False  # torch.compile the model
    # data loading processes; more, if steps wait for data (train/data_wait)
    num_workers: Annotated[int, Range(0, 1024)] = 0
    # loss or gradient norm far above the last 128 steps (moc.train.spikes): say so; or leave the
    # weights as they were too; or end the run. Not a part of what identifies a run: its journal
    # says what was done at which step
    on_spike: OnSpike = "warn"
    log_every_steps: Annotated[int, Range(1, 10**9)] = 10
    checkpoint_every_steps: Annotated[int, Range(1, 10**9)] = 100
    # runs stop at this share of their tokens, saved and their sources scored; asked for more
    # (pause_at=0.6, or null: all), they go on to the same weights. moc tune prunes trials by it
    pause_at: Annotated[float | None, Range(0, 1, without="low")] = None
    # of several ranks: how long one may keep the others waiting (hung, stopped, gone) before all
    # end and one line names it; what rank 0 does alone (scores, data, saving) is waited for
    timeout_sec: Annotated[float, Range(1, 10**6)] = 600.0


@dataclass
class TrackingConfig:
    uri: str | None = None  # MLflow tracking URI; null: sqlite in runs_dir


@dataclass
class StudyConfig:
    name: str = ""  # also the folder under runs_dir
    description: str = ""
    seeds: Annotated[list[int], Range(-(2**31), 2**32 - 1)] = field(default_factory=lambda: [0])
    runs_dir: str = "runs"
    cache_dir: str = "runs/cache"  # tokenised documents, by fingerprint
    model: ModelConfig = field(default_factory=ModelConfig)
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    data: dict[str, SourceConfig] = field(default_factory=dict)
    phases: dict[str, PhaseConfig] = field(default_factory=dict)
    arms: dict[str, ArmConfig] = field(default_factory=dict)
    # every arm at every size, for ``moc fit``; empty once loaded: the arms are there one by one
    ladder: dict[str, SizeConfig] = field(default_factory=dict)
    evals: EvalConfig = field(default_factory=EvalConfig)
    assay: AssayConfig | None = None
    probes: dict[str, ProbeConfig] = field(default_factory=dict)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    launch: LaunchConfig = field(default_factory=LaunchConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    tuning: TuningConfig | None = None
    tuned: str | None = None  # the tuned.yaml whose settings are laid over the arms

    @property
    def dir(self) -> Path:
        return Path(self.runs_dir) / self.name
