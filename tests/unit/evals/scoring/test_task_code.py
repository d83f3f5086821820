"""A user's task YAMLs run no code unless that is allowed; a mistake in them is one line."""

import pytest

from evals.scoring import hub
from evals.scoring.harness import evaluate_model
from evals.scoring.task_names import expand_tasks
from evals.scoring.user_tasks import UserTasks
from moc.config.load import load_study, save_study
from moc.errors import ConfigError
from tests.support.fake_language import ByteTokenizer, Chain
from tests.support.fake_tasks import ANSWER, CHOICE, write_lines, write_task
from tests.support.helpers_training import tiny_study, write_tiny_study


def run(folder, name, *, allow_code=False, model=None):
    tasks = UserTasks([folder], allow_code=allow_code)
    scores, samples = evaluate_model(
        model or Chain(b": one"), ByteTokenizer(), tasks=[name], task_dir=folder,
        context_length=96, batch_size=4, user_tasks=tasks,
    )  # fmt: skip
    return scores[name], samples[name]


def one_line(folder, name, **settings):
    with pytest.raises(ConfigError) as caught:
        run(folder, name, **settings)
    message = str(caught.value)
    assert "\n" not in message
    return message


CODE = """
from pathlib import Path
Path(__file__).with_name("ran").touch()
def last_first(dataset): return dataset.select(range(len(dataset))[::-1])
def ask(doc): return f"What {doc['question']}\\nA:"
def half(values): return 0.5
class Task: pass
"""

# Where lm-eval takes a function.
PLACES = {
    "process_docs": "process_docs: !function code.last_first\n",
    "doc_to_text": "doc_to_text: !function code.ask\n",
    "metric_list": "metric_list: [{metric: acc, aggregation: !function code.half}]\n",
    "filter_list.filter.filter_fn": (
        "filter_list: [{name: f, filter: [{function: custom, filter_fn: !function code.ask}]}]\n"
    ),
    "fewshot_config.samples": "fewshot_config: {samples: !function code.ask}\n",
    "metadata.anything": "metadata: {anything: {at: [all, !function code.ask]}}\n",
}


@pytest.mark.parametrize("setting", PLACES)
def test_a_function_is_refused_with_file_and_setting_and_not_imported(tmp_path, setting):
    path = write_task(tmp_path, "quiz", more=PLACES[setting])
    (tmp_path / "code.py").write_text(CODE)
    said = one_line(tmp_path, "quiz")
    first = setting.partition(".")[0]
    assert said.startswith(f"{path}: {first}") and "!function code." in said
    assert said.endswith("set evals.allow_task_code: true")
    assert not (tmp_path / "ran").exists()


def test_nor_is_one_that_is_included_or_laid_over_a_task_by_a_group(tmp_path):
    inner = write_task(tmp_path / "inner", "base", more=PLACES["doc_to_text"])
    (tmp_path / "inner/code.py").write_text(CODE)
    (tmp_path / "mine.yaml").write_text("include: inner/base.yaml\ntask: mine\n")
    assert one_line(tmp_path, "mine").startswith(f"{inner}: doc_to_text")
    write_task(tmp_path, "plain")
    for name, member in (
        ("over", "{task: plain, doc_to_text: !function inner.code.ask}"),
        ("within", "{group: more, task: [{task: plain, doc_to_text: !function inner.code.ask}]}"),
        ("all", "plain"),
    ):
        below = "doc_to_text: !function inner.code.ask\n" if name == "all" else ""
        (tmp_path / f"{name}.yaml").write_text(f"group: {name}\ntask: [{member}]\n{below}")
        said = one_line(tmp_path, name)
        assert said.startswith(f"{tmp_path / name}.yaml: ") and "doc_to_text" in said
    assert not list(tmp_path.rglob("ran"))
    assert run(tmp_path, "plain")[0]["value"] == 0.2  # its neighbours do not matter to it


