"""Tool calls of conversations, as the text that chat templates make of them."""

from collections.abc import Sequence
from dataclasses import replace

from ctd_core.errors import DocumentError
from ctd_core.text.chat import SHOWN_CHARACTERS, ChatTemplate
from ctd_core.text.documents import Turn

INSTEAD_OF_CALLS = "Vxx0xxV"  # a content


def with_calls_written(templates: Sequence[ChatTemplate], turns: list[Turn]) -> list[Turn]:
    """Messages with their tool calls as text behind their contents, as all templates write them.

    Args:
        templates: one or more.
        turns: the messages, in order.

    Returns:
        The messages without tool calls.

    Raises:
        DocumentError: a template refuses the conversation, writes special tokens around calls, or leaves no message
            whose content they could be; or two templates write other texts.
    """
    if not any(turn.tool_calls for turn in turns):
        return turns
    first, *others = [_written_by(template, turns) for template in templates]
    for template, other in zip(templates[1:], others, strict=True):
        for here, there in zip(first, other, strict=True):
            if here != there:
                raise DocumentError(
                    "tool calls that the two templates write in two ways",
                    f"{templates[0].name} writes {here.text[:80]!r}, {template.name} {there.text[:80]!r}. "
                    "student.chat: keep gives the student its teacher's template",
                )
    return first


def _written_by(template: ChatTemplate, turns: Sequence[Turn]) -> list[Turn]:
    """The messages with calls as the template writes them; its rendering of both is the same."""
    written = list(turns)
    without = [replace(turn, tool_calls=()) for turn in turns]
    if without != written and template.render(without) == template.render(turns):
        raise DocumentError(
            "a chat template that writes no tool calls",
            f"{template.name}: its template leaves them out. Write them into the messages' contents, or take models "
            "whose templates write them",
        )
    for number, turn in enumerate(turns):
        if turn.tool_calls:
            written[number] = replace(turn, text=_with_calls(template, written, number), tool_calls=())
    if any(turn.tool_calls for turn in turns) and template.render(written) != template.render(turns):
        raise DocumentError(
            "a chat template writes tool calls otherwise than a content",
            f"{template.name}: {template.render(turns)[:SHOWN_CHARACTERS]!r}",
        )
    return written


def _with_calls(template: ChatTemplate, turns: list[Turn], number: int) -> str:
    """Content and calls of message `number`: what is written in the place of another content."""
    rendered = template.render(turns)
    other = template.render([*turns[:number], Turn(turns[number].role, INSTEAD_OF_CALLS), *turns[number + 1 :]])
    before, found, after = other.partition(INSTEAD_OF_CALLS)
    stop = len(rendered) - len(after)
    if not found or not rendered.startswith(before) or not rendered.endswith(after) or stop <= len(before):
        raise DocumentError(
            "a chat template writes tool calls otherwise than a content",
            f"{template.name}: {rendered[:SHOWN_CHARACTERS]!r}",
        )
    text = rendered[len(before) : stop]
    names = [call["name"] for call in turns[number].tool_calls]
    if missing := next((name for name in names if name not in text), None):
        raise DocumentError(
            "a chat template leaves out a tool call",
            f"{template.name}: {missing!r} is not in {text[:SHOWN_CHARACTERS]!r}",
        )
    if template.special.search(text):
        raise DocumentError(
            "tool calls with special tokens", f"{template.name}: its template writes {text[:SHOWN_CHARACTERS]!r}"
        )
    return text
