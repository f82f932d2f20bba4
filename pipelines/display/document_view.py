"""`ctd inspect --config`: the first documents of a run, as both tokenizers encode them, with what is scored."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain, islice, zip_longest

from rich.text import Text

from ctd_core.align.documents import SCORED, AlignedText, align_documents
from ctd_core.config.run import RunConfig
from ctd_core.errors import DocumentError
from ctd_core.text.corpora import read_documents
from ctd_core.text.corpora.slices import training_documents
from ctd_core.text.documents import Document
from ctd_core.text.prepared_tokenizer import PreparedTokenizer

SCORED_STYLES = ("black on bright_cyan", "black on bright_yellow")


@dataclass(frozen=True)
class ShownChunk:
    """A finest chunk as either side writes it, special tokens by their names; whether it is scored."""

    student: str
    teacher: str
    is_scored: bool


@dataclass(frozen=True)
class ShownDocument:
    """A document's chunks, or why it is dropped."""

    id: str
    chunks: list[ShownChunk]
    error: str | None = None


def show_documents(
    config: RunConfig, student: PreparedTokenizer, teacher: PreparedTokenizer, count: int
) -> Iterator[ShownDocument]:
    """The first documents that the run trains on, of the sources of a mixture in turn.

    Args:
        config: the run's options.
        student: the student's tokenizer.
        teacher: the teacher's tokenizer.
        count: how many.

    Yields:
        A document.
    """
    sources = [
        training_documents(config.corpus, read_documents(part, config.prepare.slice_bytes))
        for part in config.corpus.parts
    ]
    taken = chain.from_iterable(zip_longest(*sources))
    for document in islice((document for document in taken if document is not None), count):
        if isinstance(document, DocumentError):
            yield ShownDocument("", [], f"{document.reason}: {document}")
            continue
        yield _shown(document, student, teacher)


def _shown(document: Document, student: PreparedTokenizer, teacher: PreparedTokenizer) -> ShownDocument:
    (aligned,) = align_documents(student, teacher, [document])
    if isinstance(aligned, DocumentError):
        return ShownDocument(document.id, [], f"{aligned.reason}: {aligned}")
    return ShownDocument(document.id, list(_chunks(aligned, student, teacher)))


def _chunks(aligned: AlignedText, student: PreparedTokenizer, teacher: PreparedTokenizer) -> Iterator[ShownChunk]:
    begins = (0, 0)
    ends = zip(aligned.student_chunk_ends.tolist(), aligned.teacher_chunk_ends.tolist(), strict=True)
    for kind, (student_end, teacher_end) in zip(aligned.chunk_kinds.tolist(), ends, strict=True):
        yield ShownChunk(
            _text(student, aligned.student_ids[begins[0] : student_end].tolist()),
            _text(teacher, aligned.teacher_ids[begins[1] : teacher_end].tolist()),
            bool(kind & SCORED),
        )
        begins = (student_end, teacher_end)


def _text(tokenizer: PreparedTokenizer, ids: list[int]) -> str:
    token_bytes = tokenizer.encoder.token_bytes
    written = b""
    for token in ids:
        name = str(tokenizer.encoder.tokenizer.convert_ids_to_tokens(token)).encode()
        written += name if token_bytes.is_special[token] else token_bytes.by_id[token] or b""
    return written.decode(errors="backslashreplace")


def as_rich(document: ShownDocument, has_colours: bool) -> Text:
    """The document on both sides: scored chunks in alternating colours, or in brackets, all others dimmed."""
    shown = Text(f"{document.id}\n", "bold")
    if document.error is not None:
        return shown.append(f"dropped: {document.error}\n", "red")
    for side in ("student", "teacher"):
        shown.append(f"{side}: ", "bold")
        for number, chunk in enumerate(document.chunks):
            text = getattr(chunk, side).replace("\n", "⏎\n").replace("\t", "⇥")
            if chunk.is_scored:
                shown.append(text if has_colours else f"[{text}]", SCORED_STYLES[number % 2])
            else:
                shown.append(text, "dim")
        shown.append("\n")
    return shown
