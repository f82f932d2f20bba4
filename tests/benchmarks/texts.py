"""Ratios of the text stages: aligning, and preparing a corpus on Ray Data."""

import json
import tempfile
from pathlib import Path

from rich.table import Table
from transformers import LlamaConfig

from ctd_core.align.chunks import finest_chunks
from ctd_core.config.run import RunConfig
from ctd_core.text.encoding import EncodedPair, TextEncoder, encode_pairs
from ctd_core.text.tokenizers import load_tokenizer, train_tokenizer
from pipelines.artifacts.run_plan import RunPlan, plan_run
from pipelines.cluster.connection import connect
from pipelines.stages.prepare import prepare
from tests.benchmarks.measuring import seconds
from tests.benchmarks.source import standard_library_source
from tests.support.chat_templates import CHATML

CORPUS_BYTES = 63_000_000
REPEATS = 3


def add_rows(table: Table) -> None:
    """Figures (a) and (b)."""
    texts = standard_library_source()
    with tempfile.TemporaryDirectory() as folder:
        train_tokenizers(texts, Path(folder))
        aligning, encoding = alignment_shares(texts, Path(folder))
        table.add_row("a", "alignment : tokenizing with both tokenizers, time", f"{aligning:.3f}", "≤ 0.05")
        table.add_row("", "encoding with verification : tokenizing with both, time", f"{encoding:.3f}", "")
        warm, cold = preparing(texts, Path(folder))
        table.add_row("b", "prepare : bare loop that tokenizes twice, documents/s", f"{warm:.2f}", "≥ 0.7")
        table.add_row("", "the same with Ray's start", f"{cold:.2f}", "")
        chat = preparing_chat(texts, Path(folder))
        table.add_row("", "prepare, conversations : plain text of the same bytes, documents/s", f"{chat:.2f}", "≥ 0.8")


def preparing_chat(texts: list[str], folder: Path) -> float:
    """Documents a second of `prepare` without targets on conversations, against plain text of the same contents."""
    documents = [(text[:1000], text[1000:]) for text in texts if len(text) == 2000] * 3
    roles = ("user", "assistant")
    messages = [
        [{"role": role, "content": part} for role, part in zip(roles, parts, strict=True)] for parts in documents
    ]
    rows: dict[str, list[dict[str, object]]] = {
        "plain": [{"text": "".join(parts)} for parts in documents],
        "chat": [{"messages": conversation} for conversation in messages],
    }
    took: dict[str, list[float]] = {name: [] for name in rows}
    connect(1, 0, "")
    for number in range(REPEATS):  # in turn: the machine's pace changes
        for name, lines in rows.items():
            file = folder / f"{name}-{number}.jsonl"
            file.write_text("".join(json.dumps(line) + "\n" for line in lines))
            plan = run_without_targets(folder, file, **({"messages": "messages"} if name == "chat" else {}))
            took[name].append(seconds(lambda plan=plan: prepare(plan), repeats=1))
    return min(took["plain"]) / min(took["chat"])


def train_tokenizers(texts: list[str], folder: Path) -> None:
    """The tokenizers of `run_without_targets`."""
    for name, start, stop, size in (("student", 0, 500, 8192), ("teacher", 500, 1500, 32000)):
        tokenizer = train_tokenizer(texts[start:stop], size)
        tokenizer.add_tokens(["<|im_start|>", "<|im_end|>"], special_tokens=True)
        tokenizer.chat_template = CHATML
        tokenizer.save_pretrained(folder / name)
        LlamaConfig(vocab_size=len(tokenizer)).save_pretrained(folder / name)


def run_without_targets(folder: Path, corpus: Path, **options: str) -> RunPlan:
    """A run that prepares JSON lines with the tokenizers in `folder`, and asks no teacher."""
    config = {
        "name": corpus.stem,
        "output": str(folder / "runs"),
        "student": {"tokenizer": {"kind": "pretrained", "name": str(folder / "student")}},
        "teacher": {"model": str(folder / "teacher")},
        "corpus": {"kind": "jsonl", "paths": [str(corpus)], **options},
        "prepare": {"targets": False},
        "train": {"steps": 1, "objectives": [{"kind": "sft"}]},
    }
    return plan_run(RunConfig.model_validate(config))


def alignment_shares(texts: list[str], folder: Path) -> tuple[float, float]:
    """Aligning, and encoding with verification, against tokenizing the same texts with both tokenizers."""
    student, teacher = (TextEncoder(load_tokenizer(str(folder / name)), name) for name in ("student", "teacher"))
    baseline = seconds(lambda: tokenize(folder, texts))
    pairs = [pair for pair in encode_pairs(student, teacher, texts) if isinstance(pair, EncodedPair)]
    ends = [pair.student.byte_ends for pair in pairs], [pair.teacher.byte_ends for pair in pairs]
    encoding = seconds(lambda: encode_pairs(student, teacher, texts))
    return seconds(lambda: finest_chunks(*ends)) / baseline, encoding / baseline


def tokenize(folder: Path, texts: list[str]) -> None:
    """The bare loop: both tokenizers over all texts, on all cores."""
    for name in ("student", "teacher"):
        backend = load_tokenizer(str(folder / name)).backend_tokenizer
        for start in range(0, len(texts), 256):
            backend.encode_batch_fast(texts[start : start + 256], add_special_tokens=False)


def preparing(texts: list[str], folder: Path) -> tuple[float, float]:
    """Documents a second of `prepare` without targets against the bare loop, without and with Ray's start."""
    corpus = (texts * (CORPUS_BYTES // sum(map(len, texts)) + 1))[: CORPUS_BYTES // 2000 + 1]
    while sum(map(len, corpus)) < CORPUS_BYTES:
        corpus += texts[:100]
    file = folder / "corpus.jsonl"
    with file.open("w") as stream:
        stream.writelines(json.dumps({"text": text}) + "\n" for text in corpus)

    def loop() -> None:
        with file.open() as stream:
            tokenize(folder, [json.loads(line)["text"] for line in stream])

    start = seconds(lambda: connect(1, 0, ""), repeats=1)
    bare, took = [], []
    for number in range(REPEATS):  # in turn: the machine's pace changes
        bare.append(seconds(loop, repeats=1))
        again = file.rename(folder / f"corpus-{number}.jsonl")  # another run
        took.append(seconds(lambda again=again: prepare(run_without_targets(folder, again)), repeats=1))
        file = again
    return min(bare) / min(took), min(bare) / (min(took) + start)
