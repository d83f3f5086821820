"""What a model knows of the study's people and records, at boundaries, within phases and under
controls."""

from __future__ import annotations

from typing import Any

import torch

from evals.measures.knowledge import knowledge_items, knowledge_record, needed_bits
from evals.scoring.harness import Samples
from moc.config.schema import StudyConfig
from moc.data.known import Known, bits_demanded, known_documents
from moc.data.tokenizer import Tokenizer, used_sources
from moc.model.transformer import Transformer
from moc.store.rundir import KNOWLEDGE


class Knowledge:
    """Of every source of facts or records that a phase of some arm trains on."""

    def __init__(self, study: StudyConfig, tokenizer: Tokenizer) -> None:
        self.study, self.tokenizer = study, tokenizer
        demanded = bits_demanded(study)
        self.sources = [name for name in used_sources(study) if name in demanded]
        self._documents: dict[str, Known] = {}

    def score(
        self, model: Transformer, most: int | None = None
    ) -> tuple[dict[str, dict[str, Any]], Samples]:
        """Source -> ``knowledge_record``; and ``knowledge_items``, by the name of their file.

        Args:
            most: people or records of each source; None: ``evals.knowledge_items``.
        """
        evals = self.study.evals
        most = evals.knowledge_items if most is None else min(most, evals.knowledge_items)
        records, samples = {}, {}
        for source in self.sources if most else ():
            known = self._known(source)
            with torch.compiler.set_stance("force_eager"):
                needed = needed_bits(
                    model,
                    known.ids[:most],
                    known.column[:most],
                    len(known.bits),
                    context_length=evals.context_length,
                    batch_size=evals.batch_size,
                )
            records[source] = knowledge_record(needed, known.bits, known.num_all)
            samples[f"{KNOWLEDGE}{source}"] = knowledge_items(
                needed, known.bits, known.labels[:most]
            )
        return records, samples

    def _known(self, source: str) -> Known:
        if source not in self._documents:
            config = self.study.data[source]
            most = self.study.evals.knowledge_items
            self._documents[source] = known_documents(config, self.tokenizer, most)
        return self._documents[source]
