"""What each step of a training measured, written into metrics.jsonl, and the same for TensorBoard."""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary

from ctd_core.storage.atomic import write_atomic
from pipelines.artifacts.metrics_file import EVALUATION, read_metrics, step_words

FLUSH_SECONDS = 10.0  # between writes of what TensorBoard reads


class MetricsLog:
    """metrics.jsonl: one line a step. A run starts after `done` steps: the lines after these are taken away first.

    Each figure goes to TensorBoard's events in the same directory too, under the same name. (tensorboardX's
    SummaryWriter blocks for ever once its thread met a full disk, so events are written here, without one.)
    """

    def __init__(self, file: Path, done: int) -> None:
        kept = [line for line in read_metrics(file) if line["step"] <= done]
        write_atomic(file, "".join(json.dumps(line) + "\n" for line in kept), temporary="metrics.partial")
        self._file, self._last = file, time.monotonic()
        self._events = EventsWriter(str(file.parent / "events"), filename_suffix=f".{done}")
        begins = SessionLog(status=SessionLog.START)  # TensorBoard forgets what it saw from this step on
        self._events.write_event(Event(step=done + 1, wall_time=time.time(), session_log=begins))
        self._flushed = self._last

    def add(self, metrics: dict[str, float], evaluation: str | None = None) -> str:
        """Append a step; returns it in a few words. `evaluation`: the fingerprint of the sets it was measured on."""
        now = time.monotonic()
        seconds, self._last = now - self._last, now
        line = metrics | {"seconds": seconds, "tokens_per_second": metrics["tokens"] / seconds}
        with self._file.open("a") as stream:
            stream.write(json.dumps(line if evaluation is None else line | {EVALUATION: evaluation}) + "\n")
        values = [Summary.Value(tag=name, simple_value=value) for name, value in line.items()]
        event = Event(step=int(metrics["step"]), wall_time=time.time(), summary=Summary(value=values))
        self._events.write_event(event)
        if now - self._flushed > FLUSH_SECONDS:
            self._events.flush()
            self._flushed = now
        return step_words(line)

    @contextmanager
    def pause(self) -> Iterator[None]:
        """What is done inside is no part of a step's time."""
        begin = time.monotonic()
        try:
            yield
        finally:
            self._last += time.monotonic() - begin

    def close(self) -> None:
        """Write what TensorBoard has not seen yet."""
        self._events.close()