def test_a_function_is_run_when_that_is_allowed(tmp_path):
    write_task(tmp_path, "quiz", more=PLACES["process_docs"] + PLACES["doc_to_text"])
    (tmp_path / "code.py").write_text(CODE)
    chain = Chain(b": one")
    score, samples = run(tmp_path, "quiz", allow_code=True, model=chain)
    assert [sample["target"] for sample in samples] == ["three", "two", "two", "one", "three"]
    assert score["value"] == 0.2 and (tmp_path / "ran").exists()
    assert all(bytes(ids).startswith(b"What which is ") for ids in chain.shown if len(ids) > 9)


ESCAPE = "{{ cycler.__init__.__globals__.os.mkdir('ran') }}"


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ("class: !function code.Task\n", "class is not read here"),
        ("custom_dataset: !function code.ask\n", "custom_dataset is not read here"),
        ("use_prompt: code.yaml:x\n", "use_prompt is not read here"),
        ("unsafe_code: true\n", "unsafe_code is not read here"),
        ("metric_list: [{metric: ./code.py}]\n", "metric './code.py' is none of lm-eval's own"),
        ("metric_list: [{metric: acc, hf_evaluate: true}]\n", "metric 'acc' is none of lm-eval's"),
        (f'doc_to_text: "{ESCAPE}"\n', "SecurityError"),
        (f'doc_to_target: "{ESCAPE}"\n', "SecurityError"),
        ("process_docs: code.last_first\n", "'str' object is not callable"),
        ("whatever: !!python/object/apply:os.mkdir [ran]\n", "not readable as YAML"),
    ],
)
def test_no_other_way_leads_to_code(tmp_path, monkeypatch, more, said):
    monkeypatch.chdir(tmp_path)
    write_task(tmp_path, "quiz", more=more)
    (tmp_path / "code.py").write_text(CODE)
    assert said in one_line(tmp_path, "quiz")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ("dataset_path: allenai/ai2_arc\n", "no local data: dataset_path is 'allenai/ai2_arc'"),
        ("dataset_kwargs: {data_files: {test: gone.jsonl}}\n", "gone.jsonl: no such file"),
        ("dataset_kwargs: {data_files: {test: 'https://x.org/a.jsonl'}}\n", "no such file"),
        ("dataset_kwargs: {data_files: {test: empty.jsonl}}\n", "empty.jsonl: holds no items"),
        ("dataset_kwargs: {data_files: {test: broken.jsonl}}\n", "broken.jsonl: cannot be read"),
        ("dataset_kwargs: {data_files: {test: quiz.jsonl}, field: x}\n", "dataset_kwargs.field is"),
        ("dataset_path: folder\n", "folder has no test.json"),
        ("dataset_path: pandas\n", "no local data: dataset_path is 'pandas'"),
        ("doc_to_text: '{{qestion}}'\n", "'qestion' is undefined"),
        ("doc_to_target: answer\ndoc_to_choice: [one, two]\n", "item 0 has the answer 'three'"),
        ("doc_to_txt: question\n", "'doc_to_txt'"),
        ("test_split: validation\n", "task quiz: KeyError: 'validation'"),
        ("include: gone.yaml\n", "include 'gone.yaml': no such file beside it"),
        ("include: quiz.yaml\n", "'include' goes round in a circle"),
        ("tag: quiz\n", "'quiz' is also in"),
        ("group: x\n", "a group lists its tasks under 'task'"),
        ("a: [", "not readable as YAML"),
    ],
)
def test_a_mistake_in_a_task_is_one_line_that_names_its_file(tmp_path, more, said):
    (tmp_path / "folder").mkdir()
    (tmp_path / "empty.jsonl").write_text("")
    (tmp_path / "broken.jsonl").write_text('{"a": 1}\n{"a"\n')
    path = write_task(tmp_path, "quiz", more=more)
    message = one_line(tmp_path, "quiz")
    assert said in message and str(path.parent) in message


