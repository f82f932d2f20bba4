"""Conversations as a tokenizer's own chat template writes them, cut into contents and what is written around them."""

import copy
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from typing import Any, NamedTuple

import jinja2
from transformers import PreTrainedTokenizerFast

from ctd_core.errors import DocumentError, TokenizerError, first_line
from ctd_core.text.documents import Turn
from ctd_core.text.tokenizers import copied_token

# Contents that stand for any other: two sets, under which a template has to write the same around them.
PLACEHOLDERS = ("Qx{}zQ", "Wyy{}vvW")
SHOWN_CHARACTERS = 200
# A template is a program of its own, which may fail in any of these ways.
TEMPLATE_ERRORS = (jinja2.TemplateError, TypeError, ValueError, LookupError, AttributeError)


THE_DAY = datetime(2024, 7, 26)  # for templates that write today's: what Llama 3's has where it is given none
TODAY = re.compile(r"""strftime_now\(\s*(["'])(.*?)\1\s*\)""")


class WrittenTurn(NamedTuple):
    """A message in a rendered conversation.

    header: what is written before its content. start, stop: which of the content's characters are written. end: what is
    written after it, up to the header of the next message. lead: how many characters at the header's end, all white
    space, a model writes itself, with the content: a generation prompt does not have them.
    """

    header: str
    start: int
    stop: int
    end: str
    lead: int = 0


@dataclass(frozen=True)
class _Frame:
    """What a template writes around the contents of messages of certain roles; see WrittenTurn."""

    headers: tuple[str, ...]
    ends: tuple[str, ...]
    leads: tuple[int, ...]


