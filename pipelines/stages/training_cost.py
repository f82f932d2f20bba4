"""What a few steps of a run's training take on this machine."""

import gc
import resource
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch

from ctd_core.config.run import RunConfig
from ctd_core.evaluation.likelihoods import measure_likelihoods
from ctd_core.models.building import build_online_teacher, build_student, logprob_model, with_adapters
from ctd_core.models.loading import parameters
from ctd_core.shards.rows import RowSource
from ctd_core.text.prepared_tokenizer import PreparedTokenizer
from ctd_core.training.checkpoint import save_checkpoint
from ctd_core.training.loop import Hooks, train
from ctd_core.training.workers import Worker

STEPS = 3  # the first one, which is slower than the rest, does not count
STATE_COPIES = 3  # of every weight in a checkpoint: itself and AdamW's two means


@dataclass(frozen=True)
class TrainingCost:
    """What training in one process takes.

    make_seconds: to make the student. step_seconds: a step. save_seconds: a checkpoint on this machine's disk.
    peak_bytes: memory, with all that a worker holds. measured_bytes_per_second: of an evaluation set; 0 where none is.
    """

    make_seconds: float
    step_seconds: float
    save_seconds: float
    peak_bytes: int
    parameter_bytes: int
    measured_bytes_per_second: float


def measure_steps(
    config: RunConfig, shards: RowSource, student_tokenizer: PreparedTokenizer, teacher_tokenizer: PreparedTokenizer
) -> TrainingCost:
    """Make the student and train it for `STEPS` steps on the rows of a sample.

    Args:
        config: the run's options.
        shards: the sample, with the targets that the run asks for.
        student_tokenizer: of the student.
        teacher_tokenizer: of the teacher.

    Returns:
        What it took.
    """
    options = config.train
    device = torch.device("cuda" if options.use_gpu else "cpu")
    _reset_peak(device)
    start = time.monotonic()
    made = build_student(config.student, config.teacher, student_tokenizer, teacher_tokenizer)
    student = logprob_model(with_adapters(config.student, made, options.seed), student_tokenizer)
    make_seconds = time.monotonic() - start
    online = None
    if options.online_objectives:
        online = build_online_teacher(config.student, config.teacher, student, student_tokenizer, None, device)
    times: list[float] = []
    hooks = Hooks(lambda metrics: times.append(time.monotonic()), lambda metrics, write: None, lambda model: {})
    freeze = min((part.options.freeze for part in options.phases), key=len)  # of the part that learns the most
    few = options.model_copy(
        update={"steps": STEPS, "stages": [], "freeze": freeze, "evaluate_every": None, "checkpoint_every": None}
    )
    extra: dict[str | None, RowSource] = dict.fromkeys(config.extra_teachers, shards)
    train(few, student, shards, hooks, worker=Worker(device=device), online=online, extra_shards=extra)
    step_seconds, peak_bytes = (times[-1] - times[0]) / (len(times) - 1), _peak_bytes(device)
    speed = 0.0
    if config.evaluate.sets:
        start = time.monotonic()
        measured = measure_likelihoods(student, shards, config.evaluate.batch_tokens)
        speed = measured.text_bytes / (time.monotonic() - start)
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        save_checkpoint(folder, student, torch.optim.AdamW(student.parameters()), 0)
    save_seconds = STATE_COPIES * (time.monotonic() - start)  # AdamW has no means yet
    return TrainingCost(make_seconds, step_seconds, save_seconds, peak_bytes, 4 * parameters(student.model), speed)


def _reset_peak(device: torch.device) -> None:
    """Reset the peak of memory (that of a process on Linux alone)."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    else:
        with suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")


def _peak_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated()
    try:
        return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) * 1024
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
