"""How MLflow's list of runs shows a study: the entries of its menu "Views", as plain values.

MLflow folds child runs, draws ten curves at most and shows no metric in its table unless told
otherwise. A saved view is a tag of the experiment, in the format of MLflow 3.17's own pages.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from moc.config.schema import StudyConfig
from moc.store.files import read_sound_json
from moc.store.rundir import StudyDir
from moc.tracking.content import clean

_VIEW_TAG = "mlflow.sharedViewState."
_MAX_COLUMNS = 20  # a tag has room for 5000 characters
_PIXELS_PER_CHAR = 7  # a column as wide as its name


def experiment_tags(study: StudyConfig) -> dict[str, str]:
    """Two views of the study: the curves of its arms, averaged over seeds, and a table of what
    every run scored at the end."""
    runs = f"tags.study = '{study.name}' AND tags.arm LIKE '%'"
    by_arm = {"mode": "param", "groupByData": "arm"}
    shown = {"searchFilter": runs, "runsHiddenMode": "SHOW_ALL", "hideEmptyCharts": True}
    shown |= {"orderByKey": "tags.`mlflow.runName`", "orderByAsc": True}
    curves = shown | {"groupBy": {"aggregateFunction": "average", "groupByKeys": [by_arm]}}
    columns = ["params.`kind`", "params.`scope`"]
    columns += [f"metrics.`{name}`" for name in list(_final_metrics(study))[:_MAX_COLUMNS]]
    scores = shown | {"groupBy": None, "selectedColumns": columns, "columnOrder": columns}
    scores["columnWidths"] = {
        name: 40 + _PIXELS_PER_CHAR * len(name.split("`")[1]) for name in columns
    }
    return {
        f"{_VIEW_TAG}{_key(study.name, 'curves')}": _view(f"{study.name}: curves by arm", curves),
        f"{_VIEW_TAG}{_key(study.name, 'scores')}": _view(f"{study.name}: final scores", scores),
    }


def pages(study_name: str, experiment_id: str, run_id: str) -> dict[str, str]:
    """What of MLflow's pages to open for a study, below the server's address; not those that it
    has for chats with a language model."""
    page, kind = f"#/experiments/{experiment_id}/runs", "workflowType=machine_learning"
    views = {what: f"viewStateShareKey={_key(study_name, what)}" for what in ("scores", "curves")}
    return {
        "summary": f"{page}/{run_id}?{kind}",
        "scores": f"{page}?{kind}&{views['scores']}",
        "curves": f"{page}?{kind}&compareRunsMode=CHART&{views['curves']}",
    }


def _final_metrics(study: StudyConfig) -> Iterator[str]:
    """Names of the last boundary's metrics: scores, forgetting, then bits per byte."""
    phases = list(study.phases)
    found: dict[str, Any] = {}
    for arm in study.arms:
        for seed in study.seeds:
            folder = StudyDir(study.dir).run(arm, seed, phases).boundary(len(phases))
            for part, entries in read_sound_json(folder / "evals.json").items():
                if part in ("tasks", "bits_per_byte"):
                    found.setdefault(part, {}).update(entries)
    tasks, sources = found.get("tasks", {}), found.get("bits_per_byte", {})
    yield from (clean(f"eval/{task}/{score['metric']}") for task, score in tasks.items())
    yield from (clean(f"forgetting/{task}") for task in tasks)
    yield from (clean(f"eval/{source}/bits_per_byte") for source in sources)


def _key(study_name: str, what: str) -> str:
    return f"{study_name}-{what}"


def _view(name: str, state: dict[str, Any]) -> str:
    # times are asked for; what does not change must not be sent again
    return json.dumps({"name": name, "createdAt": 0, "updatedAt": 0, "state": json.dumps(state)})
