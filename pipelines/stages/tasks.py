"""Tasks with answers: each model is an actor on Ray, which is asked one task after another."""

import hashlib
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, cast

import ray
import torch
from pydantic import ValidationError
from ray.exceptions import RayError
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from ctd_core.config.base import fingerprint
from ctd_core.config.evaluation import Tasks
from ctd_core.config.models import Average, Dtype
from ctd_core.errors import CtdError
from ctd_core.evaluation.tasks import TaskFigures, TaskHarness, harness_version
from ctd_core.models.ensemble import load_ensemble
from ctd_core.models.export import beginning_texts
from ctd_core.models.fingerprints import weights_fingerprint
from ctd_core.models.loading import load_model
from ctd_core.storage.atomic import write_atomic
from ctd_core.text.documents import BEGIN
from ctd_core.text.tokenizers import load_tokenizer
from pipelines.artifacts.background import repeating
from pipelines.artifacts.checkpoints import name_of, trained_checkpoint
from pipelines.artifacts.remote_copy import RunFiles
from pipelines.artifacts.report import AFTER, BEFORE, TEACHER
from pipelines.artifacts.run_plan import RunPlan, user_cache
from pipelines.cluster.connection import actor_on_driver, connect, reraised_errors
from pipelines.cluster.tally import Handle, Tally, reporting
from pipelines.display.progress import progress
from pipelines.stages.student import load_student
from pipelines.stages.tokenizer import student_tokenizer

PATH = re.compile(r"[^\s\"'\[\]{},]*[/.][^\s\"'\[\]{},]*")  # what may be one, in YAML
RETRIES = 3  # of a task whose machine is lost


class AskedModel(Protocol):
    """A model that can be asked. name: what results call it."""

    @property
    def name(self) -> str: ...

    def stamp(self) -> str:
        """What its figures belong to."""
        ...

    def load(self) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]: ...


@dataclass(frozen=True)
class NamedModel:
    """A directory or a hub id."""

    name: str
    location: str
    revision: str | None = None
    dtype: Dtype = "float32"
    trust_remote_code: bool = False
    weights: str | None = None  # the fingerprint of its files, where it is known

    def stamp(self) -> str:
        """Of its files."""
        return fingerprint(self.weights or weights_fingerprint(self.location, self.revision), self.dtype)

    def load(self) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
        """It with its tokenizer, on the CPU."""
        model = load_model(self.location, self.revision, self.dtype, self.trust_remote_code)
        return model, load_tokenizer(self.location, self.revision)


@dataclass(frozen=True)
class NamedEnsemble:
    """Models in directories or of hub ids, together."""

    name: str
    locations: tuple[str, ...]
    average: Average

    def stamp(self) -> str:
        """Of all their files."""
        return fingerprint([weights_fingerprint(location, None) for location in self.locations], self.average)

    def load(self) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
        """It with its tokenizer, on the CPU."""
        return load_ensemble(self.locations, self.average)


@dataclass(frozen=True)
class RunStudent:
    """The student of a run: as a checkpoint has it, or before training."""

    name: str
    plan: RunPlan
    checkpoint: str | None

    def stamp(self) -> str:
        """Of the training and the step, or of the student before."""
        plan, checkpoint = self.plan, self.checkpoint
        return plan.init.name if checkpoint is None else f"{plan.training.name}/{name_of(checkpoint)}"

    def load(self) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
        """It with its tokenizer, on the CPU."""
        tokenizer = student_tokenizer(self.plan)
        student = load_student(self.plan, tokenizer, self.checkpoint)
        return student.model, beginning_texts(tokenizer.encoder.tokenizer, list(tokenizer.markers.get(BEGIN, ())))


def ask_models_of_run(plan: RunPlan) -> list[TaskFigures]:
    """Ask teacher and student, before training and at its latest checkpoint, the tasks of the run."""
    teacher, weights = plan.config.teacher, plan.training_sets[None].teacher_weights
    models: list[AskedModel] = [
        NamedModel(TEACHER, teacher.model, teacher.revision, teacher.dtype, teacher.trust_remote_code, weights),
        RunStudent(BEFORE, plan, None),
        RunStudent(AFTER, plan, trained_checkpoint(plan.checkpoints)),
    ]
    return ask_models(models, plan.config.evaluate.tasks, plan.files)


