"""`make bench`: every figure is a ratio against a baseline measured in the same run.

Alignment and its baseline share a process; log-probabilities and theirs have one each, for the sake of the peaks.
"""

import inspect
import pkgutil
import sys
import time
from collections.abc import Callable
from importlib import import_module
from multiprocessing import get_context
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from ctd_core.align.chunks import finest_chunks
from ctd_core.models.logprobs import Head, token_and_boundary_logprobs
from ctd_core.text.encoding import EncodedPair, TextEncoder, encode_pairs
from ctd_core.text.tokenizers import train_tokenizer

ROWS, HIDDEN = 256, 576


def seconds(work: Callable[[], object], repeats: int = 2) -> float:
    """The best of some runs, in seconds."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return min(times)


def peak_memory_bytes() -> int:
    """The most memory this process ever held (Linux). Unlike ru_maxrss, not inherited from the parent."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024


def standard_library_source() -> list[str]:
    """Source text of the standard library's modules in pieces of 2,000 characters."""
    texts = []
    for name in sorted(module.name for module in pkgutil.iter_modules() if module.name in sys.stdlib_module_names):
        if name in {"this", "antigravity", "idlelib", "__phello__"}:
            continue
        try:
            source = inspect.getsource(import_module(name))
        except (OSError, TypeError, ImportError):
            continue
        texts += [source[at : at + 2000] for at in range(0, len(source), 2000)]
    return texts


def alignment_share() -> tuple[float, float]:
    """Aligning, and encoding with verification, against tokenizing the same texts with both tokenizers."""
    texts = standard_library_source()
    student = TextEncoder(train_tokenizer(texts[:500], 8192), "student")
    teacher = TextEncoder(train_tokenizer(texts[500:1500], 32000), "teacher")

    def tokenize() -> None:
        for side in (student, teacher):
            side.tokenizer.backend_tokenizer.encode_batch_fast(texts, add_special_tokens=False)

    baseline = seconds(tokenize)
    pairs = [pair for pair in encode_pairs(student, teacher, texts) if isinstance(pair, EncodedPair)]
    ends = [pair.student.byte_ends for pair in pairs], [pair.teacher.byte_ends for pair in pairs]
    encoding = seconds(lambda: encode_pairs(student, teacher, texts))
    return seconds(lambda: finest_chunks(*ends)) / baseline, encoding / baseline


def logprobs(vocabulary: int, fused: bool, boundary: bool) -> tuple[float, int]:
    """Seconds of a forward and backward pass, and the bytes by which it raised the peak of a fresh process."""
    random = torch.Generator().manual_seed(0)
    hidden = torch.randn(ROWS, HIDDEN, generator=random).requires_grad_()
    weight = (torch.randn(vocabulary, HIDDEN, generator=random) * 0.05).requires_grad_()
    targets = torch.randint(0, vocabulary, (ROWS,), generator=random)
    mask = torch.arange(vocabulary) % 2 == 0
    rows = torch.arange(ROWS) if boundary else torch.arange(0)

    def step() -> None:
        hidden.grad = weight.grad = None
        if fused:
            token, bounds = token_and_boundary_logprobs(hidden, Head(weight), targets, mask, rows)
        else:
            every = (hidden @ weight.T).log_softmax(1)
            token = every.gather(1, targets[:, None])
            bounds = every[rows].masked_fill(~mask, -torch.inf).logsumexp(1) if boundary else token[:0]
        (token.sum() + bounds.sum()).backward()

    before = peak_memory_bytes()
    step()
    peak = peak_memory_bytes() - before
    return seconds(step), peak


def main() -> None:
    table = Table("figure", "ratio", "aim", title="Ratios; lower is better")
    aligning, encoding = alignment_share()
    table.add_row("alignment : tokenizing with both tokenizers", f"{aligning:.3f}", "≤ 0.05")
    table.add_row("encoding with verification : tokenizing with both", f"{encoding:.3f}", "")
    for vocabulary in (8192, 50_000, 150_000):
        for boundary in (False, True):
            # Peaks are those of whole processes, so every measurement has its own.
            with get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
                cases = [(vocabulary, fused, boundary) for fused in (True, False)]
                (time_fused, peak_fused), (time_full, peak_full) = pool.starmap(logprobs, cases, chunksize=1)
            label = f"fused : full logits, V = {vocabulary:,}, {'with' if boundary else 'without'} boundary terms"
            table.add_row(f"{label}, time", f"{time_fused / time_full:.2f}", "")
            table.add_row(f"{label}, peak memory", f"{peak_fused / peak_full:.2f}", "")
    Console(width=110).print(table)


if __name__ == "__main__":
    main()
