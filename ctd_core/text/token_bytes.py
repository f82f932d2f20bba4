"""The exact bytes of every token id of a fast tokenizer."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from ctd_core.errors import TokenizerError
from ctd_core.text.normalisation import content_normaliser

PRETOKEN_STARTS = (b" ", b"\t", b"\n", b"\r")
BYTE_FALLBACK = re.compile(r"<0x([0-9A-Fa-f]{2})>")


@dataclass(frozen=True)
class TokenBytes:
    """What each token id stands for, for V ids.

    by_id: V byte strings; empty for a special token, None for an id that no token has.
    lengths_bytes: [V] int64, the lengths of `by_id`.
    is_special: [V] bool, control tokens, which stand for no text.
    is_fallback: [V] bool, tokens of one byte that are written where no other spells it.
    begins_pretoken: [V] bool, special tokens and those whose bytes begin with a space, tab, LF or CR
        (outcome chunk debiasing, arXiv 2503.20083).
    """

    by_id: tuple[bytes | None, ...]
    lengths_bytes: npt.NDArray[np.int64]
    is_special: npt.NDArray[np.bool_]
    is_fallback: npt.NDArray[np.bool_]
    begins_pretoken: npt.NDArray[np.bool_]

    @cached_property
    def joined(self) -> npt.NDArray[np.uint8]:
        """The bytes of all tokens one behind the other."""
        return np.frombuffer(b"".join(raw or b"" for raw in self.by_id), dtype=np.uint8)

    @cached_property
    def starts(self) -> npt.NDArray[np.int64]:
        """[V], where each token begins in `joined`."""
        return np.cumsum(self.lengths_bytes) - self.lengths_bytes


def decode(token_bytes: TokenBytes, ids: npt.NDArray[np.int32]) -> bytes:
    """What the tokens `ids` [S] spell together."""
    lengths = token_bytes.lengths_bytes[ids]
    before = np.cumsum(lengths) - lengths
    positions = np.repeat(token_bytes.starts[ids] - before, lengths)
    return token_bytes.joined[positions + np.arange(len(positions))].tobytes()


def ids_by_bytes(token_bytes: TokenBytes) -> dict[bytes, int]:
    """The token that stands for each byte string: of several the one that encoding writes (a piece rather than a
    byte-fallback token, and of those the last: added text rather than a piece). Special tokens stand for none.
    """
    fallback_first = np.argsort(~token_bytes.is_fallback, kind="stable").tolist()
    plain = [
        (token_bytes.by_id[token_id], token_id) for token_id in fallback_first if not token_bytes.is_special[token_id]
    ]
    return {raw: token_id for raw, token_id in plain if raw}


def read_token_bytes(tokenizer: Tokenizer, name: str) -> TokenBytes:
    """The bytes of every id of `tokenizer`, read off its own description.

    Covers byte-level BPE (tiktoken conversions too), and BPE or Unigram with metaspace, with or without byte
    fallback: `read_token_bytes(gpt2).by_id[262] == b" the"`.

    Raises TokenizerError, naming the tokenizer by `name`, where tokens do not keep the text between them
    (WordPiece, suffixes and prefixes that mark parts of words).
    """
    description = json.loads(tokenizer.to_str())
    model = description["model"]
    _refuse_lossy_models(model, name)
    space = _metaspace(description)
    byte_level = any(part["type"] == "ByteLevel" for part in _parts(description))
    if not byte_level and space is None and model["type"] != "Unigram" and not model.get("byte_fallback"):
        raise TokenizerError(
            f"{name}: neither a byte-level nor a metaspace tokenizer, so what it does with spaces is unknown. "
            "Take a byte-level BPE, or a SentencePiece tokenizer with metaspace."
        )
    ids = tokenizer.get_vocab(with_added_tokens=False)
    added = {token["id"]: token for token in description["added_tokens"]}
    size = max([*ids.values(), *added], default=-1) + 1
    spelled: list[bytes | None] = [None] * size
    special, fallback = np.zeros(size, dtype=np.bool_), np.zeros(size, dtype=np.bool_)
    for token, token_id in ids.items():
        if byte_level:
            spelled[token_id] = _from_byte_level(token)
        elif model.get("byte_fallback") and (match := BYTE_FALLBACK.fullmatch(token)):
            spelled[token_id], fallback[token_id] = bytes([int(match[1], 16)]), True
        else:
            spelled[token_id] = (token.replace(space, " ") if space else token).encode()
    normalise = content_normaliser(tokenizer, name)
    for token_id, token in added.items():
        content = token["content"]
        if token["special"]:
            special[token_id] = True
            spelled[token_id] = b""
        elif token["normalized"] and not byte_level and space:  # matched in a text whose spaces are rewritten
            written = tokenizer.normalizer.normalize_str(content) if tokenizer.normalizer else content
            spelled[token_id] = written.replace(space, " ").encode()
        elif byte_level or content not in ids:
            # Matched in the text itself, before any pre-tokenization: it stands for what it says.
            spelled[token_id] = (normalise(content) if token["normalized"] and normalise else content).encode()
    starts = np.array([raw is not None and raw.startswith(PRETOKEN_STARTS) for raw in spelled], dtype=np.bool_)
    return TokenBytes(
        by_id=tuple(spelled),
        lengths_bytes=np.array([len(raw or b"") for raw in spelled], dtype=np.int64),
        is_special=special,
        is_fallback=fallback,
        begins_pretoken=starts | special,
    )


def _refuse_lossy_models(model: dict[str, Any], name: str) -> None:
    if model["type"] not in {"BPE", "Unigram"}:
        raise TokenizerError(
            f"{name}: a {model['type']} tokenizer drops the white space between its tokens, so its tokens do not "
            "spell the text. Take a model with a BPE or Unigram tokenizer."
        )
    for mark in ("end_of_word_suffix", "continuing_subword_prefix"):
        if model.get(mark):
            raise TokenizerError(
                f"{name}: its tokens carry the {mark} {model[mark]!r} in place of white space, so they do not spell "
                "the text. Take a model with a byte-level or metaspace tokenizer."
            )


def _parts(description: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Every normaliser, pre-tokenizer and decoder of a tokenizer's description, sequences flattened."""
    todo = [description.get(key) for key in ("normalizer", "pre_tokenizer", "decoder")]
    while todo:
        part = todo.pop(0)
        if part is None:
            continue
        inner = next((part[key] for key in ("normalizers", "pretokenizers", "decoders") if key in part), None)
        if inner is None:
            yield part
        else:
            todo = list(inner) + todo


def _metaspace(description: dict[str, Any]) -> str | None:
    """The character that stands for a space inside the tokens, None where there is none."""
    for part in _parts(description):
        if part["type"] == "Metaspace":
            return str(part["replacement"])
        if part["type"] == "Replace" and part["pattern"].get("String") == " " and part["content"] != " ":
            return str(part["content"])
    return None


def _bytes_of_characters() -> dict[str, int]:
    """The characters that byte-level tokenizers write for bytes: printable ones for themselves, the rest from 256."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    table = {chr(byte): byte for byte in printable}
    others = [byte for byte in range(256) if byte not in set(printable)]
    return table | {chr(256 + n): byte for n, byte in enumerate(others)}


BYTE_OF_CHARACTER = _bytes_of_characters()


def _from_byte_level(token: str) -> bytes:
    if all(character in BYTE_OF_CHARACTER for character in token):
        return bytes(BYTE_OF_CHARACTER[character] for character in token)
    return token.encode()  # never produced from text; kept for vocabularies that list added tokens in the model
