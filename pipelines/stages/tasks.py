"""Tasks with answers: each model is an actor on Ray, which is asked one task after another."""

from collections.abc import Sequence
from contextlib import suppress
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

RETRIES = 3  # of a task whose machine is lost


def ask_models_of_run(plan: RunPlan) -> list[TaskFigures]:
    """Ask teacher and student, before training and at its latest checkpoint, what the run asks."""
    models: list[AskedModel] = [teacher_of(plan), student_before(plan), student_after(plan)]
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
        CtdError: a task fails. What is done is kept.
    """
    tasks = tasks_in(options)
    kept = _kept(models, tasks, files)
    missing = [(task, model) for task in tasks for model in models if _read(kept[task.name, model.name]) is None]
    if missing:
        for task in tasks:
            task.check()  # its errors come before Ray starts
        _ask(missing, options.tasks, kept, files)
    found = [(model.name, _read(kept[task.name, model.name])) for task in tasks for model in models]
    return [figures.model_copy(update={"model": name}) for name, figures in found if figures is not None]


def ask_here(model: AskedModel, options: Evaluate, files: RunFiles) -> list[TaskFigures]:
    """As `ask_models`, of one model, in this process."""
    tasks = tasks_in(options)
    kept, loaded = _kept([model], tasks, files), None
    found = []
    for task in tasks:
        path = kept[task.name, model.name]
        if (figures := _read(path)) is None:
            loaded = loaded or model.load()
            figures = task.ask(*loaded, model.name, lambda share: None)
            write_atomic(path, figures.model_dump_json(indent=1))
            files.upload(path)
        found.append(figures.model_copy(update={"model": model.name}))
    return found


Kept = dict[tuple[str, str], Path]  # where the figures of a task and a model are


def _kept(models: Sequence[AskedModel], tasks: Sequence[AskedTask], files: RunFiles) -> Kept:
    kept: Kept = {}
    task_stamps = {task.name: task.stamp() for task in tasks}
    for model in models:
        stamp = model.stamp() if tasks else ""
        for task in tasks:
            name = f"{task.name.replace('/', '-')}-{fingerprint(task_stamps[task.name], stamp)}.json"
            kept[task.name, model.name] = files.directory / "tasks" / name
            files.fetch(kept[task.name, model.name])
    return kept


class _Actor:
    """A model on its device."""

    def __init__(self, source: AskedModel, options: Tasks, tally: Handle) -> None:
        self._source, self._options, self._tally = source, options, tally
        self._loaded: tuple[PreTrainedModel, PreTrainedTokenizerFast] | None = None

    def ask(self, task: AskedTask) -> TaskFigures:
        if self._loaded is None:  # not before: an error of __init__ would not come out as itself
            task.check()
            model, tokenizer = self._source.load()
            self._loaded = model.to(torch.device("cuda" if self._options.gpus else "cpu")), tokenizer
        name = self._source.name
        return task.ask(*self._loaded, name, reporting(self._tally, f"{task.name} {name}"))


def _ask(missing: list[tuple[AskedTask, AskedModel]], options: Tasks, kept: Kept, files: RunFiles) -> None:
    connect(options.cpus, options.gpus, "evaluate.tasks.cpus and evaluate.tasks.gpus")
    tally = actor_on_driver(Tally)
    resources: dict[str, Any] = {"num_cpus": options.cpus, "num_gpus": options.gpus}
    waiting: dict[Any, tuple[str, str]] = {}
    actors: dict[str, Any] = {}
    for task, model in missing:
        if model.name not in actors:
            made: Any = ray.remote(max_restarts=-1, max_task_retries=RETRIES, **resources)(_Actor)
            actors[model.name] = made.remote(model, options, tally)
        waiting[actors[model.name].ask.remote(task)] = task.name, model.name
    done: list[str] = []
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
                asked, name = waiting.pop(first)
                figures = ray.get(first)
                write_atomic(kept[asked, name], figures.model_dump_json(indent=1))
                files.upload(kept[asked, name])
                done.append(f"{asked} {name}")
                if not any(name == other for _, other in waiting.values()):
                    ray.kill(actors[name])  # another model may need its place
        show()


def _read(path: Path) -> TaskFigures | None:
    if not path.exists():
        return None
    try:
        return TaskFigures.model_validate_json(path.read_text(encoding="utf-8"))
    except (ValidationError, UnicodeDecodeError) as error:
        raise CtdError(f"{path}: not figures of a task. Take the file away, and run it again.") from error
