"""What models are asked: tasks of lm-evaluation-harness, and problems with numbers as answers."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Protocol

from transformers import PreTrainedModel, PreTrainedTokenizerFast

from ctd_core.config.base import fingerprint
from ctd_core.config.evaluation import Evaluate, Problems, Tasks
from ctd_core.evaluation.figures import TaskFigures
from ctd_core.evaluation.problems import SLICE_BYTES, ask_problems, read_problems
from ctd_core.evaluation.tasks import TaskHarness, harness_version
from ctd_core.text.corpora import corpus_files, plan_slices
from ctd_core.text.corpora.content import content_fingerprint

ASKING_VERSION = 2  # of how models are asked: since 2, nothing stands before what a chat template writes


class AskedTask(Protocol):
    """What a model can be asked. name: what results call it."""

    @property
    def name(self) -> str: ...

    def stamp(self) -> str:
        """Of all that decides its figures, but for the model."""
        ...

    def check(self) -> None:
        """Raise UsageError where it cannot be asked of any model."""
        ...

    def ask(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerFast,
        name: str,
        on_batch: Callable[[float], None],
    ) -> TaskFigures:
        """Ask a model, which results call `name`; `on_batch` hears which share is done."""
        ...


@dataclass(frozen=True)
class HarnessTask:
    """A task of lm-evaluation-harness."""

    name: str
    options: Tasks

    def stamp(self) -> str:
        """Of the harness and the options, and with tasks of the user's own, of their files, questions and examples."""
        how = self.options.result_values() | {"names": [self.name], "include_path": None}
        own = None
        if self.options.include_path is not None:
            own = _own_files(self.options.include_path), _harness(self.options.model_dump_json()).content(self.name)
        return fingerprint(ASKING_VERSION, harness_version(), own, how)

    def check(self) -> None:
        """Raise UsageError where the harness is not installed, or has no such task."""
        _harness(self.options.model_dump_json())

    def ask(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerFast,
        name: str,
        on_batch: Callable[[float], None],
    ) -> TaskFigures:
        """By the harness."""
        return _harness(self.options.model_dump_json()).run(model, tokenizer, self.name, name, on_batch)


@dataclass(frozen=True)
class ProblemSet:
    """Problems of files, with numbers as answers."""

    name: str
    options: Problems

    def stamp(self) -> str:
        """Of the options and the content of the files."""
        corpus = self.options.corpus
        content = content_fingerprint(corpus_files(corpus), plan_slices(corpus, SLICE_BYTES))
        return fingerprint(ASKING_VERSION, self.options.result_values(), content)

    def check(self) -> None:
        """Raise UsageError where there are no problems, or one cannot be read."""
        read_problems(self.options)

    def ask(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerFast,
        name: str,
        on_batch: Callable[[float], None],
    ) -> TaskFigures:
        """By what the model writes."""
        return ask_problems(model, tokenizer, read_problems(self.options), self.options, self.name, name, on_batch)


def tasks_in(options: Evaluate) -> list[AskedTask]:
    """All that a run asks."""
    return [
        *(HarnessTask(name, options.tasks) for name in options.tasks.names),
        *(ProblemSet(name, problems) for name, problems in options.problems.items()),
    ]


@lru_cache(maxsize=1)
def _harness(options: str) -> TaskHarness:
    """It reads an index of all its tasks, which takes seconds."""
    return TaskHarness(Tasks.model_validate_json(options))


def _own_files(directory: str) -> str:
    """A fingerprint of the user's own tasks with their code."""
    digest = hashlib.sha256()
    for file in sorted(Path(directory).rglob("*")):
        if file.is_file() and "__pycache__" not in file.parts:
            digest.update(str(file.relative_to(directory)).encode() + file.read_bytes())
    return digest.hexdigest()
