"""What the tests run in processes of their own; see ``tests.support.fork_server``."""

from __future__ import annotations

import contextlib
import io
import json
import os
import traceback
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

import moc.callbacks.checkpoint
import moc.data.cache
import moc.evaluate.evaluator
import moc.ops.rows
import moc.report.sections
import moc.study
import moc.train.checkpoints
import moc.train.step
import moc.verbs.compare
import moc.verbs.eval
import moc.verbs.generate
import moc.verbs.leakage
from evals.measures.controls import knocked_out, swapped_bank
from evals.scoring.observing import only_observing
from moc.callbacks.revival import Revival
from moc.cli import main
from moc.evaluate.evaluator import BoundaryEvaluator
from moc.model.decode.generate import generate
from moc.model.transformer import Transformer
from moc.ops import take_rows
from moc.ops.shards import own_rows, owned_rows, rows_to_owners, shard_rows
from moc.run.arm_seed import ArmSeed
from moc.run.execute import execute
from moc.run.tools import Tools
from moc.store.journal import Journal
from moc.train.distributed import rank
from moc.train.logger import JournalLogger
from moc.train.module import StudyModule
from tests.support import process_faults
from tests.support.helpers_training import module_of, tiny_study, train_phase
from tests.support.spoiling import nan_in_second_step, spoiled

PROMPTS = [[1, 2, 3], [4, 5], [6]]


class NoTracker:
    """MLflow takes seconds to start, and these tests are not about it."""

    def __init__(self, study: Any) -> None: ...

    def start(self) -> None: ...

    def sync(self) -> None: ...

    def close(self) -> None: ...


def command(
    argv: list[str],
    stop: dict[str, Any] | None = None,
    fault: dict[str, Any] | list[dict[str, Any]] | None = None,
    group: bool = False,
) -> int:
    """``moc ARGV``, without MLflow and the HTML report; a signal arrives at the moment ``stop``.

    ``stop``: {"at": one of the moments below, "signal": its number, and what the moment asks for}.
    ``fault``: one or more of ``tests.support.process_faults``. ``group``: in a process group of its
    own.
    """
    if group:
        os.setpgid(0, 0)
    moc.study.Tracker = NoTracker  # type: ignore[assignment,misc]
    moc.study.build_report = lambda folder: folder / "report"  # type: ignore[assignment]
    moc.study.measure_matmul_peak = lambda *_: 1e9  # type: ignore[assignment]
    if stop:
        MOMENTS[stop.pop("at")](**stop)
    for one in [fault] if isinstance(fault, dict) else fault or []:
        process_faults.install(**one)
    return main(argv)


def execute_run(study: str, arm: str, seed: int) -> None:
    """As a launcher would, with nothing but these three."""
    run = ArmSeed.open(Path(study), arm, seed)
    execute(run, Tools(BoundaryEvaluator(run.study, run.tokenizer)))


def several(commands: list[list[str]], result: str) -> None:
    """One ``command`` after another; exit codes and outputs go to ``result``, as JSON."""
    for entries in moc.report.sections.SECTIONS.values():  # figures take seconds
        entries[:] = [entry for entry in entries if entry[0] != "figure"]
    found = []
    for argv in commands:
        output = io.StringIO()
        with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
            try:
                code = command(argv)
            except BaseException:
                code = None
                traceback.print_exc()
        found.append([code, output.getvalue()])
    Path(result).write_text(json.dumps(found))


def _large_caches(*, signal: int) -> None:
    """No moment: every token cache is taken for one that is too large to be verified at once."""
    moc.data.cache._FULL_CHECK_BYTES = 0


def _replace_file(*, file: str, text: str, phase: str, step: int, signal: int) -> None:
    """After a step, a file gets another text."""
    training_step = StudyModule.training_step

    def replacing(self: StudyModule, *arguments: Any) -> Any:
        result = training_step(self, *arguments)
        if (self.trainer.logger.phase, self.step) == (phase, step):  # type: ignore[union-attr]
            Path(file).write_text(text)
        return result

    StudyModule.training_step = replacing  # type: ignore[method-assign]


def tracked_command(argv: list[str], stop: dict[str, Any] | None = None) -> int:
    """``moc ARGV``, with MLflow and the report; see ``command``."""
    moc.study.measure_matmul_peak = lambda *_: 1e9  # type: ignore[assignment]
    if stop:
        MOMENTS[stop.pop("at")](**stop)
    return main(argv)


def _after_step(*, signal: int, phase: str | None = None, step: int | None = None) -> None:
    """Once the weights have moved, before anything is recorded; by default in any step."""
    training_step = StudyModule.training_step

    def stopped(self: StudyModule, *arguments: Any) -> Any:
        result = training_step(self, *arguments)
        here = self.trainer.logger.phase, self.step  # type: ignore[union-attr]
        if phase is None or here == (phase, step):
            os.kill(os.getpid(), signal)
        return result

    StudyModule.training_step = stopped  # type: ignore[method-assign]


