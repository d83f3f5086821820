"""What a study takes from the environment, and what its URIs hold, is nowhere but there."""

from __future__ import annotations

import gzip
import logging
import sqlite3
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from moc.config.identity import config_hash, differences
from moc.config.load import load_study, save_study
from moc.config.secrets import as_written, hide_environment, hide_in_output, public, public_uris
from moc.errors import ConfigError
from tests.conftest import Run
from tests.support.helpers_training import TINY_STUDY, write_tiny_study
from tests.support.trackers import empty_database

SECRETS = {  # as a user's shell has them
    "MOC_DATA_ROOT": "planted-data-root",
    "MOC_WORDS": "planted-description",
    "MOC_HUB_SET": "planted-org/planted-set",
    "MOC_TOKENIZER": "planted-tokenizer",
    "MOC_MIRROR": "planted-mirror",
    "MOC_TASKS": "planted-tasks",
    "MOC_TRACKING": "planted-tracking",
}
IN_URI = ("planted-password", "planted-token")
PLANTED = "planted"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A study with secrets wherever it can have them, and what they lead to."""
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write_planted(folder: Path) -> Path:
    """A study that reads what its secrets name: data, a tokenizer, a mirror, tasks, a database."""
    place = folder / "outside"  # of what a run writes
    for name in ("MOC_DATA_ROOT", "MOC_MIRROR", "MOC_TASKS", "MOC_TOKENIZER"):
        (place / SECRETS[name]).mkdir(parents=True)
    data = place / SECRETS["MOC_DATA_ROOT"]
    (data / "words.txt").write_text("\n\n".join(f"some words about {i}" for i in range(4000)))
    rows = [f'{{"text": "good row {i}"}}' for i in range(200)] + ["no row"]  # one is skipped
    (data / "rows.jsonl").write_text("\n".join(rows))
    (place / SECRETS["MOC_TRACKING"]).mkdir()
    (place / SECRETS["MOC_TRACKING"] / "mlflow.db").write_bytes(empty_database())
    task = "task: mine\ndataset_path: json\ndataset_kwargs: {data_files: {test: items.jsonl}}\n"
    task += "test_split: test\noutput_type: multiple_choice\ndoc_to_text: '{{q}}'\n"
    task += "doc_to_choice: ['yes', 'no']\ndoc_to_target: 0\nmetric_list: [{metric: acc}]\n"
    (place / SECRETS["MOC_TASKS"] / "mine.yaml").write_text(task)
    (place / SECRETS["MOC_TASKS"] / "items.jsonl").write_text('{"q": "is it?"}\n{"q": "so?"}\n')
    root = f"{place}/${{oc.env:MOC_DATA_ROOT}}"
    sources = (
        f"  words: {{kind: text, path: '{root}/words.txt'}}\n"
        f"  rows: {{kind: text, path: '{root}/*.jsonl'}}\n"
        "  hub: {kind: text, name: '${oc.env:MOC_HUB_SET}'}\n"
    )
    evals = (
        f"  hub_mirror: {place}/${{oc.env:MOC_MIRROR}}\n"
        f"  task_paths: ['{place}/${{oc.env:MOC_TASKS}}']\n"
    )
    text = TINY_STUDY.format(folder=folder)
    for old, new in {
        "tasks: [facts_choice]": "tasks: [facts_choice, mine]",
        "evals:\n": f"evals:\n{evals}",
        "data:\n": f"data:\n{sources}",
        "mixture: {people: 1.0}": "mixture: {people: 1.0, words: 1.0, rows: 1.0}",
        "mixture: {skills: 3.0, people: 1.0}": "mixture: {skills: 3.0}",
    }.items():
        text = text.replace(old, new, 1)
    database = f"sqlite:///{place}/${{oc.env:MOC_TRACKING}}/mlflow.db"
    text += f"tracking: {{uri: '{database}'}}\ndescription: 'for ${{oc.env:MOC_WORDS}}'\n"
    study = folder / "secret.yaml"
    study.write_text(text)
    return study


def holds(path: Path) -> list[str]:
    """The planted words that the bytes of ``path`` hold."""
    content = path.read_bytes()
    if content[:2] == b"\x1f\x8b":
        content = gzip.decompress(content)
    return [word for word in (*SECRETS.values(), *IN_URI) if word.encode() in content]


def check_nothing_planted(folder: Path, printed: str) -> None:
    found = {path: holds(path) for path in (folder / "runs").rglob("*") if path.is_file()}
    found |= {path: holds(path) for path in (folder / "cache").rglob("*") if path.is_file()}
    database = folder / "outside" / SECRETS["MOC_TRACKING"] / "mlflow.db"
    found[database] = holds(database)
    assert {path: words for path, words in found.items() if words} == {}
    names = [path for path in (folder / "runs").rglob("*") if PLANTED in str(path)]
    assert not names
    assert [line for line in printed.splitlines() if PLANTED in line] == []


def test_no_secret_is_written_printed_or_sent(folder: Path, in_child: Run) -> None:
    """secrets in a study. Kept: what ${oc.env:...} takes from the environment stays there: no file,
    no line on the terminal and nothing in MLflow holds it, through plan, run, kill, resume, report,
    eval, generate and compare."""
    study = write_planted(folder)
    run = folder / "runs/tiny"
    seed = str(run / "arms/moc/seed-0")
    printed = []

    def moc(*argv: str, code: int = 0, stop: dict[str, object] | None = None) -> str:
        log = folder / "log"
        found = in_child("tracked_command", log=log, env=[SECRETS], argv=list(argv), stop=stop)
        printed.append(log.read_text())
        assert found == [code] and "Traceback" not in printed[-1], printed[-1]
        return printed[-1]

    moc("plan", str(study))
    kill = {"at": "after step", "phase": "skills", "step": 4, "signal": 9}
    moc("run", str(study), "--arms", "moc", code=-9, stop=kill)
    assert "skipped 1 of" in moc("run", str(study), "--arms", "moc") + printed[-2]
    moc("report", str(run))
    moc("eval", seed)
    moc("generate", f"{seed}/boundaries/2-skills", "--prompt", "a", "--max-new-tokens", "2")
    moc("compare", str(run))
    moc("run", str(study), "phases.facts.context_length=16", code=2)
    root = "${oc.env:MOC_DATA_ROOT}"
    assert f"{root}/no" in moc("run", str(study), f"data.words.path={root}/no", "name=b", code=2)
    tokenizer = f"{folder}/outside/${{oc.env:MOC_TOKENIZER}}"
    said = moc("run", str(study), f"tokenizer.path={tokenizer}", "name=c", code=2)
    assert f"'{tokenizer}' cannot be loaded" in said
    uri = "postgresql://me:planted-password@127.0.0.1:9/db?sslpassword=planted-token"
    said = moc("run", str(study), f"tracking.uri={uri}", "tokenizer.vocab_size=9999", code=2)
    check_nothing_planted(folder, "\n".join(printed))
    assert "for ${oc.env:MOC_WORDS}" in (run / "report/report.html").read_text()
    kept = (run / "study.yaml").read_text()
    for name in ("MOC_DATA_ROOT", "MOC_WORDS", "MOC_HUB_SET", "MOC_MIRROR", "MOC_TASKS"):
        assert f"${{oc.env:{name}}}" in kept
    found = in_mlflow(folder)
    assert found["data.words.path"].endswith("/outside/${oc.env:MOC_DATA_ROOT}/words.txt")
    assert found["evals.hub_mirror"].endswith("/outside/${oc.env:MOC_MIRROR}")


def in_mlflow(folder: Path) -> dict[str, str]:
    file = folder / "outside" / SECRETS["MOC_TRACKING"] / "mlflow.db"
    with closing(sqlite3.connect(file)) as database:
        return dict(database.execute("SELECT key, value FROM params").fetchall())


def test_a_record_loads_to_the_same_study_and_without_the_environment(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """secrets in a study. Kept: study.yaml has interpolations as written, and loads to the same
    study while the environment is the same; without it, only what they stand for is missing."""
    path = write_tiny_study(folder)
    more = "tokenizer: {{path: 'x/${{oc.env:MOC_TOKENIZER}}'}}\ndata: {{t: {{kind: text, "
    more += "path: '${{oc.env:MOC_DATA_ROOT}}/*.txt'}}, h: {{kind: text, name: "
    more += "'${{oc.env:MOC_HUB_SET}}'}}}}\nevals: {{task_paths: ['${{oc.env:MOC_TASKS}}/t']}}\n"
    more += (
        "description: '${{oc.env:MOC_WORDS}}'\ntrainer: {{log_every_steps: '${{oc.env:STEPS}}'}}"
    )
    monkeypatch.setenv("STEPS", "7")
    (folder / "more.yaml").write_text("extends: tiny.yaml\n" + more.format())
    study = load_study(folder / "more.yaml")
    assert study.data["t"].path == "planted-data-root/*.txt"
    assert study.evals.task_paths == [str(folder / "planted-tasks/t")]
    record = folder / "study.yaml"
    save_study(study, record)
    assert PLANTED not in record.read_text()
    assert "log_every_steps: 7" in record.read_text(), "numbers are kept: tables follow from them"
    assert load_study(record) == study
    assert config_hash(load_study(record)) == config_hash(study)
    for name in SECRETS:
        monkeypatch.delenv(name)
    assert load_study(record, stored=True).data["t"].path == "${oc.env:MOC_DATA_ROOT}/*.txt"
    with pytest.raises(ConfigError, match=r"'MOC_\w+' not found"):
        load_study(record)
    assert load_study(path).tokenizer.path is None


def test_differences_show_settings_as_they_are_written(folder: Path) -> None:
    write_tiny_study(folder)
    (folder / "a.yaml").write_text(
        "extends: tiny.yaml\ntokenizer: {path: '${oc.env:MOC_TOKENIZER}'}\n"
        "description: see https://me:planted-password@host/page?token=planted-token\n"
    )
    before, after = load_study(folder / "tiny.yaml"), load_study(folder / "a.yaml")
    assert differences(before.tokenizer, after.tokenizer, "tokenizer") == [
        "tokenizer.path: None, now ${oc.env:MOC_TOKENIZER}"
    ]
    save_study(after, folder / "kept.yaml")
    assert differences(load_study(folder / "kept.yaml"), after) == []
    assert "see https://host/page\n" in (folder / "kept.yaml").read_text()


def test_a_study_without_secrets_is_recorded_as_ever(folder: Path) -> None:
    study = load_study(write_tiny_study(folder))
    assert as_written(study) == study
    assert config_hash(as_written(study)) == config_hash(study)
    save_study(study, folder / "kept.yaml")
    assert load_study(folder / "kept.yaml") == study


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("postgresql://me:pass@host/db", "postgresql://host/db"),
        ("postgresql+psycopg2://me:p/s?s@x y@host:5/db?sslpassword=s", "postgresql+psycopg2://host:5/db"),
        ("http://me:p/a@h:5000/x?token=1#f", "http://h:5000/x"),
        ("http://host:5000/a@b", "http://host:5000/a@b"),
        ("https://token@host/", "https://host/"),
        ("sqlite:////tmp/a@b/mlflow.db", "sqlite:////tmp/a@b/mlflow.db"),
        ("see (http://me:p@h/x?token=1), please", "see (http://h/x), please"),
        ("http://me:${oc.env:PW}@h/?t=${oc.env:T}", "http://me:${oc.env:PW}@h/?t=${oc.env:T}"),
        ("http://me:${oc.env:PW}x@h/?t=${oc.env:T}&u=1", "http://h/"),
    ],
)  # fmt: skip
def test_uris_are_shown_without_secrets(uri: str, shown: str) -> None:
    """secrets in a study. Kept: URIs are kept and shown without user name, password and query."""
    assert public_uris(uri) == shown


def test_errors_logs_and_warnings_say_nothing(
    folder: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    study = load_study(
        write_tiny_study(folder),
        ["tracking.uri=http://me:planted-password@host/?token=planted-token"],
    )
    assert study.tracking.uri and "planted-password" in study.tracking.uri
    hide_environment({"a": ["${oc.env:MOC_HUB_SET}/x"]})
    said = "no planted-org/planted-set with url: /?token=planted-token, planted-password"
    assert public(said) == "no ${oc.env:MOC_HUB_SET} with url: /?token=***, ***"
    factory = logging.getLogRecordFactory()
    try:
        hide_in_output()
        logging.getLogger("some.library").warning("cannot reach %s", said)
        logging.getLogger("some.library").warning("100% of it", 1)  # its own mistake
    finally:
        logging.setLogRecordFactory(factory)
    assert PLANTED not in caplog.text.replace("some.library", "")


def test_a_literal_password_is_used_and_not_kept(folder: Path) -> None:
    uri = "postgresql://me:planted-password@host/db?sslpassword=planted-token"
    study = load_study(write_tiny_study(folder), [f"tracking.uri={uri}"])
    assert study.tracking.uri == uri
    save_study(replace(study), folder / "kept.yaml")
    assert "uri: postgresql://host/db\n" in (folder / "kept.yaml").read_text() + "\n"
