"""What `--dry-run` looks at: all that can be wrong before anything is computed. Light: it loads no weights."""

import logging
import os
import tempfile
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from transformers import PreTrainedTokenizerFast

from ctd_core.config.run import RunConfig, drawn_left_out
from ctd_core.config.text import Arrow, Corpus, Csv, HeldOut, HubDataset, JsonLines, Mixture
from ctd_core.config.training import Train
from ctd_core.errors import CtdError, DocumentError, UsageError
from ctd_core.models.model_config import longest_window, num_embeddings
from ctd_core.models.tokenizers import build_teacher_tokenizer
from ctd_core.storage.locations import below, delete_file, file_system, is_uri, write_text
from ctd_core.text.chat import ChatTemplate
from ctd_core.text.corpora import corpus_files, plan_slices, read_documents
from ctd_core.text.documents import BEGIN, Document
from ctd_core.text.normalisation import canonical_form
from ctd_core.text.prepared_tokenizer import PreparedTokenizer, check_embedding
from ctd_core.text.tool_calls import with_calls_written
from pipelines.stages.preflight_training import check_own_answers, check_prompts, check_training, known_tokenizer

logger = logging.getLogger(__name__)
FIRST_DOCUMENTS = 100
UNDIVIDED_SLICES = 8  # in one file, before that is told


def check_inputs(config: RunConfig) -> list[str]:
    """Look at files, tokenizers, models' configs, GPUs, and where results go.

    Args:
        config: the run's options.

    Returns:
        Warnings of what may be meant so; they are logged too.

    Raises:
        UsageError: something is wrong.
    """
    warnings = list(_check(config))
    for warning in warnings:
        logger.warning(warning)
    return warnings


def _check(config: RunConfig) -> Iterator[str]:
    _check_machine(config)
    _check_writable("output", config.output)
    if config.prepare.storage is not None:
        _check_writable("prepare.storage", config.prepare.storage)
    _check_windows(config)
    _check_weights(config)
    is_chat = _holds_conversations(config)
    templates = []
    teachers = {"teacher": config.teacher}
    teachers |= {f"extra_teachers.{name}": teacher for name, teacher in config.extra_teachers.items()}
    tokenizers = {}
    for field, teacher in teachers.items():
        tokenizer = tokenizers[field] = build_teacher_tokenizer(teacher)
        if is_chat:
            templates.append(ChatTemplate(tokenizer.encoder.tokenizer, teacher.model))
        yield from _unused_revision(field, teacher.model, teacher.revision)
        yield from _missing_markers(field, tokenizer)
        yield from _tokens_beyond(tokenizer, num_embeddings(teacher.model, teacher.revision, teacher.trust_remote_code))
    yield from _unused_revision("student", config.student.model, config.student.revision)
    prepared, student = known_tokenizer(config)
    if prepared is not None:
        yield from _missing_markers("student", prepared)
    if is_chat:
        templates.append(
            ChatTemplate(student, "the student's tokenizer" if prepared is None else prepared.encoder.name)
        )
    yield from _check_documents(config, templates)
    check_training(config, prepared, tokenizers["teacher"], is_chat=bool(student.chat_template))
    check_own_answers(config, student)
    check_prompts(config, {"teacher": tokenizers["teacher"], "student": prepared})
    _check_chat_template(config, {"the teacher": tokenizers["teacher"].encoder.tokenizer, "the student": student})
    if config.evaluate.tasks.names or config.evaluate.problems:
        from pipelines.stages.asked_tasks import tasks_in  # takes seconds

        for task in tasks_in(config.evaluate):
            task.check()
    yield from _measured_on_training(config)
    yield from _endless_warmups(config.train)
    yield from drawn_left_out(config)


def _measured_on_training(config: RunConfig) -> Iterator[str]:
    """Which sets and problems are read from what is trained on."""
    trained = {source for part in config.corpus.parts for source in _sources(part)}
    measured = {where: corpus for where, corpus in _corpora(config).items() if where.startswith("evaluate.")}
    measured |= {f"evaluate.problems.{name}": found.corpus for name, found in config.evaluate.problems.items()}
    for where, corpus in measured.items():
        if shared := [name for source, name in _sources(corpus).items() if source in trained]:
            yield (
                f"{where}: {min(shared)} is trained on too, so its figures are not of unseen text. Name another "
                "corpus, or set corpus.held_out_fraction and measure on {kind: held_out}"
            )