class ChatTemplate:
    """The chat template of a tokenizer.

    name: what messages call it. special: finds the names of its special tokens.

    Args:
        tokenizer: a tokenizer with a chat template.
        name: what messages call it.

    Raises:
        TokenizerError: it has no template.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast, name: str) -> None:
        if not tokenizer.chat_template:
            raise TokenizerError(
                f"{name}: this tokenizer has no chat template, and the corpus holds conversations. Take a tokenizer "
                "with one (student.chat: keep gives the student's its teacher's), or the text of the messages alone."
            )
        self._tokenizer, self.name = tokenizer, name
        self.special = re.compile(f"({names_of_special_tokens(tokenizer).pattern})")
        self._frame = lru_cache(maxsize=1024)(self._find_frame)

    def __reduce__(self) -> tuple[type["ChatTemplate"], tuple[PreTrainedTokenizerFast, str]]:
        return ChatTemplate, (self._tokenizer, self.name)

    def write(self, turns: Sequence[Turn]) -> list[WrittenTurn]:
        """The messages as the template writes them; put together they are its rendering, character for character.

        Args:
            turns: the messages, in order.

        Returns:
            What is written of each.

        Raises:
            DocumentError: the template refuses the conversation, or changes a content in other ways than by stripping
                white space from its ends.
        """
        return self._written(turns, self.render(turns))

    def write_batch(self, conversations: Sequence[Sequence[Turn]]) -> list[list[WrittenTurn] | DocumentError]:
        """`write` for each conversation, with the error where there is one; rendered in one call, which takes less."""
        rendered: list[str | None] = [None] * len(conversations)
        with suppress(*TEMPLATE_ERRORS):  # where one of them fails, each is rendered by itself
            rendered = list(self._apply([_messages(turns) for turns in conversations]))
        results: list[list[WrittenTurn] | DocumentError] = []
        for turns, text in zip(conversations, rendered, strict=True):
            try:
                results.append(self._written(turns, self.render(turns) if text is None else text))
            except DocumentError as error:
                results.append(error)
        return results

    def _written(self, turns: Sequence[Turn], rendered: str) -> list[WrittenTurn]:
        frame = self._frame(tuple(turn.role for turn in turns))
        written, at = [], 0
        for number, turn in enumerate(turns):
            after = frame.ends[number] + (frame.headers[number + 1] if number + 1 < len(turns) else "")
            begin = at + len(frame.headers[number])
            found = _find_content(rendered, begin, turn.text, after, is_last=number + 1 == len(turns))
            if found is None or rendered[at:begin] != frame.headers[number]:
                raise DocumentError(
                    "a chat template changes a message",
                    f"{self.name}: its template does not write message {number} ({turn.role}) as it is: "
                    f"{turn.text[:SHOWN_CHARACTERS]!r} becomes {rendered[at : begin + SHOWN_CHARACTERS]!r}",
                )
            start, stop = found
            written.append(WrittenTurn(frame.headers[number], start, stop, frame.ends[number], frame.leads[number]))
            at = begin + stop - start + len(frame.ends[number])
        return written

    def _find_frame(self, roles: tuple[str, ...]) -> _Frame:
        frames = []
        for pattern in PLACEHOLDERS:
            contents = [pattern.format(number) for number in range(len(roles))]
            messages = [Turn(role, content) for role, content in zip(roles, contents, strict=True)]
            frames.append(self._cut(self.render(messages), messages))
        if frames[0] != frames[1]:
            raise DocumentError(
                "a chat template depends on contents",
                f"{self.name}: around the contents of {', '.join(roles)} its template writes {frames[0]} or "
                f"{frames[1]}",
            )
        return frames[0]

    def _cut(self, rendered: str, messages: list[Turn]) -> _Frame:
        headers, ends, leads, at = [], [], [], 0
        for number, message in enumerate(messages):
            role, content = message.role, message.text
            begin = rendered.find(content, at)
            if begin < 0 or rendered.count(content) != 1:
                raise DocumentError(
                    "a chat template leaves out or moves a message",
                    f"{self.name}: of the roles {', '.join(turn.role for turn in messages)} its template writes "
                    f"message {number} ({role}) {rendered.count(content)} times or out of order: "
                    f"{rendered[:SHOWN_CHARACTERS]!r}",
                )
            if number:
                end = at + self._end_of_turn(rendered[at:begin], messages[:number])
                ends.append(rendered[at:end])
                headers.append(rendered[end:begin])
            else:
                headers.append(rendered[:begin])
            leads.append(self._lead(rendered[:begin], headers[-1], role, messages[:number]))
            at = begin + len(content)
        ends.append(rendered[at:])
        return _Frame(tuple(headers), tuple(ends), tuple(leads))

    def _lead(self, before: str, header: str, role: str, messages: list[Turn]) -> int:
        """How much white space at the end of `header`, the last of what is written `before` a content, belongs to it.

        Of an assistant's message: what the generation prompt after the `messages` before does not have.
        """
        lead = len(header) - len(header.rstrip())
        if role != "assistant" or not lead:
            return lead
        try:
            prompt = self.render(messages, add_generation_prompt=True)
        except DocumentError:
            return 0
        return min(lead, len(before) - len(prompt)) if before.startswith(prompt) else 0

    def _end_of_turn(self, between: str, messages: list[Turn]) -> int:
        """How much of `between`, which is written after the last of `messages`, ends it; the rest is the next header.

        The end is what would be written after it if no message followed, as far as both agree: templates may end a
        conversation in other ways than a message. Where they refuse one that ends there, all is a header.
        """
        try:
            shorter = self.render(messages)
        except DocumentError:
            return 0
        content = messages[-1].text
        last = shorter[shorter.rfind(content) + len(content) :]
        if between.startswith(last):
            return len(last)
        agreed = 0
        for here, there in zip(self.special.split(between), self.special.split(last), strict=False):
            if here != there:
                break
            agreed += len(here)
        return agreed

    def render(self, turns: Sequence[Turn], add_generation_prompt: bool = False) -> str:
        """The conversation as the template writes it; raises DocumentError where it refuses to."""
        try:
            (rendered,) = self._apply([_messages(turns)], add_generation_prompt)
        except TEMPLATE_ERRORS as error:
            raise DocumentError(
                "a chat template refuses the conversation",
                f"{self.name}: {first_line(error)}, for the roles {', '.join(turn.role for turn in turns)}",
            ) from error
        return rendered

    def _apply(self, conversations: list[list[dict[str, Any]]], add_generation_prompt: bool = False) -> list[str]:
        rendered: list[str] = apply_template(
            self._tokenizer, conversations, tokenize=False, add_generation_prompt=add_generation_prompt
        )
        return rendered


def apply_template(tokenizer: PreTrainedTokenizerFast, messages: Sequence[Any], **options: Any) -> Any:
    """As `tokenizer.apply_chat_template`, on one day: what is learned, and resumed, does not depend on today's date."""
    return tokenizer.apply_chat_template(messages, chat_template=template_of_one_day(tokenizer), **options)


