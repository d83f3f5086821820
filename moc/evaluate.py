"""One evaluation of one model: the study's tasks, and bits per byte of every source."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from evals.chapter_use import chapter_use, router_drift
from evals.forgetting import forgetting_so_far
from evals.harness import bits_per_byte, evaluate_model
from evals.leakage import leakage_record
from evals.local_tasks import task_names
from evals.picks import overlap
from moc.config import ConfigError, StudyConfig, config_hash, nearest
from moc.data.tokenizer import Tokenizer
from moc.data.windows import comparable_texts, validation_windows
from moc.journal import Journal, read
from moc.model.config import routing_scope
from moc.model.files import read_safetensors
from moc.model.transformer import Transformer
from moc.rundir import write_json
from moc.train.checkpoints import sha256
from moc.train.distributed import rank

EVALUATION = 5  # counts up when the same model and settings give other records
ROUTED_WINDOWS = 64  # per source, to see which chapters are read


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
        settings = replace(evals, batch_size=1)  # speed only
        self.eval_hash = config_hash(
            EVALUATION, settings, study.data, self.sources(), tokenizer.fingerprint
        )
        self._windows: dict[str, Any] = {}
        self._texts: dict[str, Any] = {}

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

    def score(self, model: Transformer) -> tuple[dict[str, Any], dict[str, list[dict[str, Any]]]]:
        """Task scores of ``model``, its bits per byte, what looking ahead is worth to it and which
        chapters it reads; and the samples behind the scores."""
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
                route_on=evals.route_on,
            )
            bits = {}
            for source in self.sources():
                tokens, mask, num_bytes = self._source_windows(source)
                bits[source] = bits_per_byte(
                    model, tokens, mask, num_bytes, batch_size=evals.batch_size
                )
            leakage = {}
            if evals.leakage_windows:
                leakage = leakage_record(
                    model,
                    self._comparable_texts(),
                    samples,
                    num_windows=evals.leakage_windows,
                    batch_size=evals.batch_size,
                )
            routing = self._routing(model)
        record = {
            "tasks": tasks,
            "bits_per_byte": bits,
            "leakage": leakage,
            "routing": routing,
            "elapsed_sec": round(time.monotonic() - begun, 3),
        }
        return record, samples

    def _routing(self, model: Transformer) -> dict[str, Any]:
        """How often every memory layer picks each chapter on every source's validation text."""
        if routing_scope(model.config) == "none":
            return {}
        sources = {}
        for source in self.sources():
            tokens_NL = self._source_windows(source)[0][:, :-1]
            whole = max(1, min(ROUTED_WINDOWS, len(tokens_NL) - 1))  # the last may be padded
            tokens_NL = tokens_NL[:whole]
            loads = chapter_use(model, tokens_NL, batch_size=self.study.evals.batch_size)
            load = {str(layer): load_C.tolist() for layer, load_C in loads.items()}
            sources[source] = {"num_tokens": tokens_NL.numel(), "load": load}
        return {"sources": sources}

    def evaluate(
        self,
        model: Transformer,
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
        earlier = self._earlier(folder, index)
        metrics |= self._compare_routing(folder, scores, earlier)
        records = [*earlier, {"boundary": name, "index": index, **scores}]
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

    def _compare_routing(
        self, folder: Path, scores: dict[str, Any], earlier: list[dict[str, Any]]
    ) -> dict[str, float]:
        """What to log of looking ahead and of routing, by its change since the boundary before.

        Adds ``drift`` to ``scores["routing"]``.
        """
        metrics = {
            f"eval/{source}/leak_gain": record["gain"]["value"]
            for source, record in scores["leakage"].get("sources", {}).items()
            if "gain" in record
        }
        for task, record in scores["leakage"].get("tasks", {}).items():
            metrics[f"eval/{task}/answer_gain"] = record["gain"]["value"]
        if not scores["routing"] or not earlier:
            return metrics
        last = earlier[-1]
        before = folder.parent / f"{last['index']}-{last['boundary']}"
        weights = [read_safetensors(path / "model.safetensors") for path in (before, folder)]
        drift = router_drift(*weights)
        scores["routing"]["drift"] = {str(layer): value for layer, value in drift.items()}
        metrics["router/drift"] = fmean(drift.values())
        for source, now in scores["routing"]["sources"].items():
            then = last["routing"]["sources"][source]["load"]
            shared = [overlap(then[layer], load)["mass"] for layer, load in now["load"].items()]
            metrics[f"eval/{source}/chapter_overlap"] = fmean(shared)
        return metrics

    def _earlier(self, folder: Path, index: int) -> list[dict[str, Any]]:
        """This evaluation's records of the boundaries before ``index``, in their order."""
        records = [json.loads(p.read_text()) for p in folder.parent.glob("*/evals.json")]
        same = [r for r in records if r["eval_hash"] == self.eval_hash and r["index"] < index]
        return sorted(same, key=lambda record: record["index"])

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
