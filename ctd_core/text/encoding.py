"""Encoding texts with two tokenizers, each verified to spell the text byte for byte."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from ctd_core.errors import DocumentError, TokenizerError
from ctd_core.text.normalisation import canonical_form, content_normaliser
from ctd_core.text.token_bytes import decode, read_token_bytes


@dataclass(frozen=True)
class EncodedText:
    """One side of a text: `ids` [S] int32, `byte_ends` [S] int64, the position in the text after each token.

    A leading space that the tokenizer invented (`invents_space`) lies before the text: a token that is nothing else
    ends at 0.
    """

    ids: npt.NDArray[np.int32]
    byte_ends: npt.NDArray[np.int64]
    invents_space: bool = False


@dataclass(frozen=True)
class EncodedPair:
    """A text in its canonical form and its two encodings, student before teacher; both spell `text_bytes`."""

    text_bytes: bytes
    student: EncodedText
    teacher: EncodedText


class TextEncoder:
    """A tokenizer made ready to encode plain text and to check every result.

    The names of special tokens are encoded as the text that they are, and drop it where the tokenizer cannot do so
    (Unigram, whose vocabulary holds them); no special token is added.
    A text with a token beyond `num_embeddings`, the rows of its model's embedding, has no encoding. invents_space: the
    tokenizer begins a text with a space of its own.
    Raises TokenizerError, naming the tokenizer by `name`, where it cannot spell its input.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast, name: str, num_embeddings: int | None = None) -> None:
        self.name = name
        self.num_embeddings = num_embeddings
        self.tokenizer = tokenizer
        self.normalise = content_normaliser(tokenizer.backend_tokenizer, name)
        self.token_bytes = read_token_bytes(tokenizer.backend_tokenizer, name)
        self._backend = complete_backend(tokenizer)
        self._take_names_as_text()
        self.invents_space = self._find_invented_space()

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._take_names_as_text()

    def _take_names_as_text(self) -> None:
        """Encode the names of special tokens as text; a tokenizer forgets it when it is pickled."""
        self._backend.encode_special_tokens = True

    def encode_ids(self, texts: Sequence[str]) -> list[npt.NDArray[np.int32]]:
        """The token ids [S] of each of `texts`, not verified."""
        return encode_ids(self._backend, texts)

    def encode_batch(
        self, texts: Sequence[str], continues: Sequence[bool] | None = None
    ) -> list[EncodedText | DocumentError]:
        """The encoding of each of `texts`, or the reason why there is none that spells it.

        Where a text `continues` another and begins with a space, the space that the tokenizer invents is that one.
        """
        followed = [False] * len(texts) if continues is None or not self.invents_space else continues
        ids = self.encode_ids(
            [text.removeprefix(" ") if follows else text for text, follows in zip(texts, followed, strict=True)]
        )
        flat = np.concatenate([np.zeros(0, dtype=np.int32), *ids])
        byte_ends = np.cumsum(self.token_bytes.lengths_bytes[flat])
        spelled = decode(self.token_bytes, flat)
        results: list[EncodedText | DocumentError] = []
        token = byte = 0
        for text, token_ids in zip(texts, ids, strict=True):
            ends = byte_ends[token : token + len(token_ids)] - byte
            token, stop = token + len(token_ids), byte + (int(ends[-1]) if len(token_ids) else 0)
            results.append(self._checked(text.encode(), spelled[byte:stop], EncodedText(token_ids, ends)))
            byte = stop
        for number, (text, follows) in enumerate(zip(texts, followed, strict=True)):
            if follows and text.startswith("  ") and isinstance(results[number], DocumentError):
                (whole,) = self.encode_batch([text])  # before a space, some tokenizers invent none
                if isinstance(whole, EncodedText) and not whole.invents_space:
                    results[number] = whole
        return results

    def _checked(self, text_bytes: bytes, spelled: bytes, encoded: EncodedText) -> EncodedText | DocumentError:
        if self.num_embeddings is not None and encoded.ids.max(initial=-1) >= self.num_embeddings:
            token = int(encoded.ids.max())
            return DocumentError(
                "a token beyond the model's embedding",
                f"{self.name}: the token {self.tokenizer.convert_ids_to_tokens(token)!r} is {token}, and the embedding "
                f"has {self.num_embeddings} entries",
            )
        if spelled == text_bytes:
            return encoded
        if self.invents_space and spelled == b" " + text_bytes:
            return EncodedText(encoded.ids, encoded.byte_ends - 1, invents_space=True)
        return self.misspelled(text_bytes, spelled, encoded.ids)

    def misspelled(self, text_bytes: bytes, spelled: bytes, ids: npt.NDArray[np.int32]) -> DocumentError:
        """Why tokens that spell `spelled` are no encoding of `text_bytes`; `ids` are those of them that are its own."""
        at = next(
            (n for n, (a, b) in enumerate(zip(text_bytes, spelled, strict=False)) if a != b),
            min(len(text_bytes), len(spelled)),
        )
        special = ids[self.token_bytes.is_special[ids]]
        names = self.tokenizer.convert_ids_to_tokens(special.tolist())
        reason = "no token for a character" if len(special) else "tokens spell another text"
        if named := [name for name in names if name in text_bytes.decode()]:
            reason = f"the special token {named[0]} in a text"
        return DocumentError(
            reason,
            f"{self.name}: the tokens spell {spelled[at : at + 24]!r} where the text has "
            f"{text_bytes[at : at + 24]!r}, at byte {at}",
        )

    def _find_invented_space(self) -> bool:
        """Whether the tokenizer begins a text with a space of its own; raises where it loses even plain letters."""
        ids = self._backend.encode("a", add_special_tokens=False).ids
        spelled = decode(self.token_bytes, np.array(ids, dtype=np.int32))
        if spelled not in (b"a", b" a"):
            raise TokenizerError(
                f"{self.name}: the tokens of 'a' spell {spelled!r}, so this tokenizer cannot spell its input. "
                "Take a model whose tokenizer keeps its text."
            )
        return spelled == b" a"


