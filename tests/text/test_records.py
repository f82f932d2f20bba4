"""What is read of a record: a text, messages, or a prompt and its response."""

import json

import pyarrow as pa
import pytest
from datasets import Dataset
from pyarrow import parquet
from pydantic import ValidationError

from ctd_core.config.text import HubDataset, JsonLines, Parquet
from ctd_core.errors import DocumentError
from ctd_core.text.corpora import plan_slices, read_slice
from ctd_core.text.corpora.records import document_of
from ctd_core.text.documents import Turn

MESSAGES = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello!"}]
TURNS = (Turn("user", "Hi", scored=False), Turn("assistant", "Hello!"))


def lines(**options):
    return JsonLines(kind="jsonl", paths=["x"], **options)


@pytest.mark.parametrize(
    ("record", "corpus"),
    [
        ({"messages": MESSAGES}, lines(messages="messages")),
        ({"data": {"turns": MESSAGES}}, lines(messages="data.turns")),
        ({"prompt": "Hi", "response": "Hello!"}, lines(prompt="prompt", response="response")),
        ({"q": MESSAGES[:1], "a": "Hello!"}, lines(prompt="q", response="a")),
        (
            {"messages": [MESSAGES[0], {"role": "assistant", "content": [{"type": "text", "text": "Hel"}, "lo!"]}]},
            lines(messages="messages"),
        ),
    ],
)
def test_a_conversation_is_read_from_messages_and_from_columns(record, corpus):
    document = document_of(record, corpus, "here")
    assert document.segments == document.turns == TURNS
    assert document.text == "HiHello!"


def test_all_messages_are_learned_where_that_is_asked_for():
    document = document_of({"messages": MESSAGES}, lines(messages="messages", train_on="all"), "here")
    assert all(turn.scored for turn in document.turns)


def test_a_text_may_lie_within_another_field():
    assert document_of({"data": {"text": "a"}}, lines(field="data.text"), "here").text == "a"
    assert document_of({"data.text": "a"}, lines(field="data.text"), "here").text == "a"


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        (None, "no messages in the field 'messages'"),
        ("Hi", "no messages"),
        ([], "no messages"),
        ([{"content": "Hi"}], "a message without a role"),
        ([{"role": "user"}], "a message without a content"),
        ([{"role": "user", "content": [{"type": "image"}]}], "a message that is not text"),
        ([{"role": "assistant", "content": "", "tool_calls": [{}]}], "a message with tool calls"),
    ],
)
def test_what_is_no_conversation_is_dropped_with_its_reason(messages, reason):
    found = document_of({"messages": messages}, lines(messages="messages"), "here")
    assert isinstance(found, DocumentError)
    assert found.reason == reason
    assert "here" in str(found)


@pytest.mark.parametrize("options", [{"prompt": "p"}, {"messages": "m", "prompt": "p", "response": "r"}])
def test_fields_that_do_not_belong_together_are_refused(options):
    with pytest.raises(ValidationError, match="prompt and response"):
        lines(**options)


def test_every_format_of_records_reads_conversations(tmp_path):
    rows = [{"data": {"messages": MESSAGES}, "other": number} for number in range(5)]
    (tmp_path / "c.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "c.parquet")
    Dataset.from_list(rows).save_to_disk(tmp_path / "saved")
    corpora = [
        JsonLines(kind="jsonl", paths=[str(tmp_path / "c.jsonl")], messages="data.messages"),
        Parquet(kind="parquet", paths=[str(tmp_path / "c.parquet")], messages="data.messages"),
        HubDataset(kind="dataset", name=str(tmp_path / "saved"), messages="data.messages"),
    ]
    for corpus in corpora:
        documents = [document for part in plan_slices(corpus, 100) for document in read_slice(corpus, part)]
        assert [document.turns for document in documents] == [TURNS] * 5
