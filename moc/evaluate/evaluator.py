"""Evaluations of one model: the study's tasks, bits per byte of every source, and controls."""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from evals.measures.controls import apply_control, control_names
from evals.measures.leakage import leakage_record
from evals.measures.row_use import row_use
from evals.scoring.harness import Samples, Scores, bits_per_byte, evaluate_model
from evals.statistics.forgetting import forgetting_so_far
from moc.config.identity import config_hash
from moc.config.schema import InPhaseConfig, StudyConfig
from moc.data.tokenizer import Tokenizer
from moc.data.windows import comparable_texts, validation_streams, validation_windows
from moc.evaluate.asked import all_tasks, user_tasks
from moc.evaluate.knowledge import Knowledge
from moc.evaluate.record import (
    compare_use,
    earlier_boundaries,
    earlier_records,
    is_recorded,
    logged,
    sample_hashes,
    write_samples,
)
from moc.model.transformer import Transformer
from moc.store.files import sha256, write_json
from moc.store.journal import Journal, read
from moc.store.lock import check_held
from moc.store.rundir import Boundary
from moc.train.distributed import rank

EVALUATION = 9  # counts up when the same model and settings give other records
TRAJECTORY = "trajectory/"  # metrics of the subset that is also scored while a phase trains
OBSERVED_WINDOWS = 64  # per source, to see which rows are read