def test_a_mistake_in_the_last_item_is_found_as_well(tmp_path):
    write_task(tmp_path, "quiz", ANSWER)
    rows = [{"question": "a", "answer": "b"}] * 3 + [{"question": "a", "answer": None}]
    write_lines(tmp_path / "quiz.jsonl", rows)
    (tmp_path / "quiz.yaml").write_text(
        (tmp_path / "quiz.yaml").read_text() + "doc_to_target: '{{answer.strip()}}'\n"
    )
    assert "no attribute 'strip'" in one_line(tmp_path, "quiz")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("facts_choice", "'facts_choice' is a task or suite of ours"),
        ("facts_answer.people", "'facts_answer.people' is a task or suite of ours"),
        ("paper", "'paper' is a task or suite of ours"),
        ("study", "'study' cannot name a task here"),
        ("quiz.full", "'quiz.full' cannot name a task here"),
        ("a/b", "'a/b' cannot name a task here"),
    ],
)
def test_names_that_are_taken_are_refused(tmp_path, name, said):
    (tmp_path / "quiz.yaml").write_text(CHOICE.format(name=name, data="x"))
    with pytest.raises(ConfigError, match=r"quiz\.yaml: ") as caught:
        UserTasks([tmp_path])
    assert said in str(caught.value)


def test_two_tasks_of_one_name_and_one_of_lm_evals_are_refused(tmp_path, monkeypatch):
    write_task(tmp_path / "a", "boolq")
    tasks = UserTasks([tmp_path / "a"])
    monkeypatch.setattr(hub, "_index", lambda folder: {"hellaswag": None})
    with pytest.raises(ConfigError, match=r"a/boolq\.yaml: lm-eval has a task 'boolq' too"):
        expand_tasks(["boolq"], user_tasks=tasks)
    write_task(tmp_path / "b", "boolq")
    with pytest.raises(ConfigError, match=r"b/boolq\.yaml: 'boolq' is also in .*a/boolq\.yaml"):
        UserTasks([tmp_path / "a", tmp_path / "b"])


def test_a_users_names_are_known_and_the_nearest_is_offered(tmp_path, monkeypatch):
    monkeypatch.setattr(hub, "_index", lambda folder: {"hellaswag": None})
    write_task(tmp_path, "my_quiz", more="tag: [mine]\n")
    tasks = UserTasks([tmp_path])
    assert expand_tasks(["mine", "my_quiz"], user_tasks=tasks) == ["mine", "my_quiz"]
    with pytest.raises(ConfigError, match="no task 'my_quizz'; did you mean 'my_quiz'"):
        expand_tasks(["my_quizz"], user_tasks=tasks)
    (tmp_path / "group.yaml").write_text("group: all_mine\ntask: [my_quizz]\n")
    with pytest.raises(ConfigError, match=r"group 'all_mine': no task 'my_quizz' .* 'my_quiz'"):
        UserTasks([tmp_path]).load("all_mine")
    (tmp_path / "group.yaml").write_text("group: all_mine\ntask: [all_mine]\n")
    with pytest.raises(ConfigError, match="group 'all_mine' contains itself"):
        UserTasks([tmp_path]).load("all_mine")


def test_a_folder_that_is_missing_is_said(tmp_path):
    with pytest.raises(ConfigError, match=r"evals\.task_paths: .*gone is no folder"):
        UserTasks([tmp_path / "gone"])


def test_a_saved_study_finds_the_folder_from_anywhere(tmp_path, monkeypatch):
    """A path is relative to where the command is given, like those of data."""
    write_tiny_study(tmp_path)
    monkeypatch.chdir(tmp_path)
    study = tiny_study(tmp_path, "evals.task_paths=[tasks]")
    assert study.evals.task_paths == [str(tmp_path / "tasks")]
    save_study(study, tmp_path / "saved.yaml")
    monkeypatch.chdir("/")
    assert load_study(tmp_path / "saved.yaml") == study