def _sources(corpus: Corpus) -> dict[str, str]:
    """What a corpus is read from, by what it is however it is named: files, a split of a dataset, or packaged text."""
    if isinstance(corpus, HubDataset):  # whose files hold all splits
        name = str(Path(corpus.name).resolve()) if Path(corpus.name).exists() else corpus.name
        return {repr((name, corpus.configuration, corpus.split)): f"{corpus.name}, split {corpus.split},"}
    kind: str = corpus.model_dump()["kind"]
    return {file_system(file)[1]: file for file in corpus_files(corpus)} or {kind: kind}


def _check_chat_template(config: RunConfig, tokenizers: dict[str, PreTrainedTokenizerFast]) -> None:
    """Raises UsageError where tasks are to be asked through a chat template that a model does not have."""
    tasks = config.evaluate.tasks
    lacking = [name for name, tokenizer in tokenizers.items() if not tokenizer.chat_template]
    if tasks.names and tasks.chat_template and lacking:
        raise UsageError(f"evaluate.tasks.chat_template: {lacking[0]} has no chat template. Ask without.")


def _unused_revision(field: str, model: str | None, revision: str | None) -> Iterator[str]:
    """Whether a revision is named of a directory, which has none."""
    if revision is not None and model is not None and Path(model).is_dir():
        yield f"{field}.revision: {revision} is not looked at: {model} is a directory, and not a hub id"


def _endless_warmups(train: Train) -> Iterator[str]:
    """Which warm-ups take all steps of their part of the training."""
    for _, field, part in train.phases:
        if part.warmup >= part.steps:
            yield (
                f"{field}.warmup_steps is {part.warmup}, of {part.steps} steps: the learning rate does not reach "
                f"{part.learning_rate:g}"
            )


def _holds_conversations(config: RunConfig) -> bool:
    return any(corpus.is_chat for corpus in _corpora(config).values())


def _corpora(config: RunConfig) -> dict[str, Corpus]:
    """All corpora by the name of their option; of a mixture its sources."""
    named: dict[str, Corpus] = {"corpus": config.corpus}
    for name, measured in config.evaluate.sets.items():
        if not isinstance(measured, HeldOut):
            named[f"evaluate.sets.{name}"] = measured
    corpora = {}
    for option, corpus in named.items():
        for number, part in enumerate(corpus.parts):
            corpora[f"{option}.sources.{number}" if isinstance(corpus, Mixture) else option] = part
    return corpora


def _check_windows(config: RunConfig) -> None:
    """Raises UsageError where a window is longer than what its model reads."""
    student, teacher, prepare = config.student, config.teacher, config.prepare
    models = [("teacher.model", teacher, prepare.teacher_window_tokens)]
    for name, extra in config.extra_teachers.items():
        models.append((f"extra_teachers.{name}.model", extra, prepare.teacher_window_tokens))
    field = "teacher.model, which the student is made from" if student.model is None else "student.model"
    models.append((field, config.origin, prepare.student_window_tokens))
    for field, model, window in models:
        longest = longest_window(model.model, model.revision, model.trust_remote_code)
        if longest is not None and window > longest:
            raise UsageError(
                f"{field}: {model.model} reads {longest} tokens at most, or with longrope as it reads fewer, and its "
                f"window in prepare is {window}. Set prepare.student_window_tokens and prepare.teacher_window_tokens "
                "to fit."
            )


def _check_weights(config: RunConfig) -> None:
    """Raises UsageError where a model that lies in a directory lacks some of its weights.

    All of them may be gone: where shards and student are there, they are not read again.
    """
    models = (config.teacher, *config.extra_teachers.values(), config.origin)
    for model in {model.model: model for model in models}.values():  # mostly the student is made from its teacher
        if any(Path(model.model).glob("*.safetensors")):
            from ctd_core.models.loading import check_weights  # takes seconds

            check_weights(model.model, model.revision, model.trust_remote_code)


