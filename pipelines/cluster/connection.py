"""Connecting to Ray, and errors that come back through it."""

import logging
import os
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeGuard

import ray
import ray.data
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from ctd_core.errors import CtdError, UsageError
from ctd_core.training.step import FailedElsewhere
from pipelines.cluster.ray_internals import groups_of_their_own, is_worker_process, resources_of_machine

JOINING = threading.Lock()  # a thread may make texts while the main one trains


def connect(
    cpus: float, gpus: float, fields: str, others: Mapping[str, float] | None = None, dashboard: bool = False
) -> None:
    """Join the cluster of RAY_ADDRESS or of this job, or start one on this machine, with its dashboard where asked.

    Raises UsageError, naming `fields`, where a cluster of this machine alone could never hold `cpus` and `gpus` at
    once, or has none of `others`, resources by the name that a cluster gives them; one that was joined may grow.
    """
    _join(dashboard)
    check_machine(cpus, gpus, fields, others)


def check_machine(cpus: float, gpus: float, fields: str, others: Mapping[str, float] | None = None) -> None:
    """Raises UsageError as `connect`, without starting Ray."""
    if not is_local():
        return
    if others:
        raise UsageError(
            f"{', '.join(others)}: this machine has no such resource. Ask for none, or set RAY_ADDRESS to a cluster."
        )
    there = ray.cluster_resources() if ray.is_initialized() else resources_of_machine()
    has = [there.get(name, 0.0) for name in ("CPU", "GPU")]
    if cpus > has[0] or gpus > has[1]:
        raise UsageError(
            f"{fields} ask for {cpus:g} CPUs and {gpus:g} GPUs at once; this machine has {has[0]:g} and {has[1]:g}. "
            "Ask for less, or set RAY_ADDRESS to a cluster."
        )


def stop_local_ray() -> None:
    """Stop a Ray that this command started, so that what follows has all of the machine."""
    if ray.is_initialized() and is_local():
        ray.shutdown()


def actor_on_driver(actor: type) -> ray.actor.ActorHandle[Any]:
    """A small actor on the machine of this command, so that it is there for as long as the command."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    made: Any = ray.remote(num_cpus=0)(actor)
    handle: ray.actor.ActorHandle[Any] = made.options(scheduling_strategy=here).remote()
    return handle


def is_local() -> bool:
    """Whether Ray is, or would be, one that this very command starts on this machine; a worker does not know, so no."""
    return os.environ.get("RAY_ADDRESS", "") in ("", "local") and not is_worker_process()


def is_driver() -> bool:
    """Whether this process is a command, and no worker of Ray's."""
    return not is_worker_process()


def _join(dashboard: bool) -> None:
    with JOINING:
        if not ray.is_initialized():
            _start(dashboard)


def _start(dashboard: bool) -> None:
    options: dict[str, Any] = {"address": "local", "include_dashboard": dashboard} if is_local() else {}
    options |= {"runtime_env": {"worker_process_setup_hook": "pipelines.cluster.worker_setup.name_cluster"}}
    try:
        with _without("Set ray log level"), groups_of_their_own():
            ray.init(log_to_driver=False, logging_level=logging.ERROR, **options)
    except ConnectionError as error:
        raise CtdError(f"RAY_ADDRESS: {os.environ.get('RAY_ADDRESS')}: no cluster answers there ({error}).") from error
    if threading.current_thread() is threading.main_thread() and is_driver():
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # Ray's own handler ends in an abort of its core
    for name in ("ray", "ray.data", "ray.train"):  # Ray Data sets its loggers up when it is imported
        logging.getLogger(name).setLevel(logging.ERROR)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False


@contextmanager
def _without(words: str) -> Iterator[None]:
    """Drop lines with `words`, which Ray's core writes before it heeds its log level, from standard error."""
    sys.stderr.flush()
    with os.fdopen(os.dup(2), "wb", buffering=0) as stderr, tempfile.TemporaryFile() as written:
        os.dup2(written.fileno(), 2)
        try:
            yield
        finally:
            sys.stderr.flush()
            os.dup2(stderr.fileno(), 2)
            written.seek(0)
            stderr.write(b"".join(line for line in written if words.encode() not in line))


def _is_ours(error: object) -> TypeGuard[CtdError]:
    """Whether it is a CtdError, and not Ray's of one, which has a traceback in its words."""
    return isinstance(error, CtdError) and not isinstance(error, RayError)


@contextmanager
def reraised_errors() -> Iterator[None]:
    """Re-raise a worker's CtdError unchanged, and other errors of Ray as a CtdError that names the cause."""
    try:
        yield
    except Exception as error:
        if _is_ours(error):
            raise
        found: list[CtdError] = []
        seen: BaseException | None = error
        while seen is not None:
            candidates = (seen, getattr(seen, "cause", None), *getattr(seen, "worker_failures", {}).values())
            found += [candidate for candidate in candidates if _is_ours(candidate)]
            seen = seen.__cause__ or seen.__context__
        if found:
            first = next((error for error in found if not isinstance(error, FailedElsewhere)), found[0])
            raise (UsageError if isinstance(first, UsageError) else CtdError)(str(first)) from error
        from ray.train import TrainingFailedError  # takes seconds, and only trainings need it

        if isinstance(error, (RayError, TrainingFailedError)):
            raise CtdError(f"the work on the cluster failed: {error}") from error
        raise
