"""Getting hold of Ray, and errors that come back through it."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager

import ray
from ray.exceptions import RayError

from ctd_core.errors import CtdError, UsageError

# A checkpoint reported just before a worker dies is kept, and a report does not wait for the next poll.
os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")
os.environ.setdefault("RAY_TRAIN_ENABLE_PRINT_PATCH", "0")


def connect() -> None:
    """Join the cluster of RAY_ADDRESS or of this job, or start one on this machine; nothing where already joined."""
    if ray.is_initialized():
        return
    for name in ("ray.data", "ray.train"):
        logging.getLogger(name).setLevel(logging.ERROR)
    options = {} if "RAY_ADDRESS" in os.environ else {"include_dashboard": False}
    ray.init(log_to_driver=False, logging_level=logging.ERROR, **options)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False


@contextmanager
def own_errors() -> Iterator[None]:
    """Errors of ours raised on a worker come out as themselves, others of Ray as a CtdError that tells the cause."""
    try:
        yield
    except CtdError:
        raise
    except Exception as error:
        seen: BaseException | None = error
        while seen is not None:
            for candidate in (seen, getattr(seen, "cause", None), *getattr(seen, "worker_failures", {}).values()):
                if isinstance(candidate, CtdError):
                    raise (UsageError if isinstance(candidate, UsageError) else CtdError)(str(candidate)) from error
            seen = seen.__cause__ or seen.__context__
        if isinstance(error, RayError):
            raise CtdError(f"the work on the cluster failed: {error}") from error
        raise
