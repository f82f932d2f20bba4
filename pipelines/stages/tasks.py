"""Tasks with answers: each model is an actor on Ray, which is asked one task after another."""

import logging
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import ray
import torch
from pydantic import ValidationError
from ray.exceptions import RayError
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from ctd_core.config.base import fingerprint
from ctd_core.config.evaluation import Evaluate, Tasks
from ctd_core.config.models import Average
from ctd_core.errors import CtdError
from ctd_core.evaluation.figures import TaskFigures
from ctd_core.storage.atomic import write_atomic
from pipelines.artifacts.background import repeating
from pipelines.artifacts.remote_copy import RunFiles
from pipelines.artifacts.run_plan import RunPlan, user_cache
from pipelines.cluster.connection import actor_on_driver, connect, reraised_errors
from pipelines.cluster.tally import Handle, Tally, reporting
from pipelines.display.progress import progress
from pipelines.stages.asked_models import (
    AskedModel,
    NamedEnsemble,
    NamedModel,
    student_after,
    student_before,
    teacher_of,
)
from pipelines.stages.asked_tasks import AskedTask, tasks_in

logger = logging.getLogger(__name__)

RETRIES = 3  # of a task whose machine is lost


def ask_models_of_run(plan: RunPlan, checkpoint: str) -> list[TaskFigures]:
    """Ask teacher and student, before training and at a checkpoint, what the run asks."""
    models: list[AskedModel] = [teacher_of(plan), student_before(plan), student_after(plan, checkpoint)]
    return ask_models(models, plan.config.evaluate, plan.files)


def ask_named_models(names: Sequence[str], options: Evaluate, average: Average | None) -> list[TaskFigures]:
    """Ask models in directories or of hub ids, and their ensemble by what it averages; figures are kept in the user's
    cache.
    """
    models: list[AskedModel] = [NamedModel(name, name) for name in dict.fromkeys(names)]
    if average is not None:
        models.append(NamedEnsemble(f"ensemble of {len(names)}, {average}", tuple(names), average))
    return ask_models(models, options, RunFiles(user_cache(), None))


def ask_models(models: Sequence[AskedModel], options: Evaluate, files: RunFiles) -> list[TaskFigures]:
    """Ask every model every task, but for those whose figures are there already.

    Args:
        models: whom to ask.
        options: which tasks and problems, and how.
        files: where figures are kept, in a folder tasks.

    Returns:
        The figures, by task and model.

    Raises:
        UsageError: there is no such task, or no harness.
        CtdError: a task fails; it is told, and raised after all others are asked. What is done is kept.
    """
    questions = _questions(models, options, files)
    missing = [question for question in questions if _read(question) is None]
    if missing:
        for task in {question.task.name: question.task for question in missing}.values():
            task.check()  # its errors come before Ray starts
        _ask(missing, options.tasks, files)
    return [figures for question in questions if (figures := _read(question)) is not None]


def ask_here(model: AskedModel, options: Evaluate, files: RunFiles) -> list[TaskFigures]:
    """As `ask_models`, of one model, in this process."""
    loaded, found = None, []
    for question in _questions([model], options, files):
        if (figures := _read(question)) is None:
            loaded = loaded or model.load(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
            figures = question.task.ask(*loaded, model.name, lambda share: None)
            _keep(question, figures, files)
        found.append(figures.model_copy(update={"model": model.name}))
    return found


@dataclass(frozen=True)
class _Question:
    """A task and a model that is asked it, with their stamps; their figures are kept in `file`."""

    task: AskedTask
    model: AskedModel
    task_stamp: str
    model_stamp: str
    file: Path


def _questions(models: Sequence[AskedModel], options: Evaluate, files: RunFiles) -> list[_Question]:
    stamps = [(task, task.stamp()) for task in tasks_in(options)]
    model_stamps = [(model, model.stamp()) for model in models] if stamps else []
    questions = []
    for task, task_stamp in stamps:
        for model, model_stamp in model_stamps:
            name = f"{task.name.replace('/', '-')}-{fingerprint(task_stamp, model_stamp)}.json"
            questions.append(_Question(task, model, task_stamp, model_stamp, files.directory / "tasks" / name))
            files.fetch(questions[-1].file)
    return questions


class _Actor:
    """A model on its device."""

    def __init__(self, options: Tasks, tally: Handle) -> None:
        self._options, self._tally = options, tally
        self._loaded: tuple[PreTrainedModel, PreTrainedTokenizerFast] | None = None

    def ask(self, question: _Question) -> TaskFigures:
        """The figures; raises CtdError where task or model are not what they were when their stamps were made."""
        task, source = question.task, question.model
        if self._loaded is None:
            task.check()
            self._loaded = source.load(torch.device("cuda" if self._options.gpus else "cpu"))
        name = source.name
        figures = task.ask(*self._loaded, name, reporting(self._tally, f"{task.name} {name}"))
        for what, is_changed in (
            (task.name, task.stamp() != question.task_stamp),
            (name, source.stamp() != question.model_stamp),
        ):
            if is_changed:
                raise CtdError(f"{what} has changed while it was asked. No figures are kept; ask again.")
        return figures


def _ask(missing: list[_Question], options: Tasks, files: RunFiles) -> None:
    connect(options.cpus, options.gpus, "evaluate.tasks.cpus and evaluate.tasks.gpus")
    tally = actor_on_driver(Tally)
    resources: dict[str, Any] = {"num_cpus": options.cpus, "num_gpus": options.gpus}
    waiting: dict[Any, _Question] = {}
    actors: dict[str, Any] = {}
    for question in missing:
        name = question.model.name
        if name not in actors:
            made: Any = ray.remote(max_restarts=-1, max_task_retries=RETRIES, **resources)(_Actor)
            actors[name] = made.remote(options, tally)
        waiting[actors[name].ask.remote(question)] = question
    done: list[str] = []
    failed: list[Exception] = []
    with progress("evaluate", len(missing)) as reporter, reraised_errors():

        def show() -> None:
            shares: dict[str, float] = {}
            with suppress(RayError):
                shares = cast("dict[str, float]", ray.get(tally.pieces.remote()))
            shares |= dict.fromkeys(done, 1.0)
            reporter.update(len(done), "tasks asked", sum(shares.values()) / len(missing))

        with repeating(2.0, show):
            while waiting:
                (first,), _ = ray.wait(list(waiting))
                question = waiting.pop(first)
                name = question.model.name
                try:
                    _keep(question, ray.get(first), files)
                    done.append(f"{question.task.name} {name}")
                except RayError as error:
                    failed.append(error)
                    told = f"evaluate: {question.task.name}, {name}: {getattr(error, 'cause', error)}"
                    logger.error(told + (" The others go on." if waiting else ""))
                if not any(name == other.model.name for other in waiting.values()):
                    ray.kill(actors[name])  # another model may need its place
        show()
        if failed:
            raise failed[0]


def _keep(question: _Question, figures: TaskFigures, files: RunFiles) -> None:
    write_atomic(question.file, figures.model_dump_json(indent=1))
    files.upload(question.file)


def _read(question: _Question) -> TaskFigures | None:
    """The figures that are kept, under the name that the model has here."""
    if not question.file.exists():
        return None
    try:
        found = TaskFigures.model_validate_json(question.file.read_text(encoding="utf-8"))
        return found.model_copy(update={"model": question.model.name})
    except (ValidationError, UnicodeDecodeError) as error:
        raise CtdError(f"{question.file}: not figures of a task. Take the file away, and run it again.") from error
