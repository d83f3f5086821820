"""One evaluation of one model: the study's tasks, and bits per byte of every source."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn

from evals.forgetting import forgetting_so_far
from evals.harness import bits_per_byte, evaluate_model
from evals.local_tasks import task_names
from moc.config import ConfigError, StudyConfig, config_hash, nearest
from moc.data.module import validation_windows
from moc.data.tokenizer import Tokenizer
from moc.journal import Journal, read
from moc.rundir import write_json
from moc.train.checkpoints import sha256
from moc.train.distributed import rank


def check_evals(study: StudyConfig) -> None:
    """
    Raises:
        ConfigError: if the study asks for scores that cannot be had.
    """
    known = task_names()
    for name in study.evals.tasks:
        if name not in known:
            raise ConfigError(f"evals.tasks: no task {name!r}; {nearest(name, known)}")


class BoundaryEvaluator:
    """Scores models of one study, at boundaries and from files, always in the same way."""

    def __init__(self, study: StudyConfig, tokenizer: Tokenizer) -> None:
        self.study, self.tokenizer = study, tokenizer
        # What was evaluated is part of the result: other tasks or items are other results.
        evals = study.evals
        settings = (evals.tasks, evals.num_items, evals.context_length, evals.validation_tokens)
        self.eval_hash = config_hash(settings, study.data, self.sources(), tokenizer.fingerprint)
        self._windows: dict[str, Any] = {}

    def sources(self) -> list[str]:
        """Every source that any phase trains on, in the order of the config."""
        used = {
            s for arm in self.study.arms.values() for p in arm.phases.values() for s in p.mixture
        }
        return [name for name in self.study.data if name in used]

    def is_done(self, folder: Path) -> bool:
        """Whether ``folder`` holds this evaluation's result already."""
        path = folder / "evals.json"
        return path.is_file() and json.loads(path.read_text())["eval_hash"] == self.eval_hash

    def score(self, model: nn.Module) -> tuple[dict[str, Any], dict[str, list[dict[str, Any]]]]:
        """Task scores and bits per byte of ``model``, and the samples behind the scores."""
        evals = self.study.evals
        begun = time.monotonic()
        with torch.compiler.set_stance("force_eager"):
            tasks, samples = evaluate_model(
                model,
                self.tokenizer,
                tasks=evals.tasks,
                task_dir=self.study.dir / "tasks",
                context_length=evals.context_length,
                batch_size=evals.batch_size,
                num_items=evals.num_items,
            )
            bits = {}
            for source in self.sources():
                tokens, mask, num_bytes = self._source_windows(source)
                bits[source] = bits_per_byte(
                    model, tokens, mask, num_bytes, batch_size=evals.batch_size
                )
        elapsed_sec = round(time.monotonic() - begun, 3)
        return {"tasks": tasks, "bits_per_byte": bits, "elapsed_sec": elapsed_sec}, samples

    def evaluate(
        self,
        model: nn.Module,
        folder: Path,
        *,
        index: int,
        step: int,
        tokens: int,
        journal: Journal,
    ) -> None:
        """Score the boundary in ``folder`` and record the result; ``evals.json`` comes last."""
        scores, samples = self.score(model)
        if rank():
            return
        name = folder.name.partition("-")[2]
        for task, items in samples.items():
            path = folder / "samples" / f"{task}.jsonl"
            path.parent.mkdir(exist_ok=True)
            path.write_text("".join(json.dumps(item) + "\n" for item in items))
        metrics = {}
        for task, score in scores["tasks"].items():
            metrics[f"eval/{task}/{score['metric']}"] = score["value"]
        for source, value in scores["bits_per_byte"].items():
            metrics[f"eval/{source}/bits_per_byte"] = value
        records = [*self._earlier(folder, index), {"boundary": name, "index": index, **scores}]
        for task, value in forgetting_so_far(records).items():
            metrics[f"forgetting/{task}"] = value
        entry = {"phase": name, "step": step, "tokens": tokens, "metrics": metrics}
        # it is there already if an earlier try was killed before evals.json
        if not any(entry.items() <= known.items() for known in read(journal.path)):
            journal.append(entry)
        journal.commit()
        record = {
            "boundary": name,
            "index": index,
            "tokens": tokens,
            "fingerprint": sha256(folder / "model.safetensors"),
            "eval_hash": self.eval_hash,
            **scores,
        }
        write_json(folder / "evals.json", record)

    def _earlier(self, folder: Path, index: int) -> list[dict[str, Any]]:
        """This evaluation's records of the boundaries before ``index``, in their order."""
        records = [json.loads(p.read_text()) for p in folder.parent.glob("*/evals.json")]
        same = [r for r in records if r["eval_hash"] == self.eval_hash and r["index"] < index]
        return sorted(same, key=lambda record: record["index"])

    def _source_windows(self, source: str) -> Any:
        if source not in self._windows:
            evals = self.study.evals
            self._windows[source] = validation_windows(
                self.study, source, self.tokenizer, evals.context_length, evals.validation_tokens
            )
        return self._windows[source]
