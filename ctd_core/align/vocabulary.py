"""Which tokens of two vocabularies are the same bytes."""

import numpy as np
import numpy.typing as npt

from ctd_core.text.spelling import Spelling


def exact_map(student: Spelling, teacher: Spelling) -> npt.NDArray[np.int32]:
    """[U], for each teacher token the student token of the same bytes, −1 where there is none.

    Special tokens and tokens of no bytes have none. Where several tokens of one side have the same bytes, the last
    stands for them (a piece rather than a byte-fallback token, added text rather than a piece), as in encoding; so no
    student token is named twice.
    """
    mine, theirs = (
        {raw: token for token, raw in enumerate(side.token_bytes) if raw and not side.is_special[token]}
        for side in (student, teacher)
    )
    result = np.full(len(teacher.token_bytes), -1, dtype=np.int32)
    for raw, token in theirs.items():
        result[token] = mine.get(raw, -1)
    return result
