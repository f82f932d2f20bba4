"""Where the teacher's next-token distribution tells what the student's next token is."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ctd_core.align.documents import MARKER, SCORED
from ctd_core.align.spelling_trie import Ids, SpellingTrie, spelling_trie
from ctd_core.models.transfer import old_tokens
from ctd_core.text.documents import END
from ctd_core.text.prepared_tokenizer import PreparedTokenizer
from ctd_core.text.stops import turn_ends

Row = Iterable[npt.NDArray[Any]]  # the arguments of prefix_positions but for the first


@dataclass(frozen=True)
class PrefixTop:
    """Ask for `k` next student tokens, of which `drawn` are drawn. trie: the teacher's vocabulary in student tokens.

    student_bytes: [V], teacher_bytes: [U], the lengths of either side's tokens in bytes. first_tokens: [U], the first
    student token of each teacher token's spelling, −1 for none. ranks: [U], its place in `trie.order`, −1 for none.
    ends: the teacher's tokens that end texts or turns.
    """

    k: int
    drawn: int
    trie: SpellingTrie
    student_bytes: Ids
    teacher_bytes: Ids
    first_tokens: Ids
    ranks: Ids
    ends: Ids


def prefix_top(k: int, drawn: int, student: PreparedTokenizer, teacher: PreparedTokenizer) -> PrefixTop:
    """k next tokens of `student` under a teacher that has the tokenizer `teacher`: the most probable ones, and `drawn`
    of the others."""
    of_student, of_teacher = (side.encoder.token_bytes.lengths_bytes for side in (student, teacher))
    lengths = of_student.tolist()
    pairs = zip(old_tokens(teacher, student), of_teacher.tolist(), strict=True)
    # bytes that the student has no token for are left out there
    spellings = [spelling if sum(lengths[token] for token in spelling) == size else [] for spelling, size in pairs]
    end, own_end = teacher.markers.get(END, ()), [*student.markers.get(END, ())] or sorted(_turn_ends(student))[:1]
    ends = _turn_ends(teacher)
    for token in ends:  # where the student has none of its name
        spellings[token] = spellings[token] or own_end
    if len(end) == 1:
        ends.add(end[0])
        spellings[end[0]] = own_end or spellings[end[0]]  # and no beginning too, for a token that stands for both
    rows = student.encoder.num_embeddings  # a special token may have none
    spellings = [[] if rows is not None and max(spelling, default=-1) >= rows else spelling for spelling in spellings]
    trie = spelling_trie(spellings)
    ranks = np.full(len(spellings), -1)
    ranks[trie.order] = np.arange(len(trie.order))
    first_tokens = np.array([spelling[0] if spelling else -1 for spelling in spellings])
    return PrefixTop(k, drawn, trie, of_student, of_teacher, first_tokens, ranks, np.array(sorted(ends), dtype=int))


def _turn_ends(tokenizer: PreparedTokenizer) -> set[int]:
    return turn_ends(tokenizer.encoder.tokenizer, tokenizer.encoder.name)


@dataclass(frozen=True)
class PrefixPositions:
    """P positions of a row, ascending: the student token that is predicted [P], the teacher token at whose place it
    is [P], the node of the trie that the student's tokens before it have come to [P].

    spelled, own: [P], the token that the trie has for a special token of the teacher, and the text's own; −1 for text.
    """

    student: Ids
    teacher: Ids
    nodes: Ids
    spelled: Ids
    own: Ids

    def student_tokens(self, ids: Ids, counts: Ids, end: tuple[int, int]) -> Ids:
        """Tokens of the trie as they are in this row, where `own` stands for `spelled`.

        Args:
            ids: [E], of one position behind the other.
            counts: [P], how many are of each.
            end: two tokens that stand for each other in the whole row, see `end_in`.

        Returns:
            [E].
        """
        position = np.repeat(np.arange(len(counts)), counts)
        return _swapped(_swapped(ids, *end), _swapped(self.spelled, *end)[position], self.own[position])


def _swapped(ids: Ids, first: int | Ids, second: int | Ids) -> Ids:
    return np.where(ids == first, second, np.where(ids == second, first, ids))


NO_POSITIONS = PrefixPositions(*[np.zeros(0, dtype=np.int64) for _ in range(5)])
SAME = (-1, -1)  # no tokens stand for each other


def end_in(asked: PrefixTop, rows: Iterable[Row]) -> tuple[int, int]:
    """Which token of the student the trie has for the teacher's end, and which stands for it in the rows of a document.

    A teacher may end turns and texts by one token, for which the student has two, and a student turns by another than
    its teacher. Ends that are learned tell which, and where there are none, or an answer is cut, those of other turns
    do. A template that writes text before the special token tells nothing.

    Args:
        asked: the trie.
        rows: those of one document.

    Returns:
        Both, SAME where they are one or the rows do not tell.
    """
    scored: set[tuple[int, int]] = set()
    others: set[tuple[int, int]] = set()
    for student_ids, teacher_ids, student_ends, teacher_ends, kinds in rows:
        student_begins, teacher_begins = _begins(student_ends), _begins(teacher_ends)
        is_marker = (kinds & MARKER > 0) & (student_ends > student_begins) & (teacher_ends > teacher_begins)
        chunks = np.flatnonzero(is_marker[1:]) + 1  # the first is how texts begin, which may be the same token
        tokens, old = student_ids[student_begins[chunks]], teacher_ids[teacher_begins[chunks]]
        spelled = asked.first_tokens[old]
        is_end = np.isin(old, asked.ends) & (spelled >= 0) & (asked.student_bytes[tokens] == 0)
        is_scored = kinds[chunks] & SCORED > 0
        for found, of_these in ((scored, is_end & is_scored), (others, is_end & ~is_scored)):
            found.update(zip(spelled[of_these].tolist(), tokens[of_these].tolist(), strict=True))
    ends = scored or others
    return ends.pop() if len(ends) == 1 else SAME


def _begins(ends: npt.NDArray[np.int32]) -> Ids:
    return np.append(0, ends[:-1]).astype(np.int64)


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
    student_begins, teacher_begins = _begins(student_ends), _begins(teacher_ends)
    has_tokens = (student_ends > student_begins) & (teacher_ends > teacher_begins) & (teacher_begins > 0)
    chunks = np.flatnonzero((kinds & SCORED > 0) & has_tokens)
    first = teacher_begins[chunks]
    teacher_token = teacher_ids[first].astype(np.int64)
    spelled, rank = asked.teacher_bytes[teacher_token], asked.ranks[teacher_token]
    found: list[tuple[Ids, ...]] = []
    token, end = student_begins[chunks], student_ends[chunks].astype(np.int64)
    nodes, reached = np.zeros(len(chunks), dtype=np.int64), np.zeros(len(chunks), dtype=np.int64)
    while len(token):
        ids = student_ids[token].astype(np.int64)
        after, reached = asked.trie.children(nodes, ids), reached + asked.student_bytes[ids]
        agrees = (after >= 0) & (asked.trie.first[after] <= rank) & (rank < asked.trie.last[after])
        is_special = (asked.student_bytes[ids] == 0) & (spelled == 0) & (rank >= 0) & (nodes == 0)
        kept = agrees | is_special
        names = asked.first_tokens[teacher_ids[first]], ids
        special = (np.where(is_special, name, -1)[kept] for name in names)
        found.append((token[kept], first[kept], nodes[kept], *special))
        inside = agrees & (reached < spelled) & (token + 1 < end)
        token, end, first, nodes, reached, spelled, rank = (
            values[inside] for values in (token + 1, end, first, after, reached, spelled, rank)
        )
    if not found:
        return NO_POSITIONS
    columns = [np.concatenate(values) for values in zip(*found, strict=True)]
    order = np.argsort(columns[0])
    return PrefixPositions(*(column[order] for column in columns))
