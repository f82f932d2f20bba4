"""Documents as sequences of text and markers."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

BEGIN, END = "begin", "end"


@dataclass(frozen=True)
class Text:
    """A stretch of text; scored where it is meant for training."""

    text: str
    scored: bool = True


@dataclass(frozen=True)
class Marker:
    """A position that every tokenizer marks with special tokens of its own, or with none. `role` says which."""

    role: str
    scored: bool = True


@dataclass(frozen=True)
class Turn:
    """A message of a conversation: its content. Each tokenizer's chat template writes markers of its own around it.

    tool_calls: what its model calls, each with a `name` and `arguments`, which a template writes behind the content.
    is_cut: it would go on, so that the end that templates write is not learned.
    names: what else it has that a template may write: `name` and `tool_call_id`, with their values.
    """

    role: str
    text: str
    scored: bool = True
    tool_calls: tuple[Mapping[str, Any], ...] = ()
    is_cut: bool = False
    names: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Document:
    """Segments in order, and an id by which a user finds the document again."""

    id: str
    segments: tuple[Text | Marker | Turn, ...]

    @property
    def text(self) -> str:
        """The text of all segments, without markers."""
        return "".join(segment.text for segment in self.segments if not isinstance(segment, Marker))

    @property
    def turns(self) -> tuple[Turn, ...]:
        """The messages of a conversation; none in a document of plain text."""
        return tuple(segment for segment in self.segments if isinstance(segment, Turn))


def plain_document(document_id: str, text: str) -> Document:
    """A text from its beginning to its end."""
    return Document(document_id, (Marker(BEGIN, scored=False), Text(text), Marker(END)))


def is_unicode(text: str) -> bool:
    """Whether `text` can be written as UTF-8: it holds no lone surrogate."""
    return not any("\ud800" <= character <= "\udfff" for character in text)
