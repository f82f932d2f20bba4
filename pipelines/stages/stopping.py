"""Trainings that are asked to end, by Ctrl-C or by SIGTERM, as spot machines get it: a checkpoint, and they stop.

Asked a second time, the command ends at once.
"""

import logging
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import ray

from pipelines.cluster.connection import is_driver

logger = logging.getLogger(__name__)


@contextmanager
def stop_signals() -> Iterator[Callable[[], bool]]:
    """Whether this process was asked to end; where Ray ends it, as it does its workers, it never is."""
    asked = threading.Event()
    if not hears_signals():
        yield asked.is_set
        return

    def note(number: int, frame: object) -> None:
        if asked.is_set():
            raise KeyboardInterrupt
        asked.set()
        logger.info("train: stopping after this step, with a checkpoint; again to stop at once")

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield asked.is_set
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def hears_signals() -> bool:
    """Whether a signal for the command comes here."""
    is_main = threading.current_thread() is threading.main_thread()
    return is_main and (is_driver() or not ray.is_initialized())


class Switch:
    """An actor that the workers of one training ask after each step, so that all of them stop after the same one."""

    def __init__(self) -> None:
        self._seen = 0
        self._last: int | None = None

    def turn(self) -> None:
        """Stop after the first step that no worker has asked about yet."""
        if self._last is None:
            self._last = self._seen + 1

    def stops_after(self, step: int) -> bool:
        """Whether to stop after `step`."""
        self._seen = max(self._seen, step)
        return self._last is not None and step >= self._last


def run_stoppable(work: Callable[[], Any], switch: ray.actor.ActorHandle[Any]) -> bool:
    """Do `work`, and turn `switch` when the command is asked to end; whether it was.

    In a thread: Ray Train would take the signals for itself in the main one.
    """
    failed: list[BaseException] = []
    done = threading.Event()

    def run() -> None:
        try:
            work()
        except BaseException as error:
            failed.append(error)
        finally:
            done.set()

    with stop_signals() as is_asked:
        threading.Thread(target=run, daemon=True).start()
        turned = False
        while not done.wait(0.2):
            if is_asked() and not turned:
                ray.get(switch.turn.remote())
                turned = True
    if failed:
        raise failed[0]
    return turned
