"""Locks of a run's stages: a second command waits, and logs for whom."""

import fcntl
import json
import logging
import os
import platform
import time
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any, TextIO

from ctd_core.errors import CtdError
from ctd_core.storage.locations import below, delete_file, is_uri, open_to_read, write_text
from pipelines.artifacts.background import repeating
from pipelines.artifacts.remote_copy import RunFiles

logger = logging.getLogger(__name__)

LOCK = ".lock-"  # the beginning of the locks' names, in a run's directory
RENEW_SECONDS = 30.0  # between signs of life in a store
LEASE_SECONDS = 150.0  # without one, after which a holder counts as killed
POLL_SECONDS = 1.0
READ_TRIES = 5


@contextmanager
def stage_lock(files: RunFiles, stage: str) -> Iterator[None]:
    """Hold the lock of a stage of a run, on this machine and, where the run lies in a store, there too.

    Another command logs who holds it and since when, and waits. A killed holder's lock is free at once on its
    machine; in a store, once it has given no sign of life for LEASE_SECONDS.
    """
    path = files.directory / f"{LOCK}{stage}"
    with _opened(path) as file:
        _wait_for_machine(file, path, stage)
        file.truncate(0)
        file.write(json.dumps(_holder()))
        file.flush()
        if files.store is None:
            yield
            return
        with _lease(files.within(path), stage):
            yield


def is_held(storage: str, locks: Iterable[str]) -> bool:
    """Whether a command holds any of the `locks`, files below `storage`, a directory of this machine or a URI."""
    for lock in locks:
        if is_uri(storage):
            if _is_alive(_read(below(storage, lock))):
                return True
            continue
        with suppress(FileNotFoundError), (Path(storage) / lock).open() as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
    return False


def _opened(path: Path) -> TextIO:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return path.open("a+")
    except OSError as error:
        raise CtdError(f"{path.parent}: cannot be written ({error}). Choose another output.") from error


def _wait_for_machine(file: Any, path: Path, stage: str) -> None:
    is_logged = False
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if not is_logged:
                _log_holder(stage, path.read_text(encoding="utf-8"))
                is_logged = True
            time.sleep(POLL_SECONDS)


@contextmanager
def _lease(location: str, stage: str) -> Iterator[None]:
    """Hold a file in a store that is written again as long as this process lives."""
    is_logged = False
    while _is_alive(held := _read(location)):
        if not is_logged:
            _log_holder(stage, json.dumps(held))
            is_logged = True
        time.sleep(5 * POLL_SECONDS)
    own = _holder()
    _write(location, own)
    time.sleep(POLL_SECONDS)  # of two that begin at the same moment, the one that wrote last has it
    if not _is_own(_read(location), own):
        with _lease(location, stage):
            yield
        return

    def renew() -> None:
        with suppress(CtdError):  # the store may answer again before the lease ends
            if _is_own(_read(location), own):  # else this process slept so long that another has taken it
                _write(location, own | {"alive": time.time()})

    try:
        with repeating(RENEW_SECONDS, renew):
            yield
    finally:
        with suppress(CtdError):
            if _is_own(_read(location), own):
                delete_file(location)


def _holder() -> dict[str, Any]:
    since = datetime.now().astimezone().isoformat(timespec="seconds")
    identity = uuid.uuid4().hex  # in containers, names of machines and numbers of processes repeat
    return {
        "machine": platform.node(), "process": os.getpid(), "id": identity, "since": since, "alive": time.time(),
    }  # fmt: skip


def _is_alive(held: dict[str, Any] | None) -> bool:
    """Whether the holder of a lease has given a sign of life of late."""
    return held is not None and time.time() - held.get("alive", 0.0) < LEASE_SECONDS


def _is_own(held: dict[str, Any] | None, own: dict[str, Any]) -> bool:
    return held is not None and held.get("id") == own["id"]


def _log_holder(stage: str, holder: str) -> None:
    who = "another process"
    with suppress(ValueError, KeyError, TypeError):
        held = json.loads(holder)
        who = f"process {held['process']} on {held['machine']}, since {held['since']}"
    logger.info(
        f"{stage.partition('-')[0]}: this run is being worked on by {who}. Waiting for its end; Ctrl-C leaves it alone."
    )


def _read(location: str) -> dict[str, Any] | None:
    """The lease, None where there is none; raises CtdError where the store does not answer."""
    for left in reversed(range(READ_TRIES)):
        try:
            with open_to_read(location) as stream:
                held: dict[str, Any] = json.loads(stream.read())
                return held
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:  # also half-written by a holder that renews it
            if not left:
                raise CtdError(f"{location}: cannot be read ({error}). Run the same command again.") from error
            time.sleep(POLL_SECONDS)
    return None


def _write(location: str, held: dict[str, Any]) -> None:
    write_text(location, json.dumps(held))
