"""Encoding conversations with a tokenizer: the ids of its own chat template, and the byte at which each token ends.

Where a content names a special token, it is told from the template's own by aliases: strings of private-use characters
that stand for special tokens in a copy of the tokenizer, in which the names themselves are plain text.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from ctd_core.errors import DocumentError
from ctd_core.text.chat import ChatTemplate, WrittenTurn, names_of_special_tokens
from ctd_core.text.documents import Turn
from ctd_core.text.encoding import TextEncoder, complete_backend, encode_ids
from ctd_core.text.token_bytes import TokenBytes, decode
from ctd_core.text.tokenizers import copied_token

ALIAS = re.compile("\ue000[0-9a-f]+\ue001")


@dataclass(frozen=True)
class EncodedConversation:
    """One tokenizer's side of a conversation of n messages.

    ids: [S] int32. byte_ends: [S] int64, the position in the written text after each token. invented: [S] bool, tokens
    that begin with a space that the tokenizer invented. cuts: [3 n + 1] int64, the positions at which the header, the
    content and the end of each message begin, and the text's end. contents: [n, 2] int64, which bytes of each message's
    content are written. leads: [n] int64, the bytes before each content that belong to it, see WrittenTurn.
    """

    ids: npt.NDArray[np.int32]
    byte_ends: npt.NDArray[np.int64]
    invented: npt.NDArray[np.bool_]
    cuts: npt.NDArray[np.int64]
    contents: npt.NDArray[np.int64]
    leads: npt.NDArray[np.int64]


@dataclass(frozen=True)
class _Tokenization:
    """A tokenizer that writes special tokens where a text holds `marks`.

    token_bytes: what its V ids spell, marks too. is_mark: [V] bool. own_ids: [V] int32, the template's ids for them.
    """

    encode: Callable[[Sequence[str]], list[npt.NDArray[np.int32]]]
    marks: re.Pattern[str]
    token_bytes: TokenBytes
    is_mark: npt.NDArray[np.bool_]
    own_ids: npt.NDArray[np.int32]


class ConversationEncoder:
    """Encodes conversations by a tokenizer's chat template.

    Args:
        encoder: the tokenizer's encoder of plain text.

    Raises:
        TokenizerError: the tokenizer has no template.

    template: this.
    """

    def __init__(self, encoder: TextEncoder) -> None:
        self._plain, self._name = encoder, encoder.name
        self.template = ChatTemplate(encoder.tokenizer, encoder.name)
        self._special = {
            token_id: token for token_id, token in encoder.tokenizer.added_tokens_decoder.items() if token.special
        }
        self._aliases = {token.content: f"\ue000{token_id:x}\ue001" for token_id, token in self._special.items()}
        self._names = names_of_special_tokens(encoder.tokenizer)

    @cached_property
    def _as_written(self) -> _Tokenization:
        """The tokenizer itself, for texts in which nothing but the template names a special token."""
        backend = complete_backend(self._plain.tokenizer)
        token_bytes = self._plain.token_bytes
        by_id = [
            self._special[token_id].content.encode() if token_id in self._special else raw
            for token_id, raw in enumerate(token_bytes.by_id)
        ]
        lengths = np.array([len(raw or b"") for raw in by_id], dtype=np.int64)
        spelled = replace(token_bytes, by_id=tuple(by_id), lengths_bytes=lengths)
        ids = np.arange(len(by_id), dtype=np.int32)
        return _Tokenization(partial(encode_ids, backend), self._names, spelled, np.isin(ids, list(self._special)), ids)

    @cached_property
    def _with_aliases(self) -> _Tokenization:
        """A copy in which the names of special tokens are text, and aliases are special tokens."""
        backend = Tokenizer.from_str(self._plain.tokenizer.backend_tokenizer.to_str())
        backend.add_tokens(
            [copied_token(token, self._aliases[token.content], special=False) for token in self._special.values()]
        )
        aliased = TextEncoder(
            PreTrainedTokenizerFast(tokenizer_object=backend, clean_up_tokenization_spaces=False), self._name
        )
        vocabulary = backend.get_vocab()
        own_ids = np.arange(len(aliased.token_bytes.by_id), dtype=np.int32)
        is_mark = np.zeros(len(own_ids), dtype=np.bool_)
        for token_id, token in self._special.items():
            alias_id = vocabulary[self._aliases[token.content]]
            own_ids[alias_id], is_mark[alias_id] = token_id, True
        return _Tokenization(aliased.encode_ids, ALIAS, aliased.token_bytes, is_mark, own_ids)

    def encode_batch(self, conversations: Sequence[Sequence[Turn]]) -> list[EncodedConversation | DocumentError]:
        """Each conversation encoded, or the reason why there is no encoding that spells it."""
        results: list[EncodedConversation | DocumentError | None] = [None] * len(conversations)
        as_written: list[int] = []
        with_aliases: list[int] = []
        written: dict[int, list[WrittenTurn]] = {}
        for number, (turns, parts) in enumerate(
            zip(conversations, self.template.write_batch(conversations), strict=True)
        ):
            if isinstance(parts, DocumentError):
                results[number] = parts
                continue
            try:
                self._refuse(turns)
            except DocumentError as error:
                results[number] = error
                continue
            written[number] = parts
            is_named = any(self._names.search(turn.text) for turn in turns)
            (with_aliases if is_named else as_written).append(number)
        for numbers, is_aliased in ((as_written, False), (with_aliases, True)):
            if numbers:
                given = [(conversations[number], written[number]) for number in numbers]
                for number, encoded in zip(numbers, self._encode(given, is_aliased), strict=True):
                    results[number] = encoded
        return [result for result in results if result is not None]

    def _refuse(self, turns: Sequence[Turn]) -> None:
        """Raises DocumentError where messages cannot be told from special tokens."""
        if any("\ue000" in turn.text + turn.role for turn in turns):
            raise DocumentError(
                "private-use characters", f"{self._name}: a message holds U+E000, which stands for special tokens"
            )
        if named := next((turn.role for turn in turns if self._names.search(turn.role)), None):
            raise DocumentError(
                "a role that names a special token", f"{self._name}: {named!r:.80} would be written as a special token"
            )

    def _encode(
        self, given: Sequence[tuple[Sequence[Turn], list[WrittenTurn]]], is_aliased: bool
    ) -> Iterator[EncodedConversation | DocumentError]:
        """Conversations, each with what the template writes of it, encoded in one or the other way."""
        tokenization = self._with_aliases if is_aliased else self._as_written
        in_pieces = [self._pieces(turns, parts, is_aliased) for turns, parts in given]
        texts = ["".join(pieces) for pieces in in_pieces]
        encoded = tokenization.encode(texts)
        flat = np.concatenate(encoded)
        token_ends = np.cumsum(tokenization.token_bytes.lengths_bytes[flat])
        spelled = decode(tokenization.token_bytes, flat)
        token = byte = 0
        for (turns, parts), pieces, text, ids in zip(given, in_pieces, texts, encoded, strict=True):
            ends = token_ends[token : token + len(ids)] - byte
            own = spelled[byte : byte + (int(ends[-1]) if len(ids) else 0)]
            token, byte = token + len(ids), byte + len(own)
            raw = text.encode()
            marks = sum(len(tokenization.marks.findall(piece)) for piece in pieces)
            if np.count_nonzero(tokenization.is_mark[ids]) != marks:
                yield DocumentError(
                    "special tokens of a chat template",
                    f"{self._name}: the template writes {marks}, and its tokens are others: some overlap",
                )
                continue
            located = (ends, np.zeros(len(ids), dtype=np.bool_)) if own == raw else None
            located = located or self._located(tokenization, text, ids)
            if located is None or not len(ids) or located[0][-1] != len(raw):
                in_text = ids[~tokenization.is_mark[ids]]
                yield self._plain.misspelled(raw, own, tokenization.own_ids[in_text])
            else:
                yield self._conversation(turns, parts, pieces, tokenization.own_ids[ids], *located)

    def _pieces(self, turns: Sequence[Turn], parts: list[WrittenTurn], is_aliased: bool) -> list[str]:
        """Header, content and end of each message, with aliases for the special tokens of the template or not."""
        pieces = []
        for turn, part in zip(turns, parts, strict=True):
            markers = [part.header, part.end]
            if is_aliased:
                markers = [self._names.sub(lambda match: self._aliases[match[0]], marker) for marker in markers]
            pieces += [markers[0], turn.text[part.start : part.stop], markers[1]]
        return pieces

    def _located(
        self, tokenization: _Tokenization, text: str, ids: npt.NDArray[np.int32]
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]] | None:
        """The byte at which each token ends, and which begin with a space that the tokenizer invented.

        For texts that are not simply what the tokens spell: each stretch between special tokens by itself. None where
        the tokens of one do not spell it.
        """
        byte_ends = np.zeros(len(ids), dtype=np.int64)
        invented = np.zeros(len(ids), dtype=np.bool_)
        stretches, names = tokenization.marks.split(text), tokenization.marks.findall(text)
        positions = np.flatnonzero(tokenization.is_mark[ids])
        if len(positions) != len(names):
            return None
        at = start = 0
        for number, stretch in enumerate(stretches):
            stop = int(positions[number]) if number < len(positions) else len(ids)
            raw = stretch.encode()
            tokens = ids[start:stop]
            placed = _place(decode(tokenization.token_bytes, tokens), raw)
            if placed is None:
                return None
            before, invented_bytes = placed
            ends = np.cumsum(tokenization.token_bytes.lengths_bytes[tokens]) - invented_bytes
            invented[start : start + invented_bytes] = True
            if start:
                byte_ends[start - 1] += before  # white space that a special token takes with it
            byte_ends[start:stop] = at + before + ends
            at += len(raw)
            if number < len(positions):
                at += len(names[number].encode())
                byte_ends[stop] = at
                start = stop + 1
        return byte_ends, invented

    def _conversation(
        self,
        turns: Sequence[Turn],
        parts: list[WrittenTurn],
        pieces: list[str],
        ids: npt.NDArray[np.int32],
        byte_ends: npt.NDArray[np.int64],
        invented: npt.NDArray[np.bool_],
    ) -> EncodedConversation | DocumentError:
        limit = self._plain.num_embeddings
        if limit is not None and ids.max(initial=-1) >= limit:
            return DocumentError(
                "a token beyond the model's embedding", f"{self._name}: the token {int(ids.max())} has no row in it"
            )
        cuts = np.cumsum([0, *(len(piece.encode()) for piece in pieces)])
        contents = [
            (0, len(piece.encode())) if not part.start else (
                len(turn.text[: part.start].encode()), len(turn.text[: part.stop].encode())
            )
            for turn, part, piece in zip(turns, parts, pieces[1::3], strict=True)
        ]  # fmt: skip
        leads = [len(part.header[len(part.header) - part.lead :].encode()) for part in parts]
        return EncodedConversation(
            ids, byte_ends, invented, cuts, np.array(contents, dtype=np.int64).reshape(-1, 2), np.array(leads)
        )


def _place(spelled: bytes, raw: bytes) -> tuple[int, int] | None:
    """Where in `raw` what tokens spell begins, and how many bytes before it they invent; None where it is not there.

    White space at the ends of `raw` may be missing: special tokens beside it take it with them. A tokenizer may begin
    a stretch with a space of its own.
    """
    if spelled == raw:
        return 0, 0
    if not spelled and not raw.strip():
        return len(raw), 0  # the special token before it has taken all
    if spelled == b" " + raw:
        return 0, 1
    for invented in (0, 1):
        core = spelled[invented:]
        at = raw.find(core) if spelled[:invented].strip() == b"" else -1
        if at >= 0 and not (raw[:at] + raw[at + len(core) :]).strip():
            return at, invented
    return None
