"""A disk that fills up, without one."""

import resource
from contextlib import contextmanager


@contextmanager
def files_of_at_most(size_bytes):
    """As on a disk that fills up: writing beyond `size_bytes` of a file fails."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
