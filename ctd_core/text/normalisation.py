"""Bringing text to a form that both tokenizers leave alone."""

import json
import unicodedata
from collections.abc import Callable, Sequence
from typing import Any

from tokenizers import Tokenizer, normalizers

from ctd_core.errors import DocumentError, TokenizerError

Normaliser = Callable[[str], str]

PROBES = (
    "Hello World",
    "naïve café Å",
    "e\u0301",
    "a\nb",
    "a\tb",
    "a\r\nb",
    "a  b",
    " a ",
    "ﬁ ① ２",
    "Ελλάδα",
    "日本語 がが",
    "İ",
)
MAX_ROUNDS = 4


def content_normaliser(tokenizer: Tokenizer, name: str) -> Normaliser | None:
    """What `tokenizer` does to the characters of a text, its spelling of spaces left out; None for nothing.

    Raises TokenizerError where it changes a text to one that is not even compatibility-equivalent (Unicode NFKC),
    as lower-casing, stripping accents and collapsing white space do: such a tokenizer cannot spell its input.
    """
    description = json.loads(tokenizer.to_str())["normalizer"]
    kept = [part for part in _flat(description) if not _spells_spaces(part)]
    if not kept:
        return None
    rebuilt = _build({"type": "Sequence", "normalizers": kept})
    types = ", ".join(part["type"] for part in kept)
    for probe in PROBES:
        result = rebuilt(probe)
        if not _is_compatible(probe, result):
            raise TokenizerError(
                f"{name}: its normaliser ({types}) turns {probe!r} into {result!r}, so its tokens cannot spell the "
                "text. Take a model whose tokenizer keeps case, accents and white space."
            )
    return rebuilt


def canonical_form(text: str, normalise: Sequence[Normaliser]) -> str:
    """`text` in a form that every one of `normalise` leaves alone, for example its NFC.

    Raises DocumentError where it is no Unicode text, there is no such form, or it says something else (is not of the
    same Unicode NFKC).
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        raise DocumentError("not Unicode text", f"a lone surrogate in {text[:80]!r}") from None
    given = text
    for _ in range(MAX_ROUNDS):
        changed = False
        for normaliser in normalise:
            before, text = text, normaliser(text)
            changed |= text != before
        if not changed:
            break
    else:
        raise DocumentError("normalisers disagree", f"the two normalisers undo each other's changes in {text[:80]!r}")
    if text != given and not _is_compatible(given, text):
        raise DocumentError("a normaliser changes the text", f"it turns {given[:80]!r} into {text[:80]!r}")
    return text


def _is_compatible(first: str, other: str) -> bool:
    return unicodedata.normalize("NFKC", first) == unicodedata.normalize("NFKC", other)


def _flat(part: dict[str, Any] | None) -> list[dict[str, Any]]:
    if part is None:
        return []
    if part["type"] == "Sequence":
        return [inner for inner in part["normalizers"] for inner in _flat(inner)]
    return [part]


def _spells_spaces(part: dict[str, Any]) -> bool:
    """Whether a normaliser only writes spaces in the vocabulary's own way, which spellings undo."""
    return (
        part["type"] in {"Prepend", "ByteLevel"}
        or (part["type"] == "Replace" and part["pattern"].get("String") == " ")
    )  # fmt: skip


def _build(description: dict[str, Any]) -> Normaliser:
    shell = json.dumps({
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": [], "normalizer": description,
        "pre_tokenizer": None, "post_processor": None, "decoder": None,
        "model": {"type": "BPE", "vocab": {}, "merges": []},
    })  # fmt: skip
    normalizer: normalizers.Normalizer = Tokenizer.from_str(shell).normalizer
    normalise: Normaliser = normalizer.normalize_str
    return normalise
