"""Whatever a report can show has its place in the list of sections, and the list is made by all."""

from __future__ import annotations

import ast
import importlib
import inspect
import pkgutil
import re
from collections.abc import Iterator
from html import escape
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

from moc.report import build_report, figures, load_results, tables
from moc.report.figures.drawing import Figure
from moc.report.numbers.results import Results
from moc.report.sections import PRINTED, SECTIONS, made
from tests.support.fake_knowledge import records_study, write_records_study
from tests.support.fake_ladder import made as made_ladder
from tests.support.fake_runs import add_spike, fake_study, write_study

ENTRIES = [entry for section in SECTIONS.values() for entry in section]
ROOM = Path(inspect.getfile(figures)).parents[1]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    """A study that has something for every entry, but for those of a ladder."""
    study = fake_study(
        tmp_path_factory.mktemp("runs"),
        seeds=(0, 1, 2),
        num_steps=(80, 40, 40),
        arms=("moc", "moc_segment", "iso_flop"),
        probes=("relearn", "others"),
    )
    folder = write_study(study)
    add_spike(study, "moc", 1)
    points = [{"point": {"lr_scale": scale}, "metric": [2 - scale / 9]} for scale in (1, 3)]
    arm = {"chosen": {"lr_scale": 3}, "at_edge": [], "settings": {}, "tokens": 7, "trials": points}
    tuned = {"axes": {"lr_scale": [1, 3]}, "metric": "bits per byte", "seeds": [9], "budget": 0.5}
    (folder / "tuning.yaml").write_text(yaml.safe_dump(tuned | {"arms": {"moc": arm}}))
    return load_results(folder)


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> Results:
    """A study of records with an assay, for what is said of banks."""
    study = records_study(tmp_path_factory.mktemp("records"))
    held = {(arm, "learn"): 0.5 + 0.3 * (arm == "keys") for arm in study.arms}
    return load_results(write_records_study(study, held))


@pytest.fixture(scope="module")
def demands(tmp_path_factory: pytest.TempPathFactory) -> Results:
    """The same at two sizes, which demand more and less."""
    study = records_study(tmp_path_factory.mktemp("demands"), sizes=("low", "high"))
    held = {(arm, "learn"): 0.5 for arm in study.arms}
    return load_results(write_records_study(study, held))


@pytest.fixture(scope="module")
def ladder(tmp_path_factory: pytest.TempPathFactory) -> Results:
    return load_results(made_ladder(tmp_path_factory.mktemp("ladder")))


def makers_in(package: ModuleType) -> Iterator[Any]:
    """Public functions from ``Results`` alone to a table, a figure or several."""
    for module in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
        for _, found in inspect.getmembers(importlib.import_module(module.name)):
            if not inspect.isfunction(found) or found.__module__ != module.name:
                continue
            given = list(inspect.signature(found).parameters.values())
            returned = str(inspect.signature(found).return_annotation)
            if (
                not found.__name__.startswith("_")
                and [p.annotation for p in given if p.default is p.empty] == ["Results"]
                and re.search(r"\b(Table|Figure)\b", returned)
            ):
                yield found


def test_every_function_that_makes_a_table_or_a_figure_has_one_line() -> None:
    for package, kinds in ((tables, {"table", "folded"}), (figures, {"figure"})):
        written = {f"{make.__module__}.{make.__name__}" for make in makers_in(package)}
        listed = [f"{m.__module__}.{m.__name__}" for kind, m in ENTRIES if kind in kinds]
        assert sorted(listed) == sorted(written)
    assert set(PRINTED) <= {make for kind, make in ENTRIES if kind != "figure"}


def test_every_line_makes_something_and_no_two_have_one_name(
    results: Results, ladder: Results, records: Results, demands: Results
) -> None:
    of = {"scaling": ladder, "knowledge": records}
    for kind, make in ENTRIES:
        study = of.get(make.__module__.rpartition(".")[2], results)
        product = make(demands if make.__name__ == "capacity" else study)
        products = product if isinstance(product, list) else [product]
        assert products and all(products), make
        for one in products:
            assert isinstance(one, Figure) == (kind == "figure"), make
            assert isinstance(one, Figure) or (one is not None and one.rows), make
    blocks = [block for section in made(results).values() for block in section]
    names = [(isinstance(block.product, Figure), block.product.name) for block in blocks]
    assert len(set(names)) == len(names)
    drawn = {name for is_figure, name in names if is_figure}
    assert {"memory_use_moc", "memory_use_moc_segment", "probe_relearn_more"} <= drawn


def test_the_page_shows_what_was_made_in_the_order_of_the_list(results: Results) -> None:
    page = build_report(results).read_text()
    titles = re.findall(r"<h2>(.*?)</h2>", page)
    elsewhere = ("Loss over training compute", "Could this study have seen it", "Knowledge stored")
    expected = [escape(title) for title in SECTIONS if title not in elsewhere]
    assert titles[1:-1] == expected  # between verdicts and appendix
    blocks = [block for section in made(results).values() for block in section]
    places = []
    for block in blocks:
        caption = escape(block.product.caption)
        assert page.count(f"<figcaption>{caption}</figcaption>") == 1, block.product.name
        places.append(page.index(f"<figcaption>{caption}</figcaption>"))
    assert places == sorted(places)
    assert page.count("<figcaption>") == len(blocks)
    files = {path.stem for path in (results.dir / "report/figures").iterdir()}
    assert files == {b.product.name for b in blocks if isinstance(b.product, Figure)}


def test_only_the_readers_touch_files_and_no_one_above_computes_an_interval() -> None:
    """Numbers know nothing of what shows them; what shows them knows nothing of files or of the
    resampling."""
    below = {"numbers": {"numbers"}, "tables": {"numbers", "tables"}}
    below["figures"] = {"numbers", "figures"}
    for path in ROOM.rglob("*.py"):
        room = path.parent.name
        nodes = list(ast.walk(ast.parse(path.read_text())))
        modules = {node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)}
        modules |= {a.name for node in nodes if isinstance(node, ast.Import) for a in node.names}
        own = {name.split(".")[2] for name in modules if re.match(r"moc\.report\.\w", name)}
        assert own <= below.get(room, own), path
        attributes = {node.attr for node in nodes if isinstance(node, ast.Attribute)}
        reads = {"read_text", "read_bytes", "glob", "loads", "is_file"} & attributes
        assert not reads or path.name == "read.py", (path, reads)
        if room != "numbers":
            assert not {"json", "yaml", "omegaconf", "csv"} & modules or path.name == "layout.py"
            assert not {m for m in modules if m.startswith("evals.statistics.inf")}, path