def _while_writing(*, folder: str, signal: int) -> None:
    """With the files of a checkpoint or boundary there, and its manifest not."""
    write_manifest = moc.train.checkpoints.write_manifest

    def stopped(path: Path, **facts: Any) -> None:
        if path.name == f"{folder}.partial":
            os.kill(os.getpid(), signal)
        write_manifest(path, **facts)

    moc.train.checkpoints.write_manifest = stopped


def _before_commit(*, phase: str, step: int, signal: int) -> None:
    """With a checkpoint or boundary in place, and the journal not committed."""
    commit = JournalLogger.commit

    def stopped(self: JournalLogger) -> None:
        if self.phase == phase and self._step == step:
            os.kill(os.getpid(), signal)
        commit(self)

    JournalLogger.commit = stopped  # type: ignore[method-assign]


def _while_evaluating(*, boundary: int, signal: int) -> None:
    """``boundary`` counts the evaluations of this process, from 0."""
    score, seen = BoundaryEvaluator.score, iter(range(100))

    def stopped(self: BoundaryEvaluator, *arguments: Any) -> Any:
        if next(seen) == boundary:
            os.kill(os.getpid(), signal)
        return score(self, *arguments)

    BoundaryEvaluator.score = stopped  # type: ignore[method-assign]


def _before_scores(*, folder: str, signal: int) -> None:
    """With the scores of a boundary in the journal, and evals.json not there."""
    write_json = moc.evaluate.evaluator.write_json

    def stopped(path: Path, value: Any, **options: Any) -> None:
        if path.name == "evals.json" and path.parent.name == folder:
            os.kill(os.getpid(), signal)
        write_json(path, value, **options)

    moc.evaluate.evaluator.write_json = stopped


MOMENTS = {
    "after step": _after_step,
    "large caches": _large_caches,
    "replace file": _replace_file,
    "while writing": _while_writing,
    "before commit": _before_commit,
    "while evaluating": _while_evaluating,
    "before scores": _before_scores,
}


def train(
    folder: str,
    overrides: list[str],
    result: str,
    checkpoint_at: int | None = None,
    nan_on_rank: int | None = None,
    resume: str | None = None,
) -> None:
    """Train the first phase of the tiny study on this rank, or what is left of it after the
    checkpoint ``resume``, and leave what happened in ``result/<rank>.pt``; with ``checkpoint_at``,
    a checkpoint of that step beside it."""
    if nan_on_rank is not None:
        _spoil_second_step(nan_on_rank)
    study = tiny_study(Path(folder), *overrides)
    watcher = _Watcher(Path(result), checkpoint_at)
    callbacks: tuple[L.Callback, ...] = (watcher,)
    if every := study.arms["moc"].phases["facts"].revive_every_steps:
        journal = Journal(Path(result) / "revivals.jsonl")
        callbacks = (Revival(every, seed=0, revivals=journal), watcher)
    start: dict[str, Any] = {}
    if resume is not None:
        state = moc.train.checkpoints.load_training_state(Path(resume))
        model = Transformer(study.arms["moc"].model)
        model.load_state_dict(state["model"])
        start = {"model": model, "start_step": state["step"]}
        start["optimizer_state"] = state["optimizer"]
    fetches = _watch_fetches()
    _, recorder = train_phase(study, Path(result), callbacks=callbacks, **start)
    torch.save(
        {
            "fetches": fetches,
            "results": recorder.results,
            "samples": [batch["tokens"] for batch in recorder.batches],
            **watcher.found,
        },
        Path(result) / f"{rank()}.pt",
    )


def _watch_fetches() -> list[tuple[list[int], int]]:
    """Of every fetch to come: the chapters that this rank asked for, and how many rows it sent to
    other ranks."""
    fetches: list[tuple[list[int], int]] = []
    fetch_rows, all_to_all = moc.ops.rows.fetch_rows, torch.distributed.all_to_all_single
    sent = [0]

    def counted(output: Any, rows: torch.Tensor, *splits: Any, **group: Any) -> Any:
        if rows.ndim == 3:
            _, rows_to = splits
            sent[0] += sum(rows_to) - rows_to[rank()]
        return all_to_all(output, rows, *splits, **group)

    def watched(bank_CTM: Any, chapter_U: torch.Tensor) -> torch.Tensor:
        sent[0] = 0
        rows = fetch_rows(bank_CTM, chapter_U)
        fetches.append((chapter_U.tolist(), sent[0]))
        return rows

    moc.ops.rows.fetch_rows = watched  # type: ignore[assignment]
    torch.distributed.all_to_all_single = counted
    return fetches