def complete_backend(tokenizer: PreTrainedTokenizerFast) -> Tokenizer:
    """A copy of a tokenizer's backend that encodes all of a text, and always alike."""
    description = json.loads(tokenizer.backend_tokenizer.to_str())
    description["model"]["dropout"] = None  # for training a model alone: it makes encodings random
    backend = Tokenizer.from_str(json.dumps(description))
    backend.no_truncation()
    backend.no_padding()
    return backend


def encode_ids(backend: Tokenizer, texts: Sequence[str]) -> list[npt.NDArray[np.int32]]:
    """The token ids [S] of each of `texts`, without special tokens around it."""
    encodings = backend.encode_batch_fast(list(texts), add_special_tokens=False)
    return [np.array(encoding.ids, dtype=np.int32) for encoding in encodings]


def encode_pairs(
    student: TextEncoder, teacher: TextEncoder, texts: Sequence[str], continues: Sequence[bool] | None = None
) -> list[EncodedPair | DocumentError]:
    """Each of `texts` encoded by both sides in the form that both leave alone, or why it has to be dropped.

    continues: which of them follow another text, see TextEncoder.encode_batch.
    """
    normalise = [side.normalise for side in (student, teacher) if side.normalise is not None]
    results: list[EncodedPair | DocumentError | None] = [None] * len(texts)
    canonical: dict[int, str] = {}
    for row, text in enumerate(texts):
        try:
            canonical[row] = canonical_form(text, normalise)
        except DocumentError as error:
            results[row] = error
    forms = list(canonical.values())
    follows = None if continues is None else [continues[row] for row in canonical]
    encoded = student.encode_batch(forms, follows), teacher.encode_batch(forms, follows)
    sides = zip(canonical, forms, *encoded, strict=True)
    for row, form, student_text, teacher_text in sides:
        if isinstance(student_text, DocumentError):
            results[row] = student_text
        elif isinstance(teacher_text, DocumentError):
            results[row] = teacher_text
        else:
            results[row] = EncodedPair(form.encode(), student_text, teacher_text)
    return [result for result in results if result is not None]