def template_of_one_day(tokenizer: PreTrainedTokenizerFast) -> str:
    """The chat template of a tokenizer that has one, with THE_DAY in place of today."""
    return TODAY.sub(lambda call: repr(THE_DAY.strftime(call[2])), tokenizer.get_chat_template())


def _messages(turns: Sequence[Turn]) -> list[dict[str, Any]]:
    """The messages as chat templates take them."""
    messages: list[dict[str, Any]] = [{"role": turn.role, "content": turn.text} | dict(turn.names) for turn in turns]
    for turn, message in zip(turns, messages, strict=True):
        if turn.tool_calls:
            message["tool_calls"] = [{"type": "function", "function": dict(call)} for call in turn.tool_calls]
    return messages


def names_of_special_tokens(tokenizer: PreTrainedTokenizerFast) -> re.Pattern[str]:
    """Finds the name of a special token, of several that begin there the longest."""
    names = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special and token.content}
    return re.compile("|".join(map(re.escape, sorted(names, key=len, reverse=True))) or "(?!)")


def _find_content(rendered: str, begin: int, content: str, after: str, is_last: bool) -> tuple[int, int] | None:
    """Which characters of `content` are written at `begin`, followed by `after`; None where neither it is nor what is
    left of it without white space at its ends.
    """
    left, right = len(content) - len(content.lstrip()), len(content.rstrip())
    for start, stop in ((0, len(content)), (left, right), (left, len(content)), (0, right)):
        stop = max(start, stop)
        written = content[start:stop] + after
        if rendered.startswith(written, begin) and (not is_last or begin + len(written) == len(rendered)):
            return start, stop
    return None


def with_chat_of(tokenizer: PreTrainedTokenizerFast, teacher: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    """A copy of a tokenizer with the chat template of another, and the special tokens that this writes.

    Args:
        tokenizer: the student's tokenizer, of any kind; it is not changed.
        teacher: a tokenizer with a chat template.

    Returns:
        The copy. Tokens that it has already keep their ids, others come behind its vocabulary.
    """
    joined = copy.deepcopy(tokenizer)
    special = [token for token in teacher.added_tokens_decoder.values() if token.special]
    written = _everything_written(teacher)
    template = str(teacher.chat_template)
    roles = [role for role in ("bos", "eos") if f"{role}_token" in template and getattr(teacher, f"{role}_token")]
    names = {getattr(teacher, f"{role}_token") for role in roles}
    wanted = [token for token in special if token.content in names or token.content in written + template]
    joined.add_tokens([copied_token(token, token.content, special=True) for token in wanted], special_tokens=True)
    for role in roles:
        setattr(joined, f"{role}_token", getattr(teacher, f"{role}_token"))
    joined.chat_template = teacher.chat_template
    return joined


def _everything_written(tokenizer: PreTrainedTokenizerFast) -> str:
    """Conversations of every usual role, as far as the template writes them: names may be put together in it."""
    written = ""
    for roles in (("system", "user", "assistant"), ("user", "assistant"), ("user", "assistant", "tool")):
        messages = [{"role": role, "content": "content"} for role in roles]
        for prompts in (False, True):
            with suppress(jinja2.TemplateError):
                written += str(apply_template(tokenizer, messages, tokenize=False, add_generation_prompt=prompts))
    return written
