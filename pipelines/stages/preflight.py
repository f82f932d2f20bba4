"""What `--dry-run` looks at: all that can be wrong before anything is computed. Light: it loads no weights."""

import logging
import os
import tempfile
from itertools import islice
from pathlib import Path

from ctd_core.config.models import Teacher
from ctd_core.config.run import RunConfig
from ctd_core.config.text import Corpus, HeldOut, Records, TrainedTokenizer
from ctd_core.errors import CtdError, DocumentError, UsageError
from ctd_core.models.model_config import max_positions, num_embeddings
from ctd_core.models.tokenizers import build_student_tokenizer, build_teacher_tokenizer, with_chat
from ctd_core.storage.locations import below, delete_file, is_uri, write_text
from ctd_core.text.chat import ChatTemplate
from ctd_core.text.corpora import first_slice, read_slice
from ctd_core.text.documents import BEGIN
from ctd_core.text.prepared_tokenizer import PreparedTokenizer, check_embedding
from ctd_core.text.tokenizers import bytes_tokenizer

logger = logging.getLogger(__name__)
FIRST_DOCUMENTS = 20


def check_inputs(config: RunConfig) -> None:
    """Files, tokenizers, models' configs, GPUs, and where results go.

    Args:
        config: the run's options.

    Raises:
        UsageError: one of them is wrong.
    """
    _check_gpus(config)
    _check_writable("output", config.output)
    if config.prepare.storage is not None:
        _check_writable("prepare.storage", config.prepare.storage)
    _check_fields(config)
    _check_windows(config)
    is_chat = _holds_conversations(config)
    teachers = {"teacher": config.teacher}
    teachers |= {f"extra_teachers.{name}": teacher for name, teacher in config.extra_teachers.items()}
    for field, teacher in teachers.items():
        tokenizer = build_teacher_tokenizer(teacher)
        if is_chat:
            ChatTemplate(tokenizer.encoder.tokenizer, teacher.model)  # raises where there is none
        _warn_of_missing_markers(field, tokenizer)
        _warn_of_tokens_beyond(tokenizer, num_embeddings(teacher.model, teacher.revision, teacher.trust_remote_code))
    if not isinstance(config.student.tokenizer, TrainedTokenizer):
        student = build_student_tokenizer(config.student, config.teacher, None)
        _warn_of_missing_markers("student", student)
        if is_chat:
            ChatTemplate(student.encoder.tokenizer, student.encoder.name)
    elif is_chat:  # a tokenizer that is still to be trained has no other template than the one that joins it
        ChatTemplate(with_chat(bytes_tokenizer(), config.student, config.teacher), "the student's tokenizer")
    if config.student.adapters is not None:
        from ctd_core.models.adapters import check_targets  # takes seconds
        from ctd_core.models.loading import skeleton

        origin = config.student if config.student.model is not None else config.teacher
        check_targets(skeleton(origin.model or "", origin.revision, origin.trust_remote_code), config.student.adapters)


def _holds_conversations(config: RunConfig) -> bool:
    corpora = [config.corpus, *(corpus for corpus in config.evaluate.sets.values() if not isinstance(corpus, HeldOut))]
    return any(isinstance(corpus, Records) and corpus.is_chat for corpus in corpora)


def _check_windows(config: RunConfig) -> None:
    """Raises UsageError where a window is longer than what its model reads."""
    student, teacher, prepare = config.student, config.teacher, config.prepare
    models = [("teacher.model", teacher, prepare.teacher_window_tokens)]
    for name, extra in config.extra_teachers.items():
        models.append((f"extra_teachers.{name}.model", extra, prepare.teacher_window_tokens))
    if student.model is None:
        models.append(("teacher.model, which the student is made from", teacher, prepare.student_window_tokens))
    else:
        own = Teacher(model=student.model, revision=student.revision, trust_remote_code=student.trust_remote_code)
        models.append(("student.model", own, prepare.student_window_tokens))
    for field, model, window in models:
        longest = max_positions(model.model, model.revision, model.trust_remote_code)
        if longest is not None and window > longest:
            raise UsageError(
                f"{field}: {model.model} reads {longest} tokens at most, and its window in prepare is {window}. Set "
                "prepare.student_window_tokens and prepare.teacher_window_tokens to fit."
            )


def _check_gpus(config: RunConfig) -> None:
    wanted = {"prepare.scoring_gpus": bool(config.prepare.scoring_gpus), "train.use_gpu": config.train.use_gpu}
    fields = [field for field, is_wanted in wanted.items() if is_wanted]
    if not fields:
        return
    import torch  # takes seconds

    from pipelines.cluster.connection import is_local

    if is_local() and not torch.cuda.is_available():
        raise UsageError(
            f"{' and '.join(fields)}: the run asks for GPUs, and torch sees no GPU on this machine. Ask for none, or "
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
        existing = next(parent for parent in (path, *path.parents) if parent.exists())
        if not existing.is_dir():
            raise NotADirectoryError(f"{existing} is a file")
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as error:
        reason = error.strerror or str(error)
        raise UsageError(f"{field}: {location}: cannot be written ({reason}). Choose another location.") from error
    except CtdError as error:
        raise UsageError(f"{field}: {error} Choose another location.") from error


def _check_fields(config: RunConfig) -> None:
    """Raises UsageError where the first documents of a corpus have no text in the field that is named."""
    corpora: dict[str, Corpus] = {"corpus": config.corpus}
    for name, measured in config.evaluate.sets.items():
        if not isinstance(measured, HeldOut):
            corpora[f"evaluate.sets.{name}"] = measured
    for where, corpus in corpora.items():
        part = first_slice(corpus, config.prepare.slice_bytes)
        documents = list(islice(read_slice(corpus, part), FIRST_DOCUMENTS))
        if documents and all(isinstance(document, DocumentError) for document in documents):
            field = getattr(corpus, "field", "")
            raise UsageError(
                f"{where}.field: no text in {field!r} of the first {len(documents)} documents: {documents[0]}"
            )


def _warn_of_tokens_beyond(tokenizer: PreparedTokenizer, rows: int) -> None:
    """Report tokens that a tokenizer has beyond its model's embedding."""
    name = tokenizer.encoder.name
    if beyond := check_embedding(tokenizer.encoder.tokenizer, name, rows):
        more = f" and {len(beyond) - 4} more" if len(beyond) > 4 else ""
        logger.warning(
            f"{name}: {', '.join(beyond[:4])}{more} have no row in the model's embedding: a student's row for them "
            "begins as the mean of all, and texts whose tokens they are are dropped and counted"
        )


def _warn_of_missing_markers(field: str, tokenizer: PreparedTokenizer) -> None:
    """Report which ends of a text have no token, as where a tokenizer.json comes without its special tokens."""
    for role, tokens in tokenizer.markers.items():
        if not tokens:
            loss = "the first chunk of every window" if role == BEGIN else "the end of every text"
            logger.warning(
                f"{tokenizer.encoder.name}: no token of it is known to {role} a text, so {loss} is not learned. Name "
                f"one: {field}.{role}_token."
            )
