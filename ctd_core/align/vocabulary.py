"""Which tokens of two vocabularies are the same bytes."""

import numpy as np
import numpy.typing as npt

from ctd_core.text.token_bytes import TokenBytes, ids_by_bytes

NEAREST_AT_ONCE = 256  # rows of a matrix of distances


def exact_map(student: TokenBytes, teacher: TokenBytes) -> npt.NDArray[np.int32]:
    """[U], for each teacher token the student token of the same bytes, −1 where there is none.

    Special tokens and tokens of no bytes have none. Where several tokens of one side have the same bytes, one of them
    stands for all (see ids_by_bytes), so no student token is named twice.
    """
    student_ids, teacher_ids = ids_by_bytes(student), ids_by_bytes(teacher)
    result = np.full(len(teacher.by_id), -1, dtype=np.int32)
    for raw, token in teacher_ids.items():
        result[token] = student_ids.get(raw, -1)
    return result


def nearest_map(student: TokenBytes, teacher: TokenBytes) -> npt.NDArray[np.int32]:
    """[U], for each teacher token the student token of the least edit distance in bytes; the same bytes have none.

    Special tokens and ids without a token have no student token: −1. Of several equally near ones, the shortest and
    then the first is taken. Levenshtein distances are rapidfuzz's.
    """
    from rapidfuzz import process
    from rapidfuzz.distance import Levenshtein

    result = exact_map(student, teacher)
    student_texts, teacher_texts = _spelled(student), _spelled(teacher)
    order = np.array(
        sorted((token for token, text in enumerate(student_texts) if text), key=lambda token: len(student_texts[token]))
    )
    choices = [student_texts[token] for token in order]
    unmatched = [token for token, text in enumerate(teacher_texts) if text and result[token] < 0]
    for start in range(0, len(unmatched), NEAREST_AT_ONCE):
        tokens = unmatched[start : start + NEAREST_AT_ONCE]
        spelled = [teacher_texts[token] for token in tokens]
        distances = process.cdist(spelled, choices, scorer=Levenshtein.distance, workers=-1, dtype=np.uint16)
        result[tokens] = order[distances.argmin(1)]
    return result


def _spelled(side: TokenBytes) -> list[str]:
    """A character for each byte of every token, none for special tokens and ids without one."""
    plain = zip(side.by_id, side.is_special, strict=True)
    return [raw.decode("latin-1") if raw and not is_special else "" for raw, is_special in plain]
