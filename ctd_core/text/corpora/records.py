"""The document in a record: its text, or its conversation."""

import json
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any

from ctd_core.config.text import JsonLines, OwnTexts, Records
from ctd_core.errors import DocumentError, UsageError
from ctd_core.text.documents import BEGIN, END, Document, Marker, Text, Turn, plain_document

# The roles of messages by the names that data sets give them.
ROLES = {role: role for role in ("system", "developer", "user", "assistant", "tool", "function", "ipython")}
ROLES |= {"human": "user", "gpt": "assistant", "bot": "assistant", "model": "assistant"}
# What some templates write beside the content: a student that learned without it would not see what the model sees.
WRITTEN_BY_SOME = ("function_call", "reasoning_content", "reasoning", "thinking")

Record = dict[str, Any]


def document_of(record: object, corpus: Records, path: str) -> Document | DocumentError:
    """The document in a record.

    Args:
        record: what was read at `path`, a mapping by name.
        corpus: says which names hold the text, or the messages.
        path: by which a user finds the record again.

    Returns:
        The document, or why there is none.
    """
    if isinstance(corpus, OwnTexts):
        return own_text_of(record, path)
    values = [_value(record, name) for name in corpus.columns]
    for name, value in zip(corpus.columns, values, strict=True):
        if value is None:
            known = ", ".join(sorted(map(str, record))) if isinstance(record, Mapping) else f"a {type(record).__name__}"
            what = "messages" if corpus.messages else "text"
            return DocumentError(
                f"no {what} in the field {name!r}",
                f"{path}: there is {known}. Which of a record's fields is read, {corpus.columns_option} says.",
            )
    try:
        if corpus.messages is not None:
            outer = _value(record, corpus.messages.rpartition(".")[0])  # of messages within another field
            holders = [outer, record] if isinstance(outer, Mapping) else [record]
            if beside := next(filter(None, (first_beside(holder, WRITTEN_BESIDE) for holder in holders)), None):
                raise _Unreadable(
                    WRITTEN_BESIDE[beside],
                    f"{beside!r} is not read, and messages would be learned without it. Take it out to have that",
                )
            system = [turn for holder in holders for turn in _system_turn(holder, corpus)]
            turns = [*system, *_turns(values[0], corpus)]
            if [turn.role for turn in turns[:2]] in (["system", "system"], ["system", "developer"]):
                raise _Unreadable("two system prompts", f"one in {SYSTEM!r}, and one in the messages. Take one out")
        elif corpus.as_text:
            prompt, response = (_text(value, name) for name, value in zip(corpus.columns, values, strict=True))
            learned = corpus.train_on == "all"
            parts = (Marker(BEGIN, scored=False), Text(prompt, learned), Text(response), Marker(END))
            return Document(path, parts)
        elif corpus.prompt is not None:
            turns = [*_turns(values[0], corpus, "user"), *_turns(values[1], corpus, "assistant")]
        else:
            return plain_document(path, _text(values[0], corpus.field))
    except _Unreadable as error:
        return DocumentError(error.reason, f"{path}: {error}")
    return Document(path, tuple(turns))


def own_text_of(record: Any, path: str) -> Document | DocumentError:
    """What a student wrote after a prompt, which is context.

    Of a text that was cut neither an end nor the last of several words is learned: it may have gone on.
    """
    if error := record["generated"].get("error"):
        return DocumentError("a prompt that the student cannot be asked", f"{path}: {error}")
    answer, has_ended, is_chat = record["generated"]["text"], record["generated"]["ended"], "messages" in record
    if not answer.strip():
        return DocumentError("a text of its own that is empty", path)
    if not has_ended and len(words := answer.rsplit(maxsplit=1)) > 1:
        answer = words[0]
    if record["generated"]["special_tokens"]:  # without them it would be another text
        return DocumentError("a text of its own with special tokens inside", f"{path}: {answer[:40]!r}")
    if "\ufffd" in answer:  # a student of bytes may stop in the middle of a character
        return DocumentError("a text of its own that is not Unicode", f"{path}: {answer[-40:]!r}")
    if not is_chat:
        end = (Marker(END),) if has_ended else ()
        return Document(path, (Marker(BEGIN, scored=False), Text(record["prompt"], False), Text(answer), *end))
    asked = [
        Turn(message["role"], message["content"], scored=False, names=_names(message)) for message in record["messages"]
    ]
    return Document(path, (*asked, Turn("assistant", answer, is_cut=not has_ended)))


def messages_of_prompt(messages: Any) -> list[Record]:
    """The messages that a student is to answer, each with what a corpus would have of it.

    Raises UsageError where one cannot be read, or calls tools, and where there is nothing to answer.
    """
    try:
        turns = _turns(messages, None, "user")
    except _Unreadable as error:
        raise UsageError(f"{error.reason}: {error}") from error
    if any(turn.tool_calls for turn in turns):
        raise UsageError("a message calls tools, and what a student writes after one is not learned")
    return [{"role": turn.role, "content": turn.text} | dict(turn.names) for turn in turns]


SYSTEM = "system"  # the field beside a conversation's messages that holds what is to be the first of them
# Other fields of it that some templates write.
WRITTEN_BESIDE = {
    "tools": "definitions of tools",
    "functions": "definitions of tools",
    "chat_template_kwargs": "options of a chat template",
}
TEXT_PARTS = ("text", "input_text", "output_text")  # types of a part of a message's content
NAMES = ("name", "tool_call_id")  # of a message, beside its role and content


