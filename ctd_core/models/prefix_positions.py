"""Where the teacher's next-token distribution tells what the student's next token is."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ctd_core.align.documents import SCORED
from ctd_core.align.spelling_trie import Ids, SpellingTrie, spelling_trie
from ctd_core.models.transfer import old_tokens
from ctd_core.text.prepared_tokenizer import PreparedTokenizer


@dataclass(frozen=True)
class PrefixTop:
    """Ask for the `k` most probable next student tokens. trie: the teacher's vocabulary in student tokens.

    student_bytes: [V], teacher_bytes: [U], the lengths of either side's tokens in bytes.
    """

    k: int
    trie: SpellingTrie
    student_bytes: Ids
    teacher_bytes: Ids


def prefix_top(k: int, student: PreparedTokenizer, teacher: PreparedTokenizer) -> PrefixTop:
    """The k most probable next tokens of `student` under a teacher that has the tokenizer `teacher`."""
    lengths = (side.encoder.token_bytes.lengths_bytes for side in (student, teacher))
    return PrefixTop(k, spelling_trie(old_tokens(teacher, student)), *lengths)


@dataclass(frozen=True)
class PrefixPositions:
    """P positions of a row, ascending: the student token that is predicted [P], the teacher token at whose place it
    is [P], the node of the trie that the student's tokens before it have come to [P].
    """

    student: Ids
    teacher: Ids
    nodes: Ids


NO_POSITIONS = PrefixPositions(*[np.zeros(0, dtype=np.int64)] * 3)


def prefix_positions(
    asked: PrefixTop,
    student_ids: npt.NDArray[np.int32],
    teacher_ids: npt.NDArray[np.int32],
    student_ends: npt.NDArray[np.int32],
    teacher_ends: npt.NDArray[np.int32],
    kinds: npt.NDArray[np.uint8],
) -> PrefixPositions:
    """The student tokens of a row that begin within the first teacher token of their scored chunk.

    Further teacher tokens of a chunk begin within a student token, so nothing is known of what follows them.

    Args:
        asked: the trie and the lengths of tokens.
        student_ids: [S].
        teacher_ids: [T].
        student_ends: [C], the token index after each finest chunk.
        teacher_ends: [C], the same on the teacher's side.
        kinds: [C], the chunks' flags.

    Returns:
        Those of them whose tokens before them lie in the trie.
    """
    student_begins, teacher_begins = (np.append(0, ends[:-1]).astype(np.int64) for ends in (student_ends, teacher_ends))
    has_tokens = (student_ends > student_begins) & (teacher_ends > teacher_begins) & (teacher_begins > 0)
    chunks = np.flatnonzero((kinds & SCORED > 0) & has_tokens)
    first = teacher_begins[chunks]
    spelled = asked.teacher_bytes[teacher_ids[first]]  # bytes of the first teacher token of each chunk
    found: list[tuple[Ids, Ids, Ids]] = []
    token, end = student_begins[chunks], student_ends[chunks].astype(np.int64)
    nodes, reached = np.zeros(len(chunks), dtype=np.int64), np.zeros(len(chunks), dtype=np.int64)
    while len(token):
        found.append((token, first, nodes))
        ids = student_ids[token].astype(np.int64)
        nodes, reached, token = asked.trie.children(nodes, ids), reached + asked.student_bytes[ids], token + 1
        inside = (nodes >= 0) & (reached < spelled) & (token < end)
        token, end, first, nodes, reached, spelled = (
            values[inside] for values in (token, end, first, nodes, reached, spelled)
        )
    if not found:
        return NO_POSITIONS
    students, teachers, at = (np.concatenate(values) for values in zip(*found, strict=True))
    order = np.argsort(students)
    return PrefixPositions(students[order], teachers[order], at[order])
