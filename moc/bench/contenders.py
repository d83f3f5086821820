"""What ``moc.bench`` times: training steps and decoding of a model. Needs torch alone.

B batch, L length.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from moc.bench.heap import give_back_freed_memory, peak_resident_bytes
from moc.config.schema import GroupConfig, OptimizerConfig
from moc.model import ModelConfig, Transformer, build_model
from moc.model.config import model_config
from moc.plan.flops import hardware_train_flops_per_token
from moc.plan.iso_flop import solve_shape
from moc.train.addresses import routers
from moc.train.optim import build_optimizer
from moc.train.step import optimizer_step

Optimizer = Literal["lazy", "dense"]
WARM_UP = 2  # repetitions that are not counted
# As good as none: a router that learned from random tokens would choose fewer and fewer chapters.
LEARNING_RATE = 1e-6
# Routed token by token, a softmax per chapter is what a large bank is read with.
MIXING = {"sequence": "joint", "segment": "joint", "token": "per_chapter"}
SEGMENT_TOKENS = 64


@dataclass(frozen=True)
class Workload:
    """What every contender of a comparison has to do."""

    batch: int
    length: int
    device: str
    bf16: bool = False
    compile: bool = False
    uniform: bool = False  # chapters in turn: as many distinct ones as there can be

    @property
    def tokens(self) -> int:
        return self.batch * self.length


class Spread(NamedTuple):
    """Seconds over interleaved repetitions."""

    median: float
    least: float
    most: float


class Training:
    """Optimizer steps of one model on one device, each one micro-batch of random tokens."""

    def __init__(self, config: ModelConfig, work: Workload, optimizer: Optimizer) -> None:
        self.work = work
        self.model: Transformer = build_model(config).to(work.device)
        for router in routers(self.model).values():
            router.takes_turns = work.uniform
        if work.compile:
            self.model.compile()
        group = GroupConfig(lr=LEARNING_RATE)
        groups = OptimizerConfig(group, group, group, lazy_bank=optimizer == "lazy")
        self.optimizer = build_optimizer(self.model, groups, fused=True)
        self.generator = torch.Generator().manual_seed(0)

    def __call__(self) -> None:
        work = self.work
        shape = (1, work.batch, work.length + 1)
        tokens_ABL = torch.randint(self.model.config.vocab_size, shape, generator=self.generator)
        tokens_ABL = tokens_ABL.to(work.device)
        counted_ABL = torch.ones_like(tokens_ABL[..., 1:], dtype=torch.bool)
        with torch.autocast(tokens_ABL.device.type, torch.bfloat16, enabled=work.bf16):
            optimizer_step(self.model, self.optimizer, tokens_ABL, counted_ABL, clip_norm=1.0)


class Decoding:
    """Greedy decoding with a cache, a token a call, going on from a prompt."""

    def __init__(self, config: ModelConfig, batch: int, prompt: int, new: int, device: str) -> None:
        self.model = build_model(config).to(device).eval()
        self.new = new
        generator = torch.Generator().manual_seed(0)
        prompt_BL = torch.randint(config.vocab_size, (batch, prompt), generator=generator)
        self.prompt_BL = prompt_BL.to(device)

    @torch.no_grad()
    def __call__(self) -> float:
        """Seconds for ``new`` tokens of every row; the prompt is not counted."""
        batch, prompt = self.prompt_BL.shape
        cache = self.model.new_cache(batch, prompt + self.new)
        token_B1 = _likeliest(self.model(self.prompt_BL, cache=cache).logits_BLV)
        synchronise(self.prompt_BL.device)
        begun = time.perf_counter()
        for _ in range(self.new):
            token_B1 = _likeliest(self.model(token_B1, cache=cache).logits_BLV)
        synchronise(self.prompt_BL.device)
        return time.perf_counter() - begun


def with_memory(config: ModelConfig, **changes: Any) -> ModelConfig:
    """``config`` with other settings of its memory, of chapters and of their router, or of product
    keys (``num_keys``), by field name."""
    memory = config.memory
    assert memory is not None
    router = _changed(memory.chapters.router, changes)
    chapters = _changed(replace(memory.chapters, router=router), changes)
    product_keys = memory.product_keys
    if "num_keys" in changes:  # the other names are those of chapters
        product_keys = replace(product_keys, num_keys=changes.pop("num_keys"))
    memory = _changed(replace(memory, chapters=chapters, product_keys=product_keys), changes)
    assert not changes, f"no settings of a memory: {', '.join(changes)}"
    # outputs that start at zero would give the bank no gradient
    return replace(config, memory=replace(memory, output_init="normal"))


def _changed(settings: Any, changes: dict[str, Any]) -> Any:
    """With those of ``changes`` that are its own, which are taken out."""
    own = {field.name for field in fields(settings)} & changes.keys()
    return replace(settings, **{name: changes.pop(name) for name in own})


def iso_flop(config: ModelConfig, work: Workload) -> ModelConfig:
    """The dense model that executes as many FLOPs per training token as ``config``."""

    def cost(shape: ModelConfig) -> float:
        return hardware_train_flops_per_token(shape, work.length, work.batch)

    return solve_shape(replace(config, memory=None), cost(config), cost)[0]


def interleaved(
    contenders: Mapping[str, Callable[[], float | None]], repetitions: int, device: str
) -> dict[str, Spread]:
    """Time every contender once a round, so that a machine's moods meet them all alike.

    A contender that returns seconds has timed itself.
    """
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for repetition in range(WARM_UP + repetitions):
        for name, run in contenders.items():
            synchronise(device)
            begun = time.perf_counter()
            own = run()
            synchronise(device)
            elapsed = time.perf_counter() - begun if own is None else own
            if repetition >= WARM_UP:
                seconds[name].append(elapsed)
    return {
        name: Spread(statistics.median(found), min(found), max(found))
        for name, found in seconds.items()
    }


def peak_bytes(contenders: Sequence[tuple[ModelConfig, Optimizer]], work: Workload) -> list[int]:
    """The most memory that a few steps of each take in a process of its own: resident, or of the
    GPU.

    On a CPU freed memory is given back at once there, so that this is what training needs. A run
    keeps it for speed (``keep_freed_memory``), which took a tenth of a gigabyte more here.
    """
    requests = [
        {"config": asdict(config), "work": asdict(work), "optimizer": optimizer}
        for config, optimizer in contenders
    ]
    if torch.device(work.device).type == "cpu":
        return _measure_peaks(requests)
    # to import may touch the GPU, and then a fork cannot use it
    return [peak for request in requests for peak in _measure_peaks([request])]


def _measure_peaks(requests: list[dict[str, Any]]) -> list[int]:
    """In forks of one new process, as to import takes longer than to measure; what is only imported
    and not touched (20 MB) does not count in a fork."""
    child = subprocess.run(
        [sys.executable, "-m", "moc.bench.contenders"],
        input=json.dumps(requests),
        capture_output=True,
        text=True,
        check=False,
    )
    if child.returncode:
        raise RuntimeError(f"measuring the peak memory failed:\n{child.stderr}")
    return [int(line) for line in child.stdout.splitlines()]


def seconds_of(name: str, spread: Spread) -> dict[str, float]:
    stem = name.removesuffix("_sec")
    return {name: spread.median, f"{stem}_min_sec": spread.least, f"{stem}_max_sec": spread.most}


def shown_as(spread: Spread, digits: int = 1) -> list[str]:
    median, least, most = (f"{seconds * 1e3:,.{digits}f}" for seconds in spread)
    return [median, f"{least}-{most}"]


def synchronise(device: str | torch.device) -> None:
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)


def _measure_peak(request: dict[str, Any]) -> int:
    config = model_config(request["config"])
    step = Training(config, Workload(**request["work"]), request["optimizer"])
    for _ in range(3):
        step()
    gc.collect()
    if torch.device(step.work.device).type == "cuda":
        return torch.cuda.max_memory_allocated()
    return peak_resident_bytes()


def _measure_each(requests: list[dict[str, Any]]) -> int:
    """Print a peak a line; the exit code."""
    if len(requests) == 1:
        print(_measure_peak(requests[0]))
        return 0
    importlib.import_module("torch._dynamo")  # as the first optimizer does, for all forks

    for request in requests:
        fork = os.fork()
        if not fork:
            print(_measure_peak(request), flush=True)
            os._exit(0)
        _, status = os.waitpid(fork, 0)
        if status:
            return 1
    return 0


def _likeliest(logits_BLV: Tensor) -> Tensor:
    return logits_BLV[:, -1:].argmax(-1)


if __name__ == "__main__":
    # Triton is no part of training on a CPU, but where it is installed PyTorch imports it: 75 MB.
    if not torch.cuda.is_available():
        sys.modules["triton"] = None  # type: ignore[assignment]
    give_back_freed_memory()
    sys.exit(_measure_each(json.load(sys.stdin)))
