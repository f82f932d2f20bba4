"""Maps between vocabularies that take minutes, kept for the next time."""

import hashlib
import io
from contextlib import suppress
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ctd_core.align.vocabulary import nearest_map
from ctd_core.storage.atomic import write_atomic
from ctd_core.text.spelling import Spelling

VERSION = 2  # of what nearest_map calculates


def kept_nearest_map(student: Spelling, teacher: Spelling, folder: Path | None) -> npt.NDArray[np.int32]:
    """`nearest_map`, kept in `folder` by the fingerprint of the two spellings where there is one."""
    if folder is None:
        return nearest_map(student, teacher)
    file = folder / f"nearest-{_fingerprint(student, teacher)}.npy"
    with suppress(OSError, ValueError, EOFError):  # not there, or not whole
        kept: npt.NDArray[np.int32] = np.load(file)
        return kept
    result = nearest_map(student, teacher)
    content = io.BytesIO()
    np.save(content, result)
    with suppress(OSError):  # a full disk: the next time calculates it again
        write_atomic(file, content.getvalue())
    return result


def _fingerprint(*spellings: Spelling) -> str:
    digest = hashlib.sha256(str(VERSION).encode())
    for spelling in spellings:
        digest.update(repr((len(spelling.token_bytes), spelling.token_bytes)).encode())
        digest.update(spelling.is_special.tobytes() + spelling.is_fallback.tobytes())
    return digest.hexdigest()[:16]
