"""Tasks of a run on Ray: each model is asked once, whatever happens between."""

import json
import shutil

import pytest
from typer.testing import CliRunner

from ctd_core.config.evaluation import Tasks
from ctd_core.errors import CtdError, UsageError
from pipelines.artifacts.report import AFTER, BEFORE, TEACHER, Report, tasks_table
from pipelines.cli import app
from pipelines.stages.asked_models import NamedModel
from pipelines.stages.asked_tasks import HarnessTask
from pipelines.stages.tasks import _Actor, _Question
from tests.pipelines.test_run import config, ctd, inputs, written  # noqa: F401
from tests.support.models import llama
from tests.support.task_files import write_tasks
from tests.support.tokenizers import TEXTS, train_tokenizer

FIGURES = {"next_number": {"acc"}, "number_written": {"exact_match"}}


@pytest.fixture
def run_file(config, tmp_path, monkeypatch):  # noqa: F811
    """A run with two tasks, and the home of what is cached."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "datasets"))
    tasks = {"names": list(FIGURES), "include_path": str(write_tasks(tmp_path / "tasks"))}
    return written(config, tmp_path, evaluate=config["evaluate"] | {"tasks": tasks})


def report_of(tmp_path):
    return Report.model_validate_json((tmp_path / "runs" / "tiny" / "report.json").read_text())


def asked_in(tmp_path):
    return {path.name: path.stat().st_mtime_ns for path in (tmp_path / "runs" / "tiny" / "tasks").iterdir()}


def test_teacher_and_student_are_asked_once_and_shown_in_report_card_and_table(run_file, tmp_path):
    shown = ctd("run", "--config", run_file)
    report = report_of(tmp_path)
    assert [(found.task, found.model) for found in report.tasks] == [
        (task, model) for task in FIGURES for model in (TEACHER, BEFORE, AFTER)
    ]
    for found in report.tasks:
        assert set(found.figures) == FIGURES[found.task]
        assert found.questions == 12
    assert "next_number" in shown
    assert "| next_number | acc | 12 |" in (tmp_path / "runs" / "tiny" / "model" / "README.md").read_text()
    asked = asked_in(tmp_path)
    assert len(asked) == 6
    lost = sorted(asked)[0]  # as where a command was killed before
    (tmp_path / "runs" / "tiny" / "tasks" / lost).unlink()
    shown = ctd("evaluate", "--config", run_file, "--tasks", "next_number,number_written")
    assert "± " in shown
    again = asked_in(tmp_path)
    assert {name for name in again if again[name] != asked[name]} == {lost}
    assert report_of(tmp_path).tasks == report.tasks
    ctd("evaluate", "--config", run_file, "--tasks", "next_number", "--limit", "4")
    assert [(found.task, found.questions) for found in report_of(tmp_path).tasks] == [
        *[("number_written", 12)] * 3, *[("next_number", 4)] * 3
    ]  # fmt: skip
    card = (tmp_path / "runs" / "tiny" / "model" / "README.md").read_text()
    assert "| next_number | acc | 4 |" in card


def test_models_are_asked_without_a_run(inputs, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.setenv("HOME", str(tmp_path))
    tasks = str(write_tasks(tmp_path / "tasks"))
    model = str(inputs / "teacher")
    shown = CliRunner().invoke(
        app, ["evaluate", "--model", model, "--tasks", "next_number", "--include-path", tasks, "--limit", "6"]
    )
    assert shown.exit_code == 0, shown.output
    assert "next_number" in shown.output
    (kept,) = (tmp_path / ".cache" / "ctd" / "tasks").iterdir()
    assert json.loads(kept.read_text())["questions"] == 6
    llama(600, seed=1).save_pretrained(tmp_path / "other")
    train_tokenizer(TEXTS, 600).save_pretrained(tmp_path / "other")
    shown = CliRunner().invoke(
        app,
        [
            *["evaluate", "--model", model, "--model", str(tmp_path / "other"), "--ensemble", "logprobs"],
            *["--tasks", "next_number", "--include-path", tasks, "--limit", "6"],
        ],
    )
    assert shown.exit_code == 0, shown.output
    assert "ensemble of 2, logprobs" in shown.output
    assert len(list((tmp_path / ".cache" / "ctd" / "tasks").iterdir())) == 3  # the first was not asked again


def test_what_cannot_be_asked_is_refused_before_anything_is_trained(run_file, tmp_path):
    with pytest.raises(UsageError, match="has no task 'next_numbr'"):
        ctd("run", "--config", run_file, "--set", "evaluate.tasks.names=[next_numbr]")
    assert not (tmp_path / "runs").exists()
    with pytest.raises(UsageError, match="--limit and --include-path belong to --tasks"):
        ctd("evaluate", "--config", run_file, "--limit", "4")
    with pytest.raises(UsageError, match="--ensemble belongs to several --model"):
        ctd("evaluate", "--model", "x", "--ensemble", "logprobs", "--tasks", "next_number")
    with pytest.raises(UsageError, match="--dry-run belongs to --config"):
        ctd("evaluate", "--model", "x", "--tasks", "next_number", "--dry-run")
    with pytest.raises(UsageError, match="--model is asked tasks and problems"):
        ctd("evaluate", "--model", "x", "--tasks", "next_number", "--set", "evaluate.own_texts.texts=4")
    with pytest.raises(UsageError, match="give --model with --tasks"):
        ctd("evaluate", "--config", run_file, "--model", "x", "--tasks", "next_number")
    with pytest.raises(UsageError, match="here are options of evaluate alone"):
        ctd("evaluate", "--model", "x", "--tasks", "next_number", "--set", "train.steps=3")


def test_an_error_on_an_actor_comes_out_as_itself(inputs, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.setenv("HOME", str(tmp_path))
    tasks = write_tasks(tmp_path / "tasks")
    arguments = ["evaluate", "--model", inputs / "teacher", "--tasks", "next_number", "--include-path", tasks]
    with pytest.raises(UsageError, match=r"has no chat template\. Ask without"):
        ctd(*arguments, "--set", "evaluate.tasks.chat_template=true")
    (tasks / "questions.jsonl").unlink()
    with pytest.raises(CtdError, match=r"the task next_number cannot be read: FileNotFoundError"):
        ctd(*arguments)


def test_a_model_that_cannot_be_asked_lets_the_others_go_on(inputs, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.setenv("HOME", str(tmp_path))
    tasks = write_tasks(tmp_path / "tasks")
    shutil.copytree(inputs / "teacher", tmp_path / "chat")
    (tmp_path / "chat" / "chat_template.jinja").write_text("{% for turn in messages %}{{ turn.content }}{% endfor %}")
    models = ["--model", inputs / "teacher", "--model", tmp_path / "chat"]
    with pytest.raises(UsageError, match=r"teacher.* has no chat template\. Ask without"):
        ctd("evaluate", *models, "--tasks", "next_number", "--include-path", tasks,
            "--set", "evaluate.tasks.chat_template=true")  # fmt: skip
    (kept,) = (tmp_path / ".cache" / "ctd" / "tasks").iterdir()
    assert json.loads(kept.read_text())["model"] == str(tmp_path / "chat")


@pytest.mark.parametrize("named", ["elsewhere/questions.jsonl", "tasks/questions.jsonl", "two words/q*.jsonl"])
@pytest.mark.parametrize("is_included", [False, True])
def test_figures_belong_to_the_questions_of_a_task_wherever_they_lie(tmp_path, monkeypatch, named, is_included):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "datasets"))
    tasks = write_tasks(tmp_path / "tasks")
    file = (tmp_path / named).with_name("questions.jsonl")
    file.parent.mkdir(exist_ok=True)
    (tasks / "questions.jsonl").rename(file)
    task = (tasks / "next_number.yaml").read_text().replace(str(tasks / "questions.jsonl"), str(tmp_path / named))
    options = tmp_path / "common" if is_included else tasks / "next_number.yaml"
    (tasks / "next_number.yaml").write_text("include: ../common\n")
    options.write_text(task)
    asked = HarnessTask("next_number", Tasks(names=["next_number"], include_path=str(tasks)))
    before = asked.stamp()
    assert before == asked.stamp()
    lines = file.read_text().splitlines(keepends=True)
    file.write_text("".join(lines[:-1]))
    fewer = asked.stamp()
    assert fewer != before
    options.write_text(task + "description: Count.\n")
    assert asked.stamp() not in (before, fewer)


def test_no_figures_are_kept_of_a_model_that_changes_while_it_is_asked(inputs, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.setenv("HOME", str(tmp_path))
    tasks = write_tasks(tmp_path / "tasks")
    shutil.copytree(inputs / "teacher", tmp_path / "model")
    stamps = iter(["before", "after"])
    source = NamedModel("changing", str(tmp_path / "model"))
    monkeypatch.setattr(NamedModel, "stamp", lambda self: next(stamps))
    options = Tasks(names=["next_number"], include_path=str(tasks), limit=2)
    task = HarnessTask("next_number", options)
    question = _Question(task, source, task.stamp(), source.stamp(), tmp_path / "figures.json")
    with pytest.raises(CtdError, match="changing has changed while it was asked"):
        _Actor(options, None).ask(question)


def test_a_table_of_tasks_shows_shares_of_the_teacher():
    from ctd_core.evaluation.figures import TaskFigures

    found = [
        TaskFigures(
            task="t", model=model, figures={"acc": value}, errors={"acc": 0.05}, questions=100, cut_questions=cut
        )
        for model, value, cut in ((TEACHER, 0.5, 0), (BEFORE, 0.25, 0), (AFTER, 0.4, 3))
    ]
    table = tasks_table(found)
    assert table.columns == ["task", "figure", "questions", TEACHER, BEFORE, AFTER]
    assert table.rows == [["t", "acc", "100", "0.500 ± 0.050", "0.250 ± 0.050 (50%)", "0.400 ± 0.050 (80%)"]]
    assert table.caption == "t: 3 questions are longer than student after reads; their beginnings were left out"
    assert tasks_table(found[:1]).rows == [["t", "acc", "100", "0.500 ± 0.050"]]
