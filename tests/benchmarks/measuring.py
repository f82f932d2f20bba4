"""Time and peak memory of two ways to do the same work, in one process and in turns."""

import ctypes
import gc
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

# Models are measured on the GPU where there is one: its time, and its memory.
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
AUTOCAST = torch.bfloat16 if DEVICE.type == "cuda" else None
Work = Callable[[], object]


@dataclass(frozen=True)
class Ratio:
    """How much of the baseline's time and peak memory the work takes."""

    time: float
    memory: float


def seconds(work: Work, repeats: int = 2) -> float:
    """The best of some runs, in seconds."""
    return min(_timed(work) for _ in range(repeats))


def compare(work: Work, baseline: Work, repeats: int = 3) -> Ratio:
    """Ratios of the best times and the least peaks of some runs in turns, after one of each that does not count."""
    work(), baseline()
    times: dict[Work, list[float]] = {work: [], baseline: []}
    peaks: dict[Work, list[int]] = {work: [], baseline: []}
    for _ in range(repeats):
        for run in (work, baseline):
            peaks[run].append(_peak(run, times[run]))
    return Ratio(min(times[work]) / min(times[baseline]), min(peaks[work]) / max(min(peaks[baseline]), 1))


def _timed(work: Work) -> float:
    _wait()
    start = time.perf_counter()
    work()
    _wait()
    return time.perf_counter() - start


def _peak(work: Work, times: list[float]) -> int:
    """The bytes by which a run raises the memory of the GPU, or the resident memory of this process (Linux) where there
    is none; its time goes into `times`.
    """
    gc.collect()
    if DEVICE.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        held = torch.cuda.memory_allocated()
        times.append(_timed(work))
        return torch.cuda.max_memory_allocated() - held
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # the kernel's high-water mark starts again
    before = _status_bytes("VmRSS")
    times.append(_timed(work))
    return _status_bytes("VmHWM") - before


def _wait() -> None:
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()


def _status_bytes(field: str) -> int:
    status = Path("/proc/self/status").read_text()
    return int(status.split(f"{field}:")[1].split()[0]) * 1024
