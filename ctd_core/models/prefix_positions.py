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

    student_bytes: [V], teacher_bytes: [U], the lengths of either side's tokens in bytes. first_tokens: [U], the first
    student token of each teacher token's spelling, −1 for none. ranks: [U], its place in `trie.order`, −1 for none.
    """

    k: int
    trie: SpellingTrie
    student_bytes: Ids
    teacher_bytes: Ids
    first_tokens: Ids
    ranks: Ids


def prefix_top(k: int, student: PreparedTokenizer, teacher: PreparedTokenizer) -> PrefixTop:
    """The k most probable next tokens of `student` under a teacher that has the tokenizer `teacher`."""
    of_student, of_teacher = (side.encoder.token_bytes.lengths_bytes for side in (student, teacher))
    spellings = old_tokens(teacher, student)
    if len(end := teacher.markers["end"]) == 1 and student.markers["end"]:
        spellings[end[0]] = [*student.markers["end"]]  # and no beginning too, for a token that stands for both
    trie = spelling_trie(spellings)
    ranks = np.full(len(spellings), -1)
    ranks[trie.order] = np.arange(len(trie.order))
    first_tokens = np.array([spelling[0] if spelling else -1 for spelling in spellings])
    return PrefixTop(k, trie, of_student, of_teacher, first_tokens, ranks)


@dataclass(frozen=True)
class PrefixPositions:
    """P positions of a row, ascending: the student token that is predicted [P], the teacher token at whose place it
    is [P], the node of the trie that the student's tokens before it have come to [P].

    swapped: special tokens of the student that in this row stand for each other: a teacher may end turns and texts by
    one token, for which the student has two.
    """

    student: Ids
    teacher: Ids
    nodes: Ids
    swapped: frozenset[tuple[int, int]] = frozenset()

    def student_tokens(self, ids: Ids) -> Ids:
        """`ids` of the trie as they are in this row."""
        for one, other in sorted(self.swapped):
            ids = np.where(ids == one, other, np.where(ids == other, one, ids))
        return ids


_NONE = np.zeros(0, dtype=np.int64)
NO_POSITIONS = PrefixPositions(_NONE, _NONE, _NONE)


def prefix_positions(
    asked: PrefixTop,
    student_ids: npt.NDArray[np.int32],
    teacher_ids: npt.NDArray[np.int32],
    student_ends: npt.NDArray[np.int32],
    teacher_ends: npt.NDArray[np.int32],
    kinds: npt.NDArray[np.uint8],
) -> PrefixPositions:
    """The student tokens of a row that lie within the first teacher token of their scored chunk, as it is spelled.

    Further teacher tokens of a chunk begin within a student token, so nothing is known of what follows them. A student
    token that goes beyond the teacher's, or spells it otherwise, has no probability by the trie: a teacher that were
    sure of the text would teach the student to write something else. So has the first token of a text to which one side
    alone puts a space in front.

    Args:
        asked: the trie and the lengths of tokens.
        student_ids: [S].
        teacher_ids: [T].
        student_ends: [C], the token index after each finest chunk.
        teacher_ends: [C], the same on the teacher's side.
        kinds: [C], the chunks' flags.

    Returns:
        Those of them, with special tokens of the student at a special token of the teacher.
    """
    student_begins, teacher_begins = (np.append(0, ends[:-1]).astype(np.int64) for ends in (student_ends, teacher_ends))
    has_tokens = (student_ends > student_begins) & (teacher_ends > teacher_begins) & (teacher_begins > 0)
    chunks = np.flatnonzero((kinds & SCORED > 0) & has_tokens)
    first = teacher_begins[chunks]
    teacher_token = teacher_ids[first].astype(np.int64)
    spelled, rank = asked.teacher_bytes[teacher_token], asked.ranks[teacher_token]
    found: list[tuple[Ids, Ids, Ids]] = []
    swapped: set[tuple[int, int]] = set()
    token, end = student_begins[chunks], student_ends[chunks].astype(np.int64)
    nodes, reached = np.zeros(len(chunks), dtype=np.int64), np.zeros(len(chunks), dtype=np.int64)
    while len(token):
        ids = student_ids[token].astype(np.int64)
        after, reached = asked.trie.children(nodes, ids), reached + asked.student_bytes[ids]
        kept = agrees = (after >= 0) & (asked.trie.first[after] <= rank) & (rank < asked.trie.last[after])
        if not found:
            wanted = asked.first_tokens[teacher_ids[first]]
            others = (asked.student_bytes[ids] == 0) & (spelled == 0) & (wanted >= 0) & (wanted != ids)
            swapped.update(zip(ids[others].tolist(), wanted[others].tolist(), strict=True))
            kept = agrees | others
        found.append((token[kept], first[kept], nodes[kept]))
        inside = agrees & (reached < spelled) & (token + 1 < end)
        token, end, first, nodes, reached, spelled, rank = (
            values[inside] for values in (token + 1, end, first, after, reached, spelled, rank)
        )
    if not found:
        return NO_POSITIONS
    students, teachers, at = (np.concatenate(values) for values in zip(*found, strict=True))
    order = np.argsort(students)
    return PrefixPositions(students[order], teachers[order], at[order], frozenset(swapped))
