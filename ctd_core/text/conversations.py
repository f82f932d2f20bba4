"""Encoding conversations with a tokenizer: the ids of its own chat template, and the byte at which each token ends.

A template's special tokens are told from the same names in a content by aliases: strings of private-use characters that
stand for them in a copy of the tokenizer, in which the names themselves are plain text.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from ctd_core.errors import DocumentError
from ctd_core.text.chat import ChatTemplate, WrittenTurn
from ctd_core.text.documents import Turn
from ctd_core.text.encoding import TextEncoder
from ctd_core.text.token_bytes import decode
from ctd_core.text.tokenizers import copied_token

ALIAS = re.compile("\ue000[0-9a-f]+\ue001")


@dataclass(frozen=True)
class EncodedConversation:
    """One tokenizer's side of a conversation of n messages.

    ids: [S] int32. byte_ends: [S] int64, the position in the written text after each token. invented: [S] bool, tokens
    that begin with a space that the tokenizer invented. cuts: [3 n + 1] int64, the positions at which the header, the
    content and the end of each message begin, and the text's end. contents: [n, 2] int64, which bytes of each message's
    content are written.
    """

    ids: npt.NDArray[np.int32]
    byte_ends: npt.NDArray[np.int64]
    invented: npt.NDArray[np.bool_]
    cuts: npt.NDArray[np.int64]
    contents: npt.NDArray[np.int64]


class ConversationEncoder:
    """Encodes conversations by a tokenizer's chat template.

    Args:
        encoder: the tokenizer's encoder of plain text.

    Raises:
        TokenizerError: the tokenizer has no template.
    """

    def __init__(self, encoder: TextEncoder) -> None:
        self._name = encoder.name
        self._template = ChatTemplate(encoder.tokenizer, encoder.name)
        special = {
            token_id: token for token_id, token in encoder.tokenizer.added_tokens_decoder.items() if token.special
        }
        self._aliases = {token.content: f"\ue000{token_id:x}\ue001" for token_id, token in special.items()}
        names = sorted((name for name in self._aliases if name), key=len, reverse=True)
        self._names = re.compile("|".join(map(re.escape, names)) or "(?!)")
        description = encoder.tokenizer.backend_tokenizer.to_str()
        backend, self._plain = Tokenizer.from_str(description), Tokenizer.from_str(description)
        self._plain.no_truncation()
        self._plain.no_padding()
        backend.add_tokens(
            [copied_token(token, self._aliases[token.content], special=False) for token in special.values()]
        )
        aliased = PreTrainedTokenizerFast(tokenizer_object=backend, clean_up_tokenization_spaces=False)
        self._encoder = TextEncoder(aliased, encoder.name)
        vocabulary = backend.get_vocab()
        alias_ids = [vocabulary[self._aliases[token.content]] for token in special.values()]
        self._first_alias = min(alias_ids, default=len(vocabulary))
        self._special_ids = np.zeros(len(alias_ids), dtype=np.int32)  # by alias id, from the first alias on
        for token_id, alias_id in zip(special, alias_ids, strict=True):
            self._special_ids[alias_id - self._first_alias] = token_id
        self._limit = encoder.num_embeddings

    def encode_batch(self, conversations: Sequence[Sequence[Turn]]) -> list[EncodedConversation | DocumentError]:
        """Each conversation encoded, or the reason why there is no encoding that spells it."""
        written: list[list[WrittenTurn] | DocumentError] = []
        for turns in conversations:
            try:
                written.append(self._template.write(turns))
            except DocumentError as error:
                written.append(error)
        texts, good = [], []
        for number, (turns, parts) in enumerate(zip(conversations, written, strict=True)):
            if not isinstance(parts, DocumentError):
                if refused := self._refused(turns):
                    written[number] = refused
                    continue
                texts.append(self._pieces(turns, parts))
                good.append(number)
        encoded = self._encoder.encode_ids(["".join(pieces) for pieces in texts])
        flat = np.concatenate([np.zeros(0, dtype=np.int32), *encoded])
        token_ends = np.cumsum(self._encoder.token_bytes.lengths_bytes[flat])
        spelled = decode(self._encoder.token_bytes, flat)
        results: list[EncodedConversation | DocumentError] = [
            parts if isinstance(parts, DocumentError) else DocumentError("", "") for parts in written
        ]
        token = byte = 0
        for number, pieces, ids in zip(good, texts, encoded, strict=True):
            ends = token_ends[token : token + len(ids)] - byte
            own = spelled[byte : byte + (int(ends[-1]) if len(ids) else 0)]
            token, byte = token + len(ids), byte + len(own)
            text = "".join(pieces)
            is_plain = own == text.encode() and np.count_nonzero(ids >= self._first_alias) == len(ALIAS.findall(text))
            located = (ends, None) if is_plain else self._located(pieces, ids)
            parts = written[number]
            if isinstance(located, DocumentError):
                results[number] = located
            elif not len(ids) or located[0][-1] != len(text.encode()):
                results[number] = self._encoder.misspelled(text.encode(), own, ids)
            elif not isinstance(parts, DocumentError):
                results[number] = self._conversation(conversations[number], parts, pieces, ids, *located)
        return self._as_whole(conversations, written, results)

    def _refused(self, turns: Sequence[Turn]) -> DocumentError | None:
        """Why messages cannot be told from special tokens."""
        if any("\ue000" in turn.text + turn.role for turn in turns):
            return DocumentError(
                "private-use characters", f"{self._name}: a message holds U+E000, which stands for special tokens"
            )
        if named := next((turn.role for turn in turns if self._names.search(turn.role)), None):
            return DocumentError(
                "a role that names a special token", f"{self._name}: {named!r:.80} would be written as a special token"
            )
        return None

    def _as_whole(
        self,
        conversations: Sequence[Sequence[Turn]],
        written: Sequence[list[WrittenTurn] | DocumentError],
        results: list[EncodedConversation | DocumentError],
    ) -> list[EncodedConversation | DocumentError]:
        """`results`, without those whose ids are not the ones of the whole rendering.

        Other added tokens may overlap the template's special tokens. Messages that name a special token are not
        compared: their names are text here, and would be special tokens there.
        """
        compared, texts = [], []
        for number, (turns, parts) in enumerate(zip(conversations, written, strict=True)):
            is_named = any(self._names.search(turn.text) for turn in turns)
            if is_named or isinstance(parts, DocumentError) or isinstance(results[number], DocumentError):
                continue
            pairs = zip(turns, parts, strict=True)
            compared.append(number)
            texts.append("".join(part.header + turn.text[part.start : part.stop] + part.end for turn, part in pairs))
        encodings = self._plain.encode_batch_fast(texts, add_special_tokens=False)
        for number, encoding in zip(compared, encodings, strict=True):
            found = results[number]
            if isinstance(found, EncodedConversation) and found.ids.tolist() != encoding.ids:
                results[number] = DocumentError(
                    "tokens that overlap those of a chat template",
                    f"{self._name}: its ids for the whole conversation are others than those of its parts",
                )
        return results

    def _pieces(self, turns: Sequence[Turn], parts: list[WrittenTurn]) -> list[str]:
        """Header, content and end of each message, with aliases for the special tokens of the template."""
        pieces = []
        for turn, part in zip(turns, parts, strict=True):
            pieces += [self._aliased(part.header), turn.text[part.start : part.stop], self._aliased(part.end)]
        return pieces

    def _aliased(self, marker: str) -> str:
        return self._names.sub(lambda match: self._aliases[match[0]], marker)

    def _located(
        self, pieces: list[str], ids: npt.NDArray[np.int32]
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]] | DocumentError:
        """The byte at which each token ends, and which begin with a space that the tokenizer invented.

        For texts that are not simply what the tokens spell: each stretch between special tokens by itself.
        """
        text = "".join(pieces)
        byte_ends = np.zeros(len(ids), dtype=np.int64)
        invented = np.zeros(len(ids), dtype=np.bool_)
        stretches, names = ALIAS.split(text), ALIAS.findall(text)
        positions = np.flatnonzero(ids >= self._first_alias)
        if len(positions) != len(names):
            return DocumentError(
                "special tokens of a chat template", f"{self._name}: {len(names)} are written, {len(positions)} encoded"
            )
        at = start = 0
        for number, stretch in enumerate(stretches):
            stop = int(positions[number]) if number < len(positions) else len(ids)
            raw = stretch.encode()
            tokens = ids[start:stop]
            spelled = decode(self._encoder.token_bytes, tokens)
            placed = _place(spelled, raw)
            if placed is None:
                return self._encoder.misspelled(raw, spelled, tokens)
            before, invented_bytes = placed
            ends = np.cumsum(self._encoder.token_bytes.lengths_bytes[tokens]) - invented_bytes
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
        invented: npt.NDArray[np.bool_] | None,
    ) -> EncodedConversation | DocumentError:
        is_alias = ids >= self._first_alias
        own = ids.copy()
        own[is_alias] = self._special_ids[ids[is_alias] - self._first_alias]
        if self._limit is not None and own.max(initial=-1) >= self._limit:
            return DocumentError(
                "a token beyond the model's embedding", f"{self._name}: the token {int(own.max())} has no row in it"
            )
        cuts = np.cumsum([0, *(len(piece.encode()) for piece in pieces)])
        contents = [
            (0, len(piece.encode())) if not part.start else (
                len(turn.text[: part.start].encode()), len(turn.text[: part.stop].encode())
            )
            for turn, part, piece in zip(turns, parts, pieces[1::3], strict=True)
        ]  # fmt: skip
        if invented is None:
            invented = np.zeros(len(ids), dtype=np.bool_)
        return EncodedConversation(own, byte_ends, invented, cuts, np.array(contents, dtype=np.int64).reshape(-1, 2))


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
