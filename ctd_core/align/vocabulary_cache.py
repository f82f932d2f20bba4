"""A cache of maps between vocabularies, which take minutes to compute."""

import hashlib
import io
from contextlib import suppress
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ctd_core.align.vocabulary import nearest_map
from ctd_core.storage.atomic import write_atomic
from ctd_core.text.token_bytes import TokenBytes

VERSION = 2  # of what nearest_map calculates


def cached_nearest_map(student: TokenBytes, teacher: TokenBytes, folder: Path | None) -> npt.NDArray[np.int32]:
    """`nearest_map`, cached in `folder` (None: not cached) by the fingerprint of the two tokenizers' bytes."""
    if folder is None:
        return nearest_map(student, teacher)
    file = folder / f"nearest-{_fingerprint(student, teacher)}.npy"
    with suppress(OSError, ValueError, EOFError):  # not there, or incomplete
        cached: npt.NDArray[np.int32] = np.load(file)
        return cached
    result = nearest_map(student, teacher)
    content = io.BytesIO()
    np.save(content, result)
    with suppress(OSError):  # a full disk: the next time calculates it again
        write_atomic(file, content.getvalue())
    return result


def _fingerprint(*both: TokenBytes) -> str:
    digest = hashlib.sha256(str(VERSION).encode())
    for token_bytes in both:
        digest.update(repr((len(token_bytes.by_id), token_bytes.by_id)).encode())
        digest.update(token_bytes.is_special.tobytes() + token_bytes.is_fallback.tobytes())
    return digest.hexdigest()[:16]
