"""What `ctd inspect` shows: the aligned chunks of one text."""

from dataclasses import dataclass

from rich.text import Text

from ctd_core.align.chunks import FinestChunks, finest_chunks
from ctd_core.errors import DocumentError
from ctd_core.text.encoding import EncodedPair, TextEncoder, encode_pairs
from ctd_core.text.tokenizers import load_tokenizer

COLOURS = ("black on bright_cyan", "black on bright_yellow")


@dataclass(frozen=True)
class Inspection:
    """A text's two encodings and the chunks on which they agree."""

    pair: EncodedPair
    chunks: FinestChunks


def inspect_text(student: str, teacher: str, text: str) -> Inspection:
    """Align `text` under two tokenizers by name. Raises TokenizerError or DocumentError where that cannot be."""
    encoders = [TextEncoder(load_tokenizer(name), name) for name in (student, teacher)]
    (pair,) = encode_pairs(*encoders, [text])
    if isinstance(pair, DocumentError):
        raise pair
    (chunks,) = finest_chunks([pair.student.byte_ends], [pair.teacher.byte_ends])
    return Inspection(pair, chunks)


def as_json(inspection: Inspection) -> dict[str, object]:
    """The object that `--json` prints; `text` has U+FFFD where a chunk ends inside a character, `bytes` is exact."""
    pair, chunks = inspection.pair, inspection.chunks
    rows: list[dict[str, object]] = []
    student_start = teacher_start = byte_start = 0
    for student_end, teacher_end, byte_end in zip(
        chunks.student_ends, chunks.teacher_ends, chunks.byte_ends, strict=True
    ):
        raw = pair.text_bytes[byte_start:byte_end]
        rows.append({
            "student_ids": pair.student.ids[student_start:student_end].tolist(),
            "teacher_ids": pair.teacher.ids[teacher_start:teacher_end].tolist(),
            "text": raw.decode(errors="replace"),
            "bytes": raw.hex(),
        })  # fmt: skip
        student_start, teacher_start, byte_start = student_end, teacher_end, byte_end
    return {
        "chunks": rows,
        "student_tokens": len(pair.student.ids),
        "teacher_tokens": len(pair.teacher.ids),
        "aligned_fraction": int(byte_start) / len(pair.text_bytes) if pair.text_bytes else 1.0,
    }


def as_rich(inspection: Inspection) -> Text:
    """The text with its chunks in alternating colours, and a line of figures."""
    pair, ends = inspection.pair, inspection.chunks.byte_ends.tolist()
    shown = Text()
    for number, (start, end) in enumerate(zip([0, *ends], ends, strict=False)):
        chunk = pair.text_bytes[start:end].decode(errors="backslashreplace")
        shown.append(chunk.replace("\n", "⏎\n").replace("\t", "⇥"), COLOURS[number % 2])
    mean = len(pair.text_bytes) / max(len(ends), 1)
    shown.append(
        f"\n\n{len(ends)} chunks of {mean:.2f} bytes on average; "
        f"{len(pair.student.ids)} student tokens, {len(pair.teacher.ids)} teacher tokens\n"
    )
    return shown
