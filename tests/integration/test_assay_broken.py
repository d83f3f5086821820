"""A study whose positive control cannot store says nothing about memory: not in its report, not in
its summary, not in MLflow."""

from __future__ import annotations

import csv
import re
from pathlib import Path

from mlflow import MlflowClient

from moc.config.load import load_study
from moc.report.numbers.assay import UNSEEN
from moc.store.files import read_json
from moc.study import run_study
from moc.tracking.server import default_uri

# The positive control's bank is zero from the start and never trains: it is its own twin.
STUDY = """
name: broken
seeds: [0, 1, 2]
runs_dir: {folder}/runs
cache_dir: {folder}/cache
model:
  vocab_size: 400
  num_layers: 1
  dim: 16
  num_heads: 2
  num_kv_heads: 2
  mlp_dim: 32
  memory:
    kind: product_keys
    layers: all
    product_keys: {{num_keys: 8, num_heads: 1, num_read: 4, key_dim: 16}}
tokenizer: {{kind: words, vocab_size: 393}}
data:
  first: {{kind: records, num_records: 20, key_words: 2, num_exposures: 4}}
  second: {{kind: records, num_records: 20, first_record: 20, key_words: 2, num_exposures: 4}}
phases:
  learn:
    tokens: 41_600
    tokens_per_step: 416
    context_length: 13
    packing: documents
    loss_on: assistant
    mixture: {{first: 1}}
    optimizer: {{backbone: {{lr: 1e-2}}, memory_layers: {{lr: 1e-2}}, bank: {{lr: 1e-1}}}}
    schedule: {{kind: constant}}
  more:
    tokens: 4160
    tokens_per_step: 416
    context_length: 13
    packing: documents
    loss_on: assistant
    mixture: {{second: 1}}
    optimizer: {{backbone: {{lr: 1e-2}}, memory_layers: {{lr: 1e-2}}, bank: {{lr: 1e-1}}}}
    schedule: {{kind: constant}}
arms:
  keys:
    model: {{memory: {{bank_init_std: 0}}}}
    phases:
      learn: {{optimizer: {{bank: {{freeze: true}}}}}}
      more: {{optimizer: {{bank: {{freeze: true}}}}}}
  dense: {{model: {{memory: null}}}}
assay: {{positive: keys}}
evals: {{context_length: 16, leakage_windows: 0, validation_tokens: 256}}
trainer: {{accelerator: cpu}}
"""
CLAIM = re.compile(r"forgets (less|more) than|(?<!to )\bstores \(|stores less than its twin \(")


def test_a_broken_positive_control_leaves_no_verdict(tmp_path: Path) -> None:
    (tmp_path / "study.yaml").write_text(STUDY.format(folder=tmp_path))
    study = load_study(tmp_path / "study.yaml")
    page = run_study(study)
    folder = page.parent

    # there was something to say: the dense arm has learned, and lost some of it
    rows = list(csv.DictReader((folder / "tables/knowledge.csv").open()))
    held = {(r["arm"], r["source"], r["boundary"]): float(r["stored"]) for r in rows if r["stored"]}
    assert held["dense", "first", "learn"] > 100 > held["dense", "first", "start"]
    assert held["dense", "first", "more"] < held["dense", "first", "learn"]
    # the twin is the same model
    assert held["keys", "first", "learn"] == held["keys_frozen", "first", "learn"]

    experiment = MlflowClient(default_uri(Path(study.runs_dir))).get_experiment_by_name("broken")
    client = MlflowClient(default_uri(Path(study.runs_dir)))
    runs = client.search_runs([experiment.experiment_id], "tags.level = 'study'")
    (parent,) = runs
    note = parent.data.tags["mlflow.note.content"]
    for text in (page.read_text(), (folder / "summary.md").read_text(), note):
        assert UNSEEN in " ".join(text.split()) and not CLAIM.search(text)
    assert parent.data.metrics["assay/passed"] == 0
    for name in ("differences-keys", "banks"):
        found = list(csv.DictReader((folder / f"tables/{name}.csv").open()))
        assert found and {row["verdict"] for row in found} == {UNSEEN}
    first = read_json(study.dir / "arms/dense/seed-0/boundaries/1-learn/evals.json")
    assert first["knowledge"]["first"]["demand"] == 20 * 40