class _Watcher(L.Callback):
    """Collects what only a live trainer can tell: full weights and optimizer groups."""

    def __init__(self, result: Path, checkpoint_at: int | None) -> None:
        self.result, self.checkpoint_at = result, checkpoint_at
        self.found: dict[str, Any] = {}

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        module = module_of(pl_module)
        if module.step == self.checkpoint_at:
            moc.train.checkpoints.save_training_state(
                self.result / f"facts-{module.step:08d}",
                module.model,
                trainer.optimizers[0],
                callbacks={},
                phase="facts",
                step=module.step,
                config_hash="",
            )

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        model = module_of(pl_module).model
        names = {id(parameter): name for name, parameter in model.named_parameters()}
        self.found = {
            "weights": get_model_state_dict(model, options=StateDictOptions(full_state_dict=True)),
            "buffers": dict(model.named_buffers()),
            "sharded": any(isinstance(p, DTensor) for p in model.parameters()),
            "bank rows here": [len(own_rows(tokens)) for tokens in model.bank_rows()],
            "groups": [
                {
                    "params": [names[id(parameter)] for parameter in group["params"]],
                    "peak_lr": group["peak_lr"],
                    "weight_decay": group["weight_decay"],
                }
                for group in trainer.optimizers[0].param_groups
            ],
        }


def _spoil_second_step(nan_on_rank: int) -> None:
    def change(index: int, loss: Tensor) -> Tensor:
        return nan_in_second_step(index, loss) if rank() == nan_on_rank else loss

    moc.train.step.predict = spoiled(change)


def shards(result: str) -> None:
    """Spread a (9, 2, 3) bank and a (1, 2, 3) one over the ranks and leave in ``result/<rank>.pt``
    what rank r fetches of them, and what arrives of rows that both ranks send to their owners."""
    torch.distributed.init_process_group("gloo")
    mesh = init_device_mesh("cpu", (torch.distributed.get_world_size(),))
    found: dict[str, Any] = {}
    for num_chapters, asked in ((9, [[0, 4, 5, 8], [2, 4]]), (1, [[], [0]])):
        bank = torch.arange(num_chapters * 6.0).reshape(num_chapters, 2, 3)
        sharded = torch.nn.Parameter(shard_rows(bank, mesh))
        chapter_U = torch.tensor(asked[rank()], dtype=torch.long)
        with torch.no_grad():
            fetched = take_rows(sharded, chapter_U)
        sent = rows_to_owners(sharded.detach(), chapter_U, fetched + 1000 * (rank() + 1))
        found[str(num_chapters)] = {
            "whole": sharded.detach().full_tensor(),
            "owned": list(owned_rows(sharded)),
            "fetched": fetched,
            "sent": sent,
        }
    try:
        take_rows(sharded, chapter_U)
    except AssertionError as error:
        found["without a slot"] = str(error)
    torch.save(found, Path(result) / f"{rank()}.pt")


def controls(folder: str, overrides: list[str], result: str) -> None:
    """Train the tiny study's first phase and look at the model with another bank, or without one,
    before the first step and after the last; leaves what was seen in ``result/<rank>.pt``."""
    looks = _Looks()
    study = tiny_study(Path(folder), *overrides)
    train_phase(study, Path(result), callbacks=(looks,))
    torch.save(looks.found, Path(result) / f"{rank()}.pt")


class _Looks(L.Callback):
    def __init__(self) -> None:
        self.found: list[dict[str, Any]] = []

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self._look(module_of(pl_module).model)

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        self._look(module_of(pl_module).model)

    def _look(self, model: Any) -> None:
        def weights() -> dict[str, Any]:
            return get_model_state_dict(model, options=StateDictOptions(full_state_dict=True))

        seen: dict[str, Any] = {"before": weights()}
        other = {name: tensor.flip(0) for name, tensor in seen["before"].items()}
        for name, control in {
            "bank": knocked_out(model, None),
            "chapters": knocked_out(model, [[0, 7]] * len(model.banks)),
            "swap": swapped_bank(model, other),
        }.items():
            with control:
                seen[name] = _logits(model)
            if name == "bank":  # the first was entered before a forward pass gathered anything
                seen["logits"] = _logits(model)
        with only_observing(model):
            seen["written"] = generate(model, PROMPTS, max_new_tokens=8)
        seen |= {"logits after": _logits(model), "after": weights()}
        seen["sharded"] = isinstance(model, FSDPModule)
        self.found.append(seen)


def _logits(model: Any) -> torch.Tensor:
    with only_observing(model):
        return model(torch.arange(64).reshape(1, 64) % 32).logits_BLV
