"""What a notebook needs: the method on a list of texts, in memory. `import ctd_core` gives these names.

Everything here is a few lines around the packages that `ctd` uses; results are those of `ctd` on the same documents.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerFast

from ctd_core.align.chunks import finest_chunks
from ctd_core.config.models import Teacher
from ctd_core.config.shards import PREFIX_K, Prepare
from ctd_core.config.training import Train
from ctd_core.errors import CtdError, DocumentError, UsageError
from ctd_core.evaluation.likelihoods import measure_likelihoods
from ctd_core.evaluation.metrics import metrics_of
from ctd_core.models.building import build_scorer, logprob_model, stored_targets
from ctd_core.models.byte_students import with_byte_expansion
from ctd_core.models.ensemble import load_ensemble as load_ensemble
from ctd_core.models.export import export_model
from ctd_core.models.loading import load_model
from ctd_core.models.logprob_model import LogprobModel
from ctd_core.models.scorer import Scorer
from ctd_core.models.scoring import score_rows
from ctd_core.models.transfer import transfer_model
from ctd_core.shards.building import build_rows
from ctd_core.shards.rows import MemoryRows, RowSource
from ctd_core.text import prepared_tokenizer
from ctd_core.text.chat import with_chat_of
from ctd_core.text.documents import plain_document
from ctd_core.text.encoding import encode_pairs
from ctd_core.text.prepared_tokenizer import PreparedTokenizer
from ctd_core.text.tokenizers import load_tokenizer
from ctd_core.training.loop import Hooks, Metrics
from ctd_core.training.loop import train as train_loop
from ctd_core.training.workers import Worker

OF_RUNS = (  # fields of `train`
    "on_policy", "num_workers", "min_workers", "use_gpu", "worker_resources", "strategy", "evaluate_every",
    "checkpoint_every", "max_failures",
)  # fmt: skip


@dataclass(frozen=True)
class AlignedChunk:
    """A finest chunk: a span of bytes at whose ends a student token and a teacher token both end.

    text_bytes: its bytes. student_ids, teacher_ids: the tokens of either side that spell it.
    """

    text_bytes: bytes
    student_ids: tuple[int, ...]
    teacher_ids: tuple[int, ...]


def prepare_tokenizer(tokenizer: str | PreTrainedTokenizerFast, chat_of: str | None = None) -> PreparedTokenizer:
    """A tokenizer with the exact bytes of every token.

    Args:
        tokenizer: a directory, a hub id, a tokenizer.json file, `bytes`, or a loaded one.
        chat_of: a model whose chat template and special tokens join it, as `student.chat: keep` has it in a run.

    Returns:
        The tokenizer made ready for aligning, with the tokens that begin and end a text.

    Raises:
        TokenizerError: it cannot be loaded, or cannot spell its input.
    """
    name = tokenizer if isinstance(tokenizer, str) else tokenizer.name_or_path or "the tokenizer"
    loaded = load_tokenizer(tokenizer) if isinstance(tokenizer, str) else tokenizer
    if chat_of is not None and (given := load_tokenizer(chat_of)).chat_template:
        loaded = with_chat_of(loaded, given)
    return prepared_tokenizer.prepare_tokenizer(loaded, name, None, None)


def align_texts(
    student: PreparedTokenizer, teacher: PreparedTokenizer, texts: Sequence[str]
) -> list[list[AlignedChunk]]:
    """The finest chunks of each text under two tokenizers.

    Args:
        student: the one tokenizer, from `prepare_tokenizer`.
        teacher: the other one.
        texts: N texts.

    Returns:
        N lists of chunks; their bytes joined are the text's.

    Raises:
        DocumentError: the two tokenizers do not spell the same bytes for a text.
    """
    results = []
    for pair in encode_pairs(student.encoder, teacher.encoder, texts):
        if isinstance(pair, DocumentError):
            raise pair
        (chunks,) = finest_chunks([pair.student.byte_ends], [pair.teacher.byte_ends])
        ends = list(zip(chunks.byte_ends, chunks.student_ends, chunks.teacher_ends, strict=True))
        starts = [(0, 0, 0), *ends[:-1]]
        results.append(
            [
                AlignedChunk(
                    pair.text_bytes[start[0] : end[0]],
                    tuple(pair.student.ids[start[1] : end[1]].tolist()),
                    tuple(pair.teacher.ids[start[2] : end[2]].tolist()),
                )
                for start, end in zip(starts, ends, strict=True)
            ]
        )
    return results


def make_rows(
    student: PreparedTokenizer, teacher: PreparedTokenizer, texts: Iterable[str], window_tokens: int = 512
) -> MemoryRows:
    """Rows to train on: the texts encoded twice, aligned, and cut into windows.

    Args:
        student: the student's tokenizer.
        teacher: the teacher's tokenizer.
        texts: documents; those that the tokenizers spell differently are dropped and counted in `counts.dropped`.
        window_tokens: the length of a window at most, on either side.

    Returns:
        The rows, without targets: `score` adds them.

    Raises:
        CtdError: no text makes a row.
        UsageError: they are no strings, or one string.
    """
    if isinstance(texts, str):
        raise UsageError("texts is one string: give a list of documents, such as [text]")
    texts = list(texts)
    for number, text in enumerate(texts):
        if not isinstance(text, str):
            raise UsageError(f"texts[{number}] is no string but {type(text).__name__}: {text!r:.80}")
    documents = (plain_document(f"text {number}", text) for number, text in enumerate(texts))
    batch, counts = build_rows(student, teacher, documents, window_tokens, window_tokens)
    if not batch.num_rows:
        raise CtdError(f"{counts.documents} texts make no row. Give texts that are not empty.")
    return MemoryRows("the texts", [batch], counts)


def load_teacher(name: str, tokenizer: PreparedTokenizer, dtype: Any = "float32", device: str = "cpu") -> Scorer:
    """A teacher ready to score.

    Args:
        name: a directory or a hub id of a causal language model.
        tokenizer: its tokenizer, from `prepare_tokenizer`.
        dtype: float32, bfloat16, float16, or the `fastest` of the first two on the device.
        device: where it is put.

    Returns:
        The scorer.

    Raises:
        UsageError: there is no such model.
    """
    return build_scorer(Teacher(model=name, dtype=dtype), tokenizer, torch.device(device))


def score(
    teacher: Scorer,
    rows: MemoryRows,
    student_tokenizer: PreparedTokenizer,
    teacher_tokenizer: PreparedTokenizer,
    prefix_k: int = PREFIX_K,
    batch_tokens: int = 4096,
    prefix_drawn: int | None = None,
) -> MemoryRows:
    """The rows with the teacher's targets: two numbers for each finest chunk (its log-likelihood, and that of a
    boundary), and next tokens of the student at each of its tokens.

    Args:
        teacher: from `load_teacher`.
        rows: from `make_rows`.
        student_tokenizer: the student's tokenizer.
        teacher_tokenizer: the teacher's own.
        prefix_k: how many tokens of the student are stored at each of its tokens, for `prefix_kl`; 0 for none.
        batch_tokens: padded teacher tokens in a forward pass.
        prefix_drawn: how many of the `prefix_k` are drawn, from all but the likeliest; half by default. `prefix_kl` in
            reverse or with a temperature learns from the others alone.

    Returns:
        Rows to train on with any objective of stored targets.

    Raises:
        CtdError: a number is not finite, or the tokenizer is not the teacher's.
        UsageError: more are to be drawn than stored.
    """
    if prefix_drawn is None:
        prefix_drawn = prefix_k // 2
    if prefix_drawn > prefix_k:
        raise UsageError(f"prefix_drawn is {prefix_drawn}, more than prefix_k, {prefix_k}, which counts them too")
    options = Prepare(prefix_k=prefix_k, prefix_drawn=prefix_drawn)
    stored = stored_targets(options, student_tokenizer, teacher_tokenizer)
    scored = [score_rows(teacher, batch, batch_tokens, stored) for batch in rows.batches]
    return MemoryRows(rows.name, scored, rows.counts)


def make_student(
    teacher: str,
    student_tokenizer: PreparedTokenizer,
    teacher_tokenizer: PreparedTokenizer,
    expansion_bytes: int | None = None,
) -> LogprobModel:
    """The teacher under another tokenizer: each new token begins as the mean of the old tokens that spell it.

    A student of bytes has an output matrix of its own.

    Args:
        teacher: a directory or a hub id.
        student_tokenizer: the new tokenizer.
        teacher_tokenizer: the teacher's own.
        expansion_bytes: a student of bytes also reads the teacher's tokens of at most so many, see `byte_expansion` in
            a run's file; None for bytes alone.

    Returns:
        A student to train; under the teacher's own tokenizer it is the teacher.

    Raises:
        UsageError: there is no such model, or the expansion is for another tokenizer than one of bytes.
    """
    original, tokenizers = load_model(teacher), (student_tokenizer, teacher_tokenizer)
    untie = bool(student_tokenizer.encoder.token_bytes.lengths_bytes.max() <= 1)
    model = transfer_model(original, *tokenizers, untie)
    if expansion_bytes is not None:
        model = with_byte_expansion(model, original, *tokenizers, expansion_bytes)
    return logprob_model(model, student_tokenizer)


def train(student: LogprobModel, rows: RowSource, steps: int, **options: Any) -> list[Metrics]:
    """Train a student in place on rows with targets.

    Args:
        student: from `make_student`.
        rows: from `score`.
        steps: optimizer steps.
        **options: other fields of `train` in a run's file, such as objectives, learning_rate or batch_tokens. What they
            freeze learns again afterwards. The student trains where it is, on a GPU after `student.to("cuda")`.

    Returns:
        What each step measured.

    Raises:
        CtdError: the loss is not finite, or an objective found nothing to compare.
        UsageError: an option is one of a run alone.
    """
    if of_runs := [name for name in OF_RUNS if name in options]:
        raise UsageError(f"{of_runs[0]}: here one student trains where it is, on rows that are there. Take `ctd train`")
    measured: list[Metrics] = []
    hooks = Hooks(measured.append, lambda metrics, write: None, lambda model: {})
    worker = Worker(device=student.language_model.embeddings.device)
    learned = [(parameter, parameter.requires_grad) for parameter in student.parameters()]
    try:
        train_loop(Train.model_validate({"steps": steps, **options}), student, rows, hooks, worker=worker)
    finally:
        for parameter, learns in learned:
            parameter.requires_grad_(learns)
    return measured


def measure(student: LogprobModel, rows: RowSource, batch_tokens: int = 4096) -> dict[str, float]:
    """Bits per byte, distance to the teacher and the other metrics of a student.

    Args:
        student: before or after training.
        rows: from `score`; others than it was trained on.
        batch_tokens: padded student tokens in a forward pass.

    Returns:
        Each metric by name.

    Raises:
        CtdError: the rows have no targets, or no text with context.
    """
    return metrics_of(measure_likelihoods(student, rows, batch_tokens))


def export(student: LogprobModel, tokenizer: PreparedTokenizer, directory: str | Path, card: str = "") -> None:
    """Write a student as a directory that Hugging Face transformers loads.

    Args:
        student: after training.
        tokenizer: its tokenizer.
        directory: where to; it is created.
        card: the text of its README.md.

    Raises:
        CtdError: a weight is not finite.
    """
    Path(directory).mkdir(parents=True, exist_ok=True)
    export_model(student.language_model, tokenizer.exported, card, Path(directory))
