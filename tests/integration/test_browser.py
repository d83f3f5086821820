"""What a researcher sees of a study in MLflow's own pages, in a real browser."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from moc.report import build_report
from moc.tracking.mirror import Tracker
from tests.support.browser import CHROMIUM, Browser, wait_for
from tests.support.fake_runs import fake_study, write_study

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")
ARMS = ("moc", "iso_flop")
FINALS = [0.32, 0.53]  # means of the last facts_answer of two seeds, by hand


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The links that ``moc ui`` prints for a study, by their names, while they are served."""
    runs_dir = tmp_path_factory.mktemp("runs")
    study = fake_study(runs_dir, seeds=(0, 1), num_steps=(40, 20), arms=ARMS)
    write_study(study)
    build_report(study.dir)
    tracker = Tracker(study)
    tracker.start()
    assert tracker.close(120) is None
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "moc", "ui", "--runs-dir", str(runs_dir), "--port", str(port)]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    printed = runs_dir / "printed.txt"
    with printed.open("w") as file:
        server = subprocess.Popen(command, stdout=file, stderr=file, env=environment)
    links: dict[str, str] = {}

    def served() -> bool:
        links.update(re.findall(r"^ +(\w+) +(http\S+)$", printed.read_text(), re.MULTILINE))
        return len(links) == 3

    try:
        assert wait_for(served, 120), f"no links:\n{printed.read_text()}"
        yield links
    finally:
        server.send_signal(signal.SIGINT)
        server.wait(30)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with Browser(tmp_path_factory.mktemp("profile")) as browser:
        yield browser


def test_the_experiment_lists_the_study_and_the_scores_of_its_runs(
    browser: Browser, pages: dict[str, str]
) -> None:
    browser.open(pages["summary"].partition("/runs/")[0] + "/runs?workflowType=machine_learning")
    browser.see("fake", "5 matching runs")
    browser.open(pages["scores"])
    runs = [f"{arm} seed {seed}" for arm in ARMS for seed in (0, 1)]
    browser.see("fake: final scores", "4 matching runs", *runs, "eval/facts_choice/acc", "0.74")


def test_the_page_of_the_study_says_what_may_be_concluded(
    browser: Browser, pages: dict[str, str]
) -> None:
    browser.open(pages["summary"])
    browser.see("Description", "One seed supports no claim", "moc seed 0", "Show more")
    browser.evaluate(
        "[...document.querySelectorAll('button')]"
        ".find(button => button.innerText == 'Show more').click()"
    )
    browser.see("forgotten, points", "Metrics (")
    table = "[...document.querySelectorAll('td')].map(cell => cell.innerText.trim())"
    assert {"moc†", "iso_flop"} <= set(browser.evaluate(table)), "no rendered table"


def test_a_run_shows_what_it_is_grouped_by(browser: Browser, pages: dict[str, str]) -> None:
    browser.open(pages["summary"])
    browser.see("moc seed 0")
    browser.evaluate(
        "[...document.querySelectorAll('a')].find(link => link.innerText == 'moc seed 0').click()"
    )
    browser.see("Parent run", "Parameters (", "Non-causal routing", "scope", "sequence")


def test_a_chart_has_one_curve_per_arm(browser: Browser, pages: dict[str, str]) -> None:
    browser.open(pages["curves"])
    browser.see("Group by: arm", *(f"Group: {arm}" for arm in ARMS))
    search = "document.querySelector('[placeholder=\"Search metric charts\"]')"
    assert wait_for(lambda: browser.evaluate(f"!!{search}"), 60), browser.text()
    browser.evaluate(f"{search}.focus()")
    browser.call("Input.insertText", text="trajectory/facts_answer")
    curves = """(() => {
        const drawn = [...document.querySelectorAll('.js-plotly-plot')].flatMap(plot => plot.data)
        const shown = drawn.filter(line => line.metricKey == 'trajectory/facts_answer')
        return [...new Set(shown.map(line => JSON.stringify([...line.y])))].map(JSON.parse) })()"""
    assert wait_for(lambda: len(browser.evaluate(curves)) == len(ARMS), 90), browser.text()
    finals = sorted(round(curve[-1], 2) for curve in browser.evaluate(curves))
    assert finals == FINALS, "not the means over seeds"
    browser.see(*(f"{arm} (trajectory/facts_answer)" for arm in ARMS))


def test_a_figure_of_the_report_is_displayed(browser: Browser, pages: dict[str, str]) -> None:
    page, _, query = pages["summary"].partition("?")
    browser.open(f"{page}/artifacts/figures/scores.png?{query}")
    browser.see("figures", "tables", "report.html")
    width = "Math.max(0, ...[...document.images].map(image => image.naturalWidth))"
    assert wait_for(lambda: browser.evaluate(width) > 600, 30), browser.text()
