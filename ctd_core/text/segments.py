"""Documents as sequences of text and markers, and the tokens that each tokenizer writes for a marker."""

from dataclasses import dataclass

from transformers import PreTrainedTokenizerFast

from ctd_core.errors import TokenizerError
from ctd_core.text.encoding import TextEncoder

BEGIN, END = "begin", "end"


@dataclass(frozen=True)
class Text:
    """A stretch of text; scored where it is meant for training."""

    text: str
    scored: bool = True


@dataclass(frozen=True)
class Marker:
    """A place that every tokenizer marks with special tokens of its own, or with none. `role` says which place."""

    role: str
    scored: bool = True


@dataclass(frozen=True)
class Document:
    """Segments in order, and an id by which a user finds the document again."""

    id: str
    segments: tuple[Text | Marker, ...]


@dataclass(frozen=True)
class Side:
    """A tokenizer made ready for documents: text through `encoder`, markers by role through `markers`."""

    encoder: TextEncoder
    markers: dict[str, tuple[int, ...]]


def plain_document(document_id: str, text: str) -> Document:
    """A text from its beginning to its end."""
    return Document(document_id, (Marker(BEGIN, scored=False), Text(text), Marker(END)))


def make_side(tokenizer: PreTrainedTokenizerFast, name: str, begin_token: str | None, end_token: str | None) -> Side:
    """`tokenizer` with the markers of plain text.

    A text begins with what the tokenizer itself writes before one, else with its bos token, else with its eos token;
    it ends with its eos token. Tokens given by name come first. Raises TokenizerError where a name is none of its
    special tokens.
    """
    begin = _named(tokenizer, name, begin_token)
    if begin is None:
        begin = _written_before_text(tokenizer) or _first(tokenizer.bos_token_id, tokenizer.eos_token_id)
    end = _named(tokenizer, name, end_token)
    if end is None:
        end = _first(tokenizer.eos_token_id)
    return Side(TextEncoder(tokenizer, name), {BEGIN: begin, END: end})


def _named(tokenizer: PreTrainedTokenizerFast, name: str, token: str | None) -> tuple[int, ...] | None:
    if token is None:
        return None
    special = {added.content: token_id for token_id, added in tokenizer.added_tokens_decoder.items() if added.special}
    if token not in special:
        raise TokenizerError(f"{name}: {token!r} is none of its special tokens, which are {sorted(special)}.")
    return (special[token],)


def _written_before_text(tokenizer: PreTrainedTokenizerFast) -> tuple[int, ...]:
    plain = tokenizer("a", add_special_tokens=False)["input_ids"]
    framed = tokenizer("a", add_special_tokens=True)["input_ids"]
    starts = (n for n in range(len(framed) - len(plain) + 1) if framed[n : n + len(plain)] == plain)
    return tuple(framed[: next(starts, 0)])


def _first(*token_ids: int | None) -> tuple[int, ...]:
    return next(((token_id,) for token_id in token_ids if token_id is not None), ())