def _check_machine(config: RunConfig) -> None:
    """Raises UsageError where a stage asks for what this machine alone could never give, and no cluster is joined."""
    import torch  # takes seconds

    from pipelines.cluster.connection import check_machine, is_local

    prepare, train, tasks = config.prepare, config.train, config.evaluate.tasks
    wanted = {"prepare.scoring_gpus": bool(prepare.scoring_gpus), "train.use_gpu": train.use_gpu}
    fields = [field for field, is_wanted in wanted.items() if is_wanted]
    if fields and is_local() and not torch.cuda.is_available():
        raise UsageError(
            f"{' and '.join(fields)}: the run asks for GPUs, and torch sees no GPU on this machine. Ask for none, or "
            "set RAY_ADDRESS to a cluster."
        )
    actors, gpus = prepare.scoring_actors, prepare.scoring_actors * prepare.scoring_gpus
    if prepare.targets:
        names = "prepare.scoring_actors and prepare.scoring_gpus"
        check_machine(1 if gpus else actors, gpus, names, prepare.scoring_resources)
    if train.num_workers:
        least = train.min_workers or train.num_workers
        names = "train.num_workers and train.use_gpu"
        check_machine(least, least if train.use_gpu else 0, names, train.worker_resources)
        if (written := train.on_policy) is not None:
            gpus += written.generation_actors * written.generation_gpus
            names = "train.on_policy.generation_gpus and prepare.scoring_gpus"
            check_machine(1, gpus, names, written.generation_resources)
    if tasks.names or config.evaluate.problems:
        check_machine(tasks.cpus, tasks.gpus, "evaluate.tasks.cpus and evaluate.tasks.gpus")


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


def _check_documents(config: RunConfig, templates: list[ChatTemplate]) -> Iterator[str]:
    """Which of the first documents of each corpus will be dropped; raises UsageError where all of them will."""
    for where, corpus in _corpora(config).items():
        yield from _undivided(where, corpus, config.prepare.slice_bytes)
        documents = list(islice(read_documents(corpus, config.prepare.slice_bytes), FIRST_DOCUMENTS))
        errors = [error for document in documents if (error := _why_dropped(document, templates)) is not None]
        if not any(isinstance(document, DocumentError) or document.text for document in documents):
            raise UsageError(f"{where}: the first {len(documents)} documents are empty.")
        if len(errors) == len(documents):
            raise UsageError(
                f"{where}: none of the first {len(documents)} documents can be used: {errors[0].reason}. {errors[0]}"
            )
        if len(errors) > config.prepare.max_dropped_fraction * len(documents):
            yield (
                f"{where}: {len(errors)} of the first {len(documents)} documents will be dropped, and `ctd prepare` "
                f"fails where more than {config.prepare.max_dropped_fraction:.0%} of all are: mend or take out those "
                "named below, or raise prepare.max_dropped_fraction"
            )
        for reason, count in Counter(error.reason for error in errors).items():
            example = next(error for error in errors if error.reason == reason)
            yield f"{where}: {count} of the first {len(documents)} documents will be dropped: {reason}: {example}"


def _undivided(where: str, corpus: Corpus, slice_bytes: int) -> Iterator[str]:
    """Which large files one worker will read and score whole, as compressed ones and tables have to be."""
    if isinstance(corpus, JsonLines | Csv | Arrow):
        for item in plan_slices(corpus, slice_bytes):
            if item.stop - item.start > UNDIVIDED_SLICES * slice_bytes:
                yield (
                    f"{where}: {item.source}, of {(item.stop - item.start) / 1e6:.1f} MB, cannot be divided, so one "
                    "worker holds all of it, and scores it as one shard: split it into files, or write it as JSON "
                    "lines that are not compressed"
                )


def _why_dropped(document: Document | DocumentError, templates: list[ChatTemplate]) -> DocumentError | None:
    if isinstance(document, DocumentError):
        return document
    try:
        canonical_form(document.text, ())
        if document.turns:
            turns = with_calls_written(templates, list(document.turns))
            for template in templates:
                template.write(turns)
    except DocumentError as error:
        return DocumentError(error.reason, f"{document.id}: {error}")
    return None


def _tokens_beyond(tokenizer: PreparedTokenizer, rows: int) -> Iterator[str]:
    """Which tokens a tokenizer has beyond its model's embedding."""
    name = tokenizer.encoder.name
    if beyond := check_embedding(tokenizer.encoder.tokenizer, name, rows):
        more = f" and {len(beyond) - 4} more" if len(beyond) > 4 else ""
        yield (
            f"{name}: {', '.join(beyond[:4])}{more} have no row in the model's embedding: a student's row for them "
            "begins as the mean of all, and texts whose tokens they are are dropped and counted"
        )


def _missing_markers(field: str, tokenizer: PreparedTokenizer) -> Iterator[str]:
    """Which ends of a text have no token, as where a tokenizer.json comes without its special tokens."""
    for role, tokens in tokenizer.markers.items():
        if not tokens:
            loss = "the first chunk of every window" if role == BEGIN else "the end of every text"
            yield (
                f"{tokenizer.encoder.name}: no token of it is known to {role} a text, so {loss} is not learned. Name "
                f"one: {field}.{role}_token."
            )