def columns_of(corpus: Records, known: Sequence[str], source: str, hint: str = "") -> list[str]:
    """The columns of a table that are read: of a name such as data.text the first part, unless it is a column.

    Args:
        corpus: says which names hold the text, or the messages.
        known: the names of all columns.
        source: what messages call the table.
        hint: what to say where a column is not there.

    Returns:
        Their names, each once.

    Raises:
        UsageError: a column is not there, or several have its name.
    """
    columns = list(dict.fromkeys(name if name in known else name.partition(".")[0] for name in corpus.columns))
    for column in columns:
        if known.count(column) > 1:
            raise UsageError(f"{corpus.columns_option}: {source} has several columns {column!r}. Name another.")
        if column not in known:
            raise UsageError(f"{corpus.columns_option}: {source} has no {column!r}; there is {', '.join(known)}.{hint}")
    beside = [name for name in (SYSTEM, *WRITTEN_BESIDE) if name in known] if corpus.messages is not None else []
    return list(dict.fromkeys([*columns, *beside]))


def first_beside(record: object, names: Iterable[str]) -> str | None:
    """The first of a record's fields of `names` with more than what data sets write for nothing; None without any."""
    return next((name for name in names if _holds_anything(_value(record, name))), None)


class _Unreadable(Exception):
    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


def _value(record: object, name: str) -> Any:
    """What a record has under `name`, or under its parts, one within another."""
    if not isinstance(record, Mapping):
        return None
    if name in record:
        return record[name]
    outer, dot, inner = name.partition(".")
    return _value(record.get(outer), inner) if dot else None


def _text(value: Any, name: str) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, bytes):  # a Parquet column of type binary
        try:
            return value.decode()
        except UnicodeDecodeError as error:
            raise _Unreadable("not UTF-8 text", f"{error.reason} at byte {error.start}") from error
    raise _Unreadable(f"no text in the field {name!r}", f"it holds a {type(value).__name__}, and no string")


def _turns(value: Any, corpus: Records | None, role: str | None = None) -> list[Turn]:
    """The messages in `value` of a corpus or, without one, of a prompt; a string is one of `role`."""
    if isinstance(value, str) and role is not None:
        value = [{"role": role, "content": value}]
    if not isinstance(value, list) or not value:
        raise _Unreadable("no messages", f"there has to be a list of role and content: {value!r:.80}")
    turns = [_turn(message, corpus) for message in value]
    if role is None and not any(turn.scored for turn in turns):
        roles = ", ".join(dict.fromkeys(turn.role for turn in turns))
        raise _Unreadable("a conversation without an assistant's message", f"there is nothing to learn from {roles}")
    return turns


def _system_turn(record: object, corpus: Records) -> list[Turn]:
    """What stands in the field beside the messages."""
    if first_beside(record, [SYSTEM]) is None:
        return []
    return [Turn("system", _text(_value(record, SYSTEM), SYSTEM), scored=corpus.train_on == "all")]


def _turn(message: Any, corpus: Records | None) -> Turn:
    """A message as `role` and `content`, or as `from` and `value`."""
    written = message.get("role", message.get("from")) if isinstance(message, Mapping) else None
    if not isinstance(written, str):
        raise _Unreadable("a message without a role", f"{message!r:.80}")
    role = ROLES.get(written.lower())
    if role is None:
        raise _Unreadable("a role that is not known", f"{written!r:.40} is none of {', '.join(ROLES)}")
    if unread := next((name for name in WRITTEN_BY_SOME if message.get(name)), None):
        raise _Unreadable(f"a message with {unread}", f"some chat templates write {unread}, and here it is not read")
    listed = message.get("tool_calls") or []
    if not isinstance(listed, list | tuple):
        raise _Unreadable("tool calls that are no list", f"{listed!r:.80}")
    has_own_fields = corpus is None or isinstance(corpus, JsonLines)  # in a table each struct has the fields of all
    calls = tuple(_tool_call(call if has_own_fields else without_nulls(call)) for call in listed)
    content = message.get("content", message.get("value"))
    if content is None and calls:
        content = ""
    if isinstance(content, list):
        parts = [
            part.get("text") if isinstance(part, Mapping) and part.get("type", "text") in TEXT_PARTS else part
            for part in content
        ]
        texts = [part for part in parts if isinstance(part, str)]
        if len(texts) < len(parts):
            raise _Unreadable("a message that is not text", f"a part of {written}'s content is no text")
        content = "".join(texts)
    if not isinstance(content, str):
        raise _Unreadable("a message without a content", f"{message!r:.80}")
    learns_all = corpus is not None and corpus.train_on == "all"
    is_learned = (learns_all or role == "assistant") and message.get("weight") != 0
    return Turn(role, content, is_learned, calls, names=_names(message))


def _names(message: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    return tuple((name, value) for name in NAMES if isinstance(value := message.get(name), str))


def without_nulls(value: Any) -> Any:
    """`value` without the keys of mappings within it that have no value."""
    if isinstance(value, Mapping):
        return {name: without_nulls(inner) for name, inner in value.items() if inner is not None}
    return [without_nulls(inner) for inner in value] if isinstance(value, list) else value


def _holds_anything(value: Any) -> bool:
    """Whether there is more than empty mappings, lists and texts, as which data sets write that there is nothing."""
    if isinstance(value, Mapping):
        return any(map(_holds_anything, value.values()))
    if isinstance(value, list | tuple):
        return any(map(_holds_anything, value))
    return value.strip() not in ("", "[]", "{}", "null") if isinstance(value, str) else bool(value)


def _tool_call(call: Any) -> dict[str, Any]:
    """The name and the arguments of a call; these may be written as JSON."""
    function = call.get("function", call) if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise _Unreadable("a tool call without a name", f"{call!r:.80}")
    arguments = function.get("arguments")
    if isinstance(arguments, str):
        with suppress(ValueError):  # then a template writes it as it is
            arguments = json.loads(arguments)
    return {"name": function["name"], "arguments": arguments}