class BoundaryEvaluator:
    """Scores models of one study, at boundaries and from files, always in the same way."""

    def __init__(
        self, study: StudyConfig, tokenizer: Tokenizer, *, task_dir: Path | None = None
    ) -> None:
        self.study, self.tokenizer = study, tokenizer
        self.task_dir = task_dir or study.dir / "tasks"  # where the items of our tasks are
        self.user_tasks = user_tasks(study)
        self.tasks = all_tasks(study, self.user_tasks)
        # What was evaluated is part of the result: other tasks or items are other results.
        settings = replace(  # these decide speed, place and other records
            study.evals,
            batch_size=1,
            hub_mirror=None,
            task_paths=[],
            allow_task_code=False,
            in_phase=InPhaseConfig(),
        )
        own = self.user_tasks.fingerprint(self.tasks)
        self._asked = [settings, study.data, self.sources(), tokenizer.fingerprint, own]
        self.knowledge = Knowledge(study, tokenizer)
        self._windows: dict[str, Any] = {}
        self._texts: dict[str, Any] = {}

    @cached_property
    def eval_hash(self) -> str:
        """Of all that decides scores: also of the text, so that other text is scored anew."""
        where = (self.tokenizer, self.study.evals.validation_tokens)
        texts = validation_streams(self.study, self.sources(), *where)
        return config_hash(EVALUATION, *self._asked, texts)

    def sources(self) -> list[str]:
        """Every source that any phase trains on, in the order of the config."""
        used = {
            s for arm in self.study.arms.values() for p in arm.phases.values() for s in p.mixture
        }
        return [name for name in self.study.data if name in used]

    def is_done(self, folder: Path) -> bool:
        """Whether ``folder`` holds this evaluation's result already, whole."""
        return is_recorded(Boundary(folder), self.eval_hash)

    def score(self, model: Transformer) -> tuple[dict[str, Any], Samples]:
        """Task scores of ``model``, its bits per byte, what it knows of its sources, its leakage
        and which rows it reads; and the samples behind them."""
        evals = self.study.evals
        begun = time.monotonic()
        with torch.compiler.set_stance("force_eager"):
            tasks, samples = self.score_tasks(model, self.tasks, evals.num_items)
            bits = self.score_sources(model)
            leakage = {}
            if evals.leakage_windows:
                leakage = leakage_record(
                    model,
                    self._comparable_texts(),
                    samples,
                    num_windows=evals.leakage_windows,
                    batch_size=evals.batch_size,
                )
            use = self._memory_use(model)
            knowledge, items = self.knowledge.score(model)
        record = {
            "tasks": tasks,
            "bits_per_byte": bits,
            "knowledge": knowledge,
            "leakage": leakage,
            "memory": use,
            "elapsed_sec": round(time.monotonic() - begun, 3),
        }
        return record, {**samples, **items}

    def score_tasks(
        self, model: Transformer, tasks: Sequence[str], num_items: int | None
    ) -> tuple[Scores, Samples]:
        """``evaluate_model`` with the study's settings."""
        evals = self.study.evals
        with torch.compiler.set_stance("force_eager"):
            return evaluate_model(
                model,
                self.tokenizer,
                tasks=tasks,
                task_dir=self.task_dir,
                context_length=evals.context_length,
                batch_size=evals.batch_size,
                num_items=num_items,
                num_fewshot=evals.num_fewshot,
                hub_mirror=evals.hub_mirror,
                user_tasks=self.user_tasks,
                route_on=evals.route_on,
            )

    def score_sources(self, model: Transformer, num_windows: int | None = None) -> dict[str, float]:
        """Bits per byte of every source's validation text, or of its first windows."""
        found = {}
        for source in self.sources():
            tokens_NL, mask_NL, num_bytes = self._source_windows(source)
            if num_windows is not None and num_windows < len(tokens_NL):
                tokens_NL, mask_NL = tokens_NL[:num_windows], mask_NL[:num_windows]
                counted = tokens_NL[:, 1:][mask_NL].numpy()
                num_bytes = int(self.tokenizer.token_bytes[counted].sum())
            with torch.compiler.set_stance("force_eager"):
                found[source] = bits_per_byte(
                    model, tokens_NL, mask_NL, num_bytes, batch_size=self.study.evals.batch_size
                )
        return found

    def glance(self, model: Transformer) -> dict[str, float]:
        """Points of the trajectories: the scores of ``evals.in_phase``'s subset, by metric name."""
        chosen = self.study.evals.in_phase
        tasks = self.tasks if chosen.tasks is None else chosen.tasks
        scores, _ = self.score_tasks(model, tasks, chosen.num_items)
        found = {f"{TRAJECTORY}{task}": score["value"] for task, score in scores.items()}
        for source, bits in self.score_sources(model, chosen.num_items).items():
            found[f"{TRAJECTORY}{source}/bits_per_byte"] = bits
        for source, known in self.knowledge.score(model, chosen.num_items)[0].items():
            found[f"{TRAJECTORY}{source}/stored_bits"] = known["stored"]
        return found

    def _controls(
        self, model: Transformer, boundary: Boundary, use: dict[str, Any]
    ) -> tuple[dict[str, Any], dict[str, Samples]]:
        """What the model scores with another bank, or without one; and the samples, by control."""
        if boundary.index == 0:
            return {}, {}
        chosen = self.study.evals.controls
        banks = {
            each.name: each.weights
            for each in earlier_boundaries(boundary)
            if each.index  # an untrained bank says nothing
        }
        records, samples = {}, {}
        for name in control_names(chosen, list(banks), model.config):
            with apply_control(model, name, banks=banks, use=use):
                tasks, samples[name] = self.score_tasks(model, self.tasks, chosen.num_items)
                bits = self.score_sources(model)
                knowledge, items = self.knowledge.score(model)
            records[name] = {"tasks": tasks, "bits_per_byte": bits, "knowledge": knowledge}
            samples[name].update(items)
        return records, samples

    def _memory_use(self, model: Transformer) -> dict[str, Any]:
        """How often every memory layer picks each row on every source's validation text, and how
        flat its reads are."""
        if model.kind is None:
            return {}
        sources = {}
        for source in self.sources():
            tokens_NL = self._source_windows(source)[0][:, :-1]
            whole = max(1, min(OBSERVED_WINDOWS, len(tokens_NL) - 1))  # the last may be padded
            tokens_NL = tokens_NL[:whole]
            use = row_use(model, tokens_NL, batch_size=self.study.evals.batch_size)
            sources[source] = {
                "num_tokens": tokens_NL.numel(),
                "load": {str(layer): load_R.tolist() for layer, load_R in use.load.items()},
                "health": {str(layer): found for layer, found in use.health.items()},
            }
        return {"sources": sources}

    def evaluate(
        self,
        model: Transformer,
        folder: Path,
        *,
        step: int,
        tokens: int,
        journal: Journal,
    ) -> None:
        """Score the boundary in ``folder`` and record the result; ``evals.json`` comes last."""
        boundary = Boundary(folder)
        scores, samples = self.score(model)
        begun = time.monotonic()
        scores["controls"], others = self._controls(model, boundary, scores["memory"])
        metrics = self.glance(model) if self.study.evals.in_phase.every_tokens else {}
        scores["elapsed_sec"] = round(scores["elapsed_sec"] + time.monotonic() - begun, 3)
        if rank():
            return
        check_held(boundary.run.path)
        shutil.rmtree(boundary.samples, ignore_errors=True)  # of another evaluation
        write_samples(boundary.samples, samples)
        for control, found in others.items():
            write_samples(boundary.samples / control, found)
        earlier = earlier_records(boundary, self.eval_hash)
        metrics |= logged(scores) | compare_use(boundary, scores, earlier)
        place = {"boundary": boundary.name, "index": boundary.index}
        records = [*earlier, place | scores]
        for task, value in forgetting_so_far(records).items():
            metrics[f"forgetting/{task}"] = value
        entry = {"phase": boundary.name, "step": step, "tokens": tokens, "metrics": metrics}
        # it is there already if an earlier try was killed before evals.json
        if not any(entry.items() <= known.items() for known in read(journal.path)):
            journal.append(entry)
        journal.commit()
        record = {
            **place,
            "tokens": tokens,
            "fingerprint": sha256(boundary.weights),
            "eval_hash": self.eval_hash,
            "samples": sample_hashes(boundary.samples),
            **scores,
        }
        write_json(boundary.evals, record, sync=True)

    def _comparable_texts(self) -> Any:
        if not self._texts:
            evals = self.study.evals
            where = (self.tokenizer, evals.context_length, evals.validation_tokens)
            for source in self.sources():
                self._texts |= comparable_texts(self.study, source, *where)
        return self._texts

    def _source_windows(self, source: str) -> Any:
        if source not in self._windows:
            evals = self.study.evals
            self._windows[source] = validation_windows(
                self.study, source, self.tokenizer, evals.context_length, evals.validation_tokens
            )
        return self._windows[source]
