"""What `--dry-run` looks at: all that can be wrong before anything is computed."""

import os
import tempfile
from itertools import islice
from pathlib import Path

import torch

from ctd_core.config.models import Student, Teacher
from ctd_core.config.run import RunConfig
from ctd_core.config.text import TrainedTokenizer
from ctd_core.errors import CtdError, DocumentError, UsageError
from ctd_core.models.adapters import check_targets
from ctd_core.models.building import build_teacher_tokenizer
from ctd_core.models.loading import num_embeddings, read_model_config, skeleton
from ctd_core.storage.locations import below, delete_file, is_uri, write_text
from ctd_core.text.corpora import read_slice
from ctd_core.text.documents import BEGIN
from ctd_core.text.prepared_tokenizer import Side, check_embedding
from pipelines.artifacts.run_paths import Places
from pipelines.cluster.connection import is_own
from pipelines.display.progress import say
from pipelines.stages.student import student_tokenizer

FIRST_DOCUMENTS = 20


def check_inputs(config: RunConfig, places: Places) -> None:
    """Files, tokenizers, models' configs, GPUs, and where results go.

    Raises:
        UsageError: one of them is wrong.
    """
    _check_gpus(config)
    _check_writable("output", config.output)
    if config.prepare.storage is not None:
        _check_writable("prepare.storage", config.prepare.storage)
    _check_fields(places)
    teachers = {"teacher": config.teacher} | {
        f"more_teachers.{name}": one for name, one in config.more_teachers.items()
    }
    student = config.student
    windows = (config.prepare.teacher_window_tokens, config.prepare.student_window_tokens)
    models: list[tuple[str, Student | Teacher, str, int]] = [
        (f"{field}.model", one, one.model, windows[0]) for field, one in teachers.items()
    ]
    if student.model is not None:
        models.append(("student.model", student, student.model, windows[1]))
    else:
        which = "teacher.model, which the student is made from"
        models.append((which, config.teacher, config.teacher.model, windows[1]))
    for field, one, name, window in models:
        longest = getattr(read_model_config(name, one.revision, one.trust_remote_code), "max_position_embeddings", None)
        if longest is not None and window > longest:
            raise UsageError(
                f"{field}: {name} reads {longest} tokens at most, and its window in prepare is {window}. Set "
                "prepare.student_window_tokens and prepare.teacher_window_tokens to fit."
            )
    for field, teacher in teachers.items():
        side = build_teacher_tokenizer(teacher)
        _tell_missing(field, side)
        _tell_beyond(side, num_embeddings(teacher.model, teacher.revision, teacher.trust_remote_code))
    if not isinstance(student.tokenizer, TrainedTokenizer):
        _tell_missing("student", student_tokenizer(places))
    if student.adapters is not None:
        origin = student if student.model is not None else config.teacher
        check_targets(skeleton(origin.model or "", origin.revision, origin.trust_remote_code), student.adapters)


def _check_gpus(config: RunConfig) -> None:
    wanted = {"prepare.scoring_gpus": bool(config.prepare.scoring_gpus), "train.use_gpu": config.train.use_gpu}
    asked = [field for field, is_wanted in wanted.items() if is_wanted]
    if asked and is_own() and not torch.cuda.is_available():
        raise UsageError(
            f"{' and '.join(asked)}: the run asks for GPUs, and torch sees no GPU on this machine. Ask for none, or "
            "set RAY_ADDRESS to a cluster."
        )


def _check_writable(field: str, location: str) -> None:
    """Raises UsageError where nothing can be written; nothing stays there."""
    try:
        if is_uri(location):
            probe = below(location, f".probe-{os.getpid()}")
            write_text(probe, "")
            delete_file(probe)
            return
        path = Path(location).expanduser().absolute()
        there = next(one for one in (path, *path.parents) if one.exists())
        with tempfile.TemporaryFile(dir=there):
            pass
    except (OSError, CtdError) as error:
        raise UsageError(f"{field}: {location}: nothing can be written there ({error}). Name another place.") from error


def _check_fields(places: Places) -> None:
    """Raises UsageError where the first documents of a corpus have no text in the field that is named."""
    for plan in places.datasets.values():
        first = list(islice(read_slice(plan.corpus, plan.parts[0]), FIRST_DOCUMENTS))
        if first and all(isinstance(one, DocumentError) for one in first):
            field = getattr(plan.corpus, "field", "")
            raise UsageError(f"corpus.field: no text in {field!r} of the first {len(first)} documents: {first[0]}")


def _tell_beyond(side: Side, rows: int) -> None:
    """Report tokens that a tokenizer has beyond its model's embedding."""
    if beyond := check_embedding(side.encoder.tokenizer, side.encoder.name, rows):
        more = f" and {len(beyond) - 4} more" if len(beyond) > 4 else ""
        say(
            f"{side.encoder.name}: {', '.join(beyond[:4])}{more} have no row in the model's embedding: a student's row "
            "for them begins as the mean of all, and texts whose tokens they are are dropped and counted"
        )


def _tell_missing(field: str, side: Side) -> None:
    """Say which ends of a text `side` has no token for, as where a tokenizer.json comes without its special tokens."""
    for role, tokens in side.markers.items():
        if not tokens:
            loss = "the first chunk of every window" if role == BEGIN else "the end of every text"
            say(
                f"{side.encoder.name}: no token of it is known to {role} a text, so {loss} is not learned. Name one: "
                f"{field}.{role}_token."
            )