def ask_named_models(names: Sequence[str], options: Tasks, average: Average | None) -> list[TaskFigures]:
    """Ask models in directories or of hub ids, and their ensemble by what it averages; figures are kept in the user's
    cache.
    """
    models: list[AskedModel] = [NamedModel(name, name) for name in dict.fromkeys(names)]
    if average is not None:
        models.append(NamedEnsemble(f"ensemble of {len(names)}, {average}", tuple(names), average))
    return ask_models(models, options, RunFiles(user_cache(), None))


def ask_models(models: Sequence[AskedModel], options: Tasks, files: RunFiles) -> list[TaskFigures]:
    """Ask every model every task, but for those whose figures are there already.

    Args:
        models: whom to ask.
        options: which tasks, and how.
        files: where figures are kept, in a folder tasks.

    Returns:
        The figures, by task and model.

    Raises:
        UsageError: there is no such task, or no harness.
        CtdError: a task fails. What is done is kept.
    """
    if not options.names:
        return []
    harness = fingerprint(harness_version(), _own_tasks(options))
    kept: dict[tuple[str, str], Path] = {}
    for model in models:
        stamp = model.stamp()
        for task in options.names:
            how = options.result_values() | {"names": [task], "include_path": None}
            path = files.directory / "tasks" / f"{task.replace('/', '-')}-{fingerprint(harness, how, stamp)}.json"
            kept[task, model.name] = path
            files.fetch(path)
    missing = [key for key, path in kept.items() if _read(path) is None]
    if missing:
        _ask(models, missing, options, kept, files)
    found = [(name, _read(kept[task, name])) for task in options.names for name in (model.name for model in models)]
    return [figures.model_copy(update={"model": name}) for name, figures in found if figures is not None]


class _Actor:
    """A model on its device, and the tasks."""

    def __init__(self, source: AskedModel, options: Tasks, tally: Handle) -> None:
        self._source, self._options, self._tally = source, options, tally
        self._loaded: tuple[TaskHarness, PreTrainedModel, PreTrainedTokenizerFast] | None = None

    def ask(self, task: str) -> TaskFigures:
        if self._loaded is None:  # not before: an error of __init__ would not come out as itself
            harness = TaskHarness(self._options)
            model, tokenizer = self._source.load()
            device = torch.device("cuda" if self._options.gpus else "cpu")
            self._loaded = harness, model.to(device), tokenizer
        harness, model, tokenizer = self._loaded
        name = self._source.name
        return harness.run(model, tokenizer, task, name, reporting(self._tally, f"{task} {name}"))


def _ask(
    models: Sequence[AskedModel],
    missing: list[tuple[str, str]],
    options: Tasks,
    kept: dict[tuple[str, str], Path],
    files: RunFiles,
) -> None:
    TaskHarness(options)  # its errors come before Ray starts
    connect(options.cpus, options.gpus, "evaluate.tasks.cpus and evaluate.tasks.gpus")
    tally = actor_on_driver(Tally)
    resources: dict[str, Any] = {"num_cpus": options.cpus, "num_gpus": options.gpus}
    waiting: dict[Any, tuple[str, str]] = {}
    asked = {name for _, name in missing}
    actors = {}
    for model in models:
        if model.name in asked:
            made: Any = ray.remote(max_restarts=-1, max_task_retries=RETRIES, **resources)(_Actor)
            actors[model.name] = made.remote(model, options, tally)
    for task, name in missing:
        waiting[actors[name].ask.remote(task)] = task, name
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
                task, name = waiting.pop(first)
                figures = ray.get(first)
                write_atomic(kept[task, name], figures.model_dump_json(indent=1))
                files.upload(kept[task, name])
                done.append(f"{task} {name}")
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


def _own_tasks(options: Tasks) -> str | None:
    """The content of the user's own tasks, and of the files that they name; other figures come of others."""
    if options.include_path is None:
        return None
    digest = hashlib.sha256()
    for file in sorted(Path(options.include_path).rglob("*")):
        if file.is_file() and "__pycache__" not in file.parts:
            content = file.read_bytes()
            digest.update(str(file.relative_to(options.include_path)).encode() + content)
            if file.suffix in (".yaml", ".yml"):
                for named in map(Path, PATH.findall(content.decode(errors="replace"))):
                    if named.is_file():
                        digest.update(str(named).encode() + named.read_bytes())
    return digest.hexdigest()
