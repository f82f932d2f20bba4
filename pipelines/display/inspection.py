"""What `ctd inspect` shows: the aligned chunks of one text, or merged chunks with the teacher's numbers."""

from dataclasses import asdict, dataclass

import torch
from rich.table import Table
from rich.text import Text

from ctd_core.align.chunks import FinestChunks, finest_chunks
from ctd_core.config.align import AnyChunks
from ctd_core.config.models import Teacher
from ctd_core.errors import DocumentError, UsageError
from ctd_core.evaluation.merged_text import MergedText, merged_text
from ctd_core.models.building import build_scorer
from ctd_core.models.model_config import max_positions
from ctd_core.models.scoring import score_rows
from ctd_core.shards.building import build_rows
from ctd_core.shards.manifest import check_dropped, check_student
from ctd_core.shards.reading import ShardSet
from ctd_core.shards.rows import MemoryRows
from ctd_core.text.documents import plain_document
from ctd_core.text.encoding import EncodedPair, TextEncoder, encode_pairs
from ctd_core.text.prepared_tokenizer import prepare_tokenizer
from ctd_core.text.tokenizers import load_tokenizer
from pipelines.display.chunk_rules import check_rules

COLOURS = ("black on bright_cyan", "black on bright_yellow")
UNLIMITED = 2**20  # tokens of a window that no text to look at reaches


@dataclass(frozen=True)
class Inspection:
    """A text's two encodings and the chunks on which they agree."""

    pair: EncodedPair
    chunks: FinestChunks


def inspect_text(student: str, teacher: str, text: str) -> Inspection:
    """Align `text` under two tokenizers by name. Raises TokenizerError or DocumentError where that cannot be."""
    student_encoder, teacher_encoder = (TextEncoder(load_tokenizer(name), name) for name in (student, teacher))
    (pair,) = encode_pairs(student_encoder, teacher_encoder, [text])
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


def inspect_shards(student: str, location: str, row: int, rule: AnyChunks) -> list[MergedText]:
    """The merged chunks of a row of prepared shards. Raises UsageError where there is no such row."""
    shards = ShardSet(location, verify=True)
    check_rules(shards, [rule])
    made_for = shards.manifest.origin.config.get("student", {"begin_token": None, "end_token": None})
    tokenizer = prepare_tokenizer(load_tokenizer(student), student, made_for["begin_token"], made_for["end_token"])
    check_student(shards.manifest, shards.name, tokenizer, len(tokenizer.encoder.token_bytes.by_id))
    try:
        return merged_text(shards, row, rule, tokenizer.encoder.token_bytes)
    except IndexError as error:
        raise UsageError(f"--row {row}: {location} has the rows 0 to {len(shards) - 1}.") from error


def inspect_scored(student: str, teacher: str, text: str, rule: AnyChunks) -> list[MergedText]:
    """The merged chunks of `text`, scored by the model in `teacher`."""
    student_tokenizer, teacher_tokenizer = (
        prepare_tokenizer(load_tokenizer(name), name, None, None) for name in (student, teacher)
    )
    rows, counts = build_rows(
        student_tokenizer, teacher_tokenizer, [plain_document("text", text)], UNLIMITED, UNLIMITED
    )
    check_dropped(counts, 0)
    if not rows.num_rows:
        raise UsageError("the text is empty, so there is nothing to merge.")
    longest = max_positions(teacher)
    if longest is not None and counts.teacher_tokens > longest:
        raise UsageError(f"{teacher} reads {longest} tokens at most, and the text has {counts.teacher_tokens}.")
    scorer = build_scorer(Teacher(model=teacher), teacher_tokenizer, torch.device("cpu"))
    scored = MemoryRows("the text", [score_rows(scorer, rows, UNLIMITED)], counts)
    return merged_text(scored, 0, rule, student_tokenizer.encoder.token_bytes)


def merged_as_json(merged: list[MergedText]) -> dict[str, object]:
    """The object that `--json` prints for merged chunks."""
    shown = [asdict(chunk) | {"text": chunk.text_bytes.decode(errors="replace")} for chunk in merged]
    return {"chunks": [chunk | {"bytes": chunk.pop("text_bytes").hex()} for chunk in shown]}


def merged_as_table(merged: list[MergedText]) -> Table:
    """A line for each merged chunk."""
    table = Table()
    for column in ("chunk", "student tokens", "teacher tokens", "teacher log-likelihood", "boundary probability"):
        table.add_column(column, justify="left" if column == "chunk" else "right")
    for chunk in merged:
        text = repr(chunk.text_bytes.decode(errors="backslashreplace"))[1:-1] if chunk.text_bytes else "(marker)"
        numbers = (
            "" if value is None else f"{value:.3f}" for value in (chunk.teacher_logprob, chunk.boundary_probability)
        )
        style = None if chunk.scored else "dim"
        table.add_row(Text(text), str(chunk.student_tokens), str(chunk.teacher_tokens), *numbers, style=style)
    return table


def as_rich(inspection: Inspection, has_colours: bool) -> Text:
    """The text with its chunks in alternating colours, or with a │ between them, and a line of figures."""
    pair, ends = inspection.pair, inspection.chunks.byte_ends.tolist()
    shown = Text()
    for number, (start, end) in enumerate(zip([0, *ends], ends, strict=False)):
        chunk = pair.text_bytes[start:end].decode(errors="backslashreplace")
        if number and not has_colours:
            shown.append("│")
        shown.append(chunk.replace("\n", "⏎\n").replace("\t", "⇥"), COLOURS[number % 2])
    mean = len(pair.text_bytes) / max(len(ends), 1)
    shown.append(
        f"\n\n{len(ends)} chunks of {mean:.2f} bytes on average; "
        f"{len(pair.student.ids)} student tokens, {len(pair.teacher.ids)} teacher tokens\n"
    )
    return shown
