"""Tool calls: text behind a content where both templates write the same, a reason where they do not."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ctd_core.align.documents import MARKER, SCORED, align_documents
from ctd_core.errors import DocumentError
from ctd_core.text.chat import with_chat_of
from ctd_core.text.documents import Document, Turn
from ctd_core.text.prepared_tokenizer import prepare_tokenizer
from tests.support.chat_templates import CHATML, chat_tokenizer
from tests.support.tokenizers import TOTAL

# As Qwen's: calls between tags of plain text. A call alone has no content before it.
WITH_TAGS = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] }}"
    "{% for call in m.tool_calls or [] %}{% if m['content'] or not loop.first %}{{ '\n' }}{% endif %}"
    "{{ '<tool_call>\n' + (call.function | tojson) + '\n</tool_call>' }}{% endfor %}{{ '<|im_end|>\n' }}{% endfor %}"
)
# As Llama 3.1's: parameters, of a single call.
AS_PARAMETERS = WITH_TAGS.replace(
    "(call.function | tojson)",
    "'{\"name\": \"' + call.function.name + '\", \"parameters\": ' + (call.function.arguments | tojson) + '}'",
)
# As Mistral's: special tokens.
WITH_SPECIAL = WITH_TAGS.replace("<tool_call>", "<|im_start|>")
LEFT_OUT = "a chat template that writes no tool calls"
OTHERWISE = "a chat template writes tool calls otherwise than a content"
WEATHER = {"name": "weather", "arguments": {"place": "Zürich ☀", "days": 3}}
CONVERSATION = [
    Turn("user", "How is it there?", scored=False),
    Turn("assistant", "I look.", tool_calls=(WEATHER,)),
    Turn("tool", '{"sun": true}', scored=False),
    Turn("assistant", "Sunny."),
]


def side(template, kind="byte-level BPE, 600"):
    tokenizer = with_chat_of(TOTAL[kind](), chat_tokenizer("ChatML"))
    tokenizer.chat_template = template
    return prepare_tokenizer(tokenizer, f"{kind} of {len(template)}", None, None)


def messages(turns):
    return [
        {"role": turn.role, "content": turn.text}
        | (
            {"tool_calls": [{"type": "function", "function": call} for call in turn.tool_calls]}
            if turn.tool_calls
            else {}
        )
        for turn in turns
    ]


def scored_text(prepared, ids, ends, kinds):
    """What the tokens of scored chunks of text spell."""
    begins = np.concatenate([[0], ends[:-1]])
    chosen = [
        ids[begin:end]
        for begin, end, kind in zip(begins, ends, kinds, strict=True)
        if kind & SCORED and not kind & MARKER
    ]
    return b"".join(prepared.encoder.token_bytes.by_id[token] for part in chosen for token in part).decode()


@pytest.mark.parametrize("kind", ["bytes", "byte-level BPE, 300", "SentencePiece BPE with a leading space"])
def test_calls_are_learned_as_the_text_that_both_templates_write(kind):
    student, teacher = side(WITH_TAGS, kind), side(WITH_TAGS)
    (aligned,) = align_documents(student, teacher, [Document("d", tuple(CONVERSATION))])
    for prepared, ids in ((student, aligned.student_ids), (teacher, aligned.teacher_ids)):
        tokenizer = prepared.encoder.tokenizer
        assert ids.tolist() == tokenizer.apply_chat_template(messages(CONVERSATION), tokenize=True)["input_ids"]
    text = scored_text(teacher, aligned.teacher_ids, aligned.teacher_chunk_ends, aligned.chunk_kinds)
    assert f"<tool_call>\n{json.dumps(WEATHER, ensure_ascii=False)}\n</tool_call>" in text
    assert "Sunny." in text
    assert 'sun": true' not in text


@settings(max_examples=100)
@given(
    calls=st.lists(
        st.fixed_dictionaries({
            "name": st.text("abc_", min_size=1, max_size=6),
            "arguments": st.dictionaries(
                st.text("xyé", max_size=3),
                st.one_of(st.text("a\"\\\n{}<|日", max_size=6), st.integers(), st.none()),
                max_size=3,
            ),
        }),
        min_size=1, max_size=3,
    ),
    content=st.text("ab \n", max_size=5),
)  # fmt: skip
def test_whatever_is_called_the_ids_are_those_of_the_template(calls, content):
    student, teacher = side(WITH_TAGS, "bytes"), side(WITH_TAGS)
    turns = (CONVERSATION[0], Turn("assistant", content, tool_calls=tuple(calls)))
    (aligned,) = align_documents(student, teacher, [Document("d", turns)])
    if isinstance(aligned, DocumentError):
        assert aligned.reason in ("special tokens of a chat template", "a normaliser changes the text")
        return
    for prepared, ids in ((student, aligned.student_ids), (teacher, aligned.teacher_ids)):
        tokenizer = prepared.encoder.tokenizer
        assert ids.tolist() == tokenizer.apply_chat_template(messages(turns), tokenize=True)["input_ids"]


@pytest.mark.parametrize(
    ("templates", "reason"),
    [
        ((WITH_TAGS, AS_PARAMETERS), "tool calls that the two templates write in two ways"),
        ((CHATML, CHATML), LEFT_OUT),
        ((WITH_SPECIAL, WITH_SPECIAL), "tool calls with special tokens"),
        ((CHATML.replace("m['content']", "(m['content'] if not m.tool_calls else '')"),) * 2, OTHERWISE),
        ((WITH_TAGS.replace("m['role'] +", "m['role'] + (' calls' if m.tool_calls else '') +"),) * 2, OTHERWISE),
    ],
)
def test_calls_that_cannot_be_aligned_are_dropped_with_their_reason(templates, reason):
    student, teacher = (side(template) for template in templates)
    found = align_documents(
        student, teacher, [Document("d", tuple(CONVERSATION)), Document("e", tuple(CONVERSATION[2:]))]
    )
    assert found[0].reason == reason
    assert not isinstance(found[1], DocumentError)  # the conversation beside it is used
