"""What is read of a record: a text, messages, or a prompt and its response."""

import bz2
import csv
import gzip
import json
import lzma
import shutil

import datasets
import pyarrow as pa
import pytest
from datasets import Dataset
from pyarrow import ipc, parquet
from pydantic import ValidationError

from ctd_core.config.text import Arrow, Csv, HubDataset, JsonLines, Parquet
from ctd_core.errors import CtdError, DocumentError, UsageError
from ctd_core.text.corpora import plan_slices, read_documents, read_slice
from ctd_core.text.corpora.records import document_of
from ctd_core.text.corpora.slices import training_documents
from ctd_core.text.documents import Marker, Text, Turn

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


def test_names_of_other_data_sets_and_weights_are_heeded():
    messages = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello!"}]
    assert document_of({"messages": messages}, lines(messages="messages"), "here").turns == TURNS
    weighted = [*MESSAGES, {"role": "User", "content": "?"}, {"role": "assistant", "content": "Bye", "weight": 0}]
    turns = document_of({"messages": weighted}, lines(messages="messages"), "here").turns
    assert [turn.scored for turn in turns] == [False, True, False, False]
    assert turns[2].role == "user"


def test_of_a_sample_the_errors_are_a_sample_too(tmp_path):
    (tmp_path / "c.jsonl").write_text("".join(f'{{"n": {number}}}\n' for number in range(400)))
    corpus = JsonLines(kind="jsonl", paths=[str(tmp_path / "c.jsonl")], sample_fraction=0.1)
    assert 20 < len(list(training_documents(corpus, read_all(corpus)))) < 60


@pytest.mark.parametrize("ending", [".gz", ".bz2", ".xz", ".zst", ""])
def test_an_empty_file_holds_no_document(ending, tmp_path):
    (tmp_path / f"c.jsonl{ending}").write_bytes(b"")
    with pytest.raises(CtdError, match=r"c\.jsonl"):
        list(read_documents(JsonLines(kind="jsonl", paths=[str(tmp_path / f"c.jsonl{ending}")]), 100))


def test_all_messages_are_learned_where_that_is_asked_for():
    document = document_of({"messages": MESSAGES}, lines(messages="messages", train_on="all"), "here")
    assert all(turn.scored for turn in document.turns)


def test_prompt_and_response_may_be_one_text_of_which_the_response_is_learned():
    corpus = lines(prompt="q", response="a", as_text=True)
    document = document_of({"q": "Hi", "a": "Hello!"}, corpus, "here")
    begin, *texts, end = document.segments
    assert texts == [Text("Hi", scored=False), Text("Hello!")]
    assert (begin, end) == (Marker("begin", scored=False), Marker("end"))
    assert not corpus.is_chat


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
        ([{"role": "assistant"}], "a message without a content"),
        ([{"role": "usr", "content": "Hi"}], "a role that is not known"),
        ([{"role": "user", "content": "Hi"}], "a conversation without an assistant's message"),
        ([{"role": "user", "content": [{"type": "image"}]}], "a message that is not text"),
        ([{"role": "assistant", "content": [{"type": "reasoning", "text": "so"}]}], "a message that is not text"),
        ([{"role": "assistant", "content": "", "tool_calls": [{}]}], "a tool call without a name"),
        ([{"role": "assistant", "content": "", "tool_calls": "f"}], "tool calls that are no list"),
        ([{"role": "assistant", "content": "", "function_call": {"name": "f"}}], "a message with function_call"),
        ([{"role": "assistant", "content": "4", "reasoning_content": "2 + 2"}], "a message with reasoning_content"),
    ],
)
def test_what_is_no_conversation_is_dropped_with_its_reason(messages, reason):
    found = document_of({"messages": messages}, lines(messages="messages"), "here")
    assert isinstance(found, DocumentError)
    assert found.reason == reason
    assert "here" in str(found)


def test_a_conversation_with_definitions_of_tools_is_dropped_and_an_empty_list_is_none(tmp_path):
    messages = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    records = [{"messages": messages, "tools": tools} for tools in ([{"name": "f"}], [], None)]
    (tmp_path / "c.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    parquet.write_table(pa.Table.from_pylist(records), tmp_path / "c.parquet")
    for corpus in (
        JsonLines(kind="jsonl", paths=[str(tmp_path / "c.jsonl")], messages="messages"),
        Parquet(kind="parquet", paths=[str(tmp_path / "c.parquet")], messages="messages"),
    ):
        found = [document for part in plan_slices(corpus, 1000) for document in read_slice(corpus, part)]
        assert [isinstance(document, DocumentError) for document in found] == [True, False, False]
        assert found[0].reason == "definitions of tools"


@pytest.mark.parametrize(
    ("beside", "reason"),
    [
        ({"system": ["Be brief."]}, "no text in the field 'system'"),
        ({"functions": '[{"name": "f"}]'}, "definitions of tools"),
        ({"chat_template_kwargs": {"custom_instructions": "Be brief."}}, "options of a chat template"),
        ({"system": " ", "tools": "[]", "chat_template_kwargs": {"custom_instructions": "", "xml_tools": []}}, None),
    ],
)
def test_what_some_templates_write_beside_messages_drops_them(beside, reason, tmp_path):
    messages = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    parquet.write_table(pa.Table.from_pylist([beside | {"messages": messages}]), tmp_path / "c.parquet")
    corpus = Parquet(kind="parquet", paths=[str(tmp_path / "c.parquet")], messages="messages")
    (found,) = (document for part in plan_slices(corpus, 1000) for document in read_slice(corpus, part))
    assert getattr(found, "reason", None) == reason


@pytest.mark.parametrize("train_on", ["assistant", "all"])
def test_a_system_prompt_beside_messages_is_the_first_of_them(train_on, tmp_path):
    begun = [{"role": "system", "content": "Be long."}, *MESSAGES]
    records = [{"system": "Be brief.", "messages": MESSAGES}, {"system": "Be brief.", "messages": begun}]
    parquet.write_table(pa.Table.from_pylist(records), tmp_path / "c.parquet")
    corpus = Parquet(kind="parquet", paths=[str(tmp_path / "c.parquet")], messages="messages", train_on=train_on)
    read, twice = (document for part in plan_slices(corpus, 1000) for document in read_slice(corpus, part))
    told = {"messages": [{"role": "system", "content": "Be brief."}, *MESSAGES]}
    assert read.turns == document_of(told, lines(messages="messages", train_on=train_on), "here").turns
    assert twice.reason == "two system prompts"
    options = lines(messages="data.messages", train_on=train_on)
    for inside, outside in (({"system": "Be brief."}, {}), ({}, {"system": "Be brief."})):
        found = document_of({"data": {"messages": MESSAGES} | inside} | outside, options, "here")
        assert found.turns == read.turns
    assert document_of({"data.messages": MESSAGES, "system": "Be brief."}, options, "here").turns == read.turns
    for inside, outside in (({"tools": ["f"]}, {}), ({}, {"tools": ["f"]})):
        tools = document_of({"data": {"messages": MESSAGES} | inside} | outside, options, "here")
        assert tools.reason == "definitions of tools"


def test_a_messages_names_go_to_the_templates():
    record = {"messages": [*MESSAGES, {"role": "tool", "content": "4", "name": "add", "tool_call_id": "x", "n": 1}]}
    *_, turn = document_of(record, lines(messages="messages"), "here").turns
    assert turn == Turn("tool", "4", scored=False, names=(("name", "add"), ("tool_call_id", "x")))


def test_calls_in_tables_have_the_arguments_that_they_were_written_with(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    given = [{"city": "Paris", "on": {"day": 3}}, {"query": "x", "on": {"month": 4}}]
    calls = [[{"name": "f", "arguments": arguments}] for arguments in given]
    rows = [{"messages": [{"role": "assistant", "content": "", "tool_calls": listed}]} for listed in calls]
    parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "c.parquet")
    Dataset.from_list(rows).save_to_disk(tmp_path / "saved")
    (tmp_path / "set").mkdir()
    shutil.copy(tmp_path / "c.parquet", tmp_path / "set")
    saved = {"kind": "dataset", "messages": "messages", "split": "train"}
    for corpus in (
        Parquet(kind="parquet", paths=[str(tmp_path / "c.parquet")], messages="messages"),
        HubDataset(**saved, name=str(tmp_path / "saved")),
        HubDataset(**saved, name=str(tmp_path / "set"), streaming=True, max_documents=2),
    ):
        documents = [document for part in plan_slices(corpus, 10_000) for document in read_slice(corpus, part)]
        assert [dict(document.turns[0].tool_calls[0])["arguments"] for document in documents] == given


def test_what_stands_beside_messages_is_streamed_though_the_column_was_read_for_its_text_before(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "set").mkdir()
    record = {"system": "Be brief.", "talk": MESSAGES}
    (tmp_path / "set" / "train.jsonl").write_text(json.dumps(record) + "\n")
    options = {"kind": "dataset", "name": str(tmp_path / "set"), "streaming": True, "max_documents": 1}
    for corpus in (HubDataset(**options, field="talk"), HubDataset(**options, messages="talk")):
        (read,) = [document for part in plan_slices(corpus, 60) for document in read_slice(corpus, part)]
    assert read.turns[0] == Turn("system", "Be brief.", scored=False)


def test_a_binary_column_may_be_streamed(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    for name, raw in (("text", "größer".encode()), ("other", b"\xff")):
        (tmp_path / name).mkdir()
        parquet.write_table(pa.table({"text": pa.array([raw], pa.binary())}), tmp_path / name / "train.parquet")
    options = {"kind": "dataset", "streaming": True, "max_documents": 1}
    corpus = HubDataset(**options, name=str(tmp_path / "text"))
    assert [document.text for part in plan_slices(corpus, 60) for document in read_slice(corpus, part)] == ["größer"]
    with pytest.raises(UsageError, match="holds bytes, and no text"):
        list(plan_slices(HubDataset(**options, name=str(tmp_path / "other")), 60))


def test_tool_calls_are_read_with_their_arguments_as_json_or_not():
    calls = [
        {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}},
        {"name": "g", "arguments": {"y": [2]}},
        {"name": "h", "arguments": "no JSON"},
    ]
    record = {"messages": [{"role": "assistant", "content": None, "tool_calls": calls}]}
    (turn,) = document_of(record, lines(messages="messages"), "here").turns
    assert turn.text == ""
    assert [(call["name"], call["arguments"]) for call in turn.tool_calls] == [
        ("f", {"x": 1}), ("g", {"y": [2]}), ("h", "no JSON")
    ]  # fmt: skip


@pytest.mark.parametrize(
    "options",
    [
        {"prompt": "p"},
        {"messages": "m", "as_text": True},
        {"messages": "m", "prompt": "p", "response": "r"},
        {"field": "f", "prompt": "p", "response": "r"},
        {"field": "f", "messages": "m"},
    ],
)
def test_fields_that_do_not_belong_together_are_refused(options):
    with pytest.raises(ValidationError, match=r"prompt and response|leave it out, or (m|p and r)"):
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


@pytest.mark.parametrize("bound", [{"max_documents": 7}, {"max_text_bytes": 200}])
def test_of_a_streamed_dataset_the_beginning_alone_is_read(bound, tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "set").mkdir()
    records = [{"text": f"line {number}\u2028", "other": [number]} for number in range(5000)]
    (tmp_path / "set" / "train.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    corpus = HubDataset(kind="dataset", name=str(tmp_path / "set"), streaming=True, **bound)
    read = [document.text for part in plan_slices(corpus, 60) for document in read_slice(corpus, part)]
    assert read == [record["text"] for record in records[: len(read)]]
    assert len(read) == 7 if "max_documents" in bound else 5 < len(read) < 20
    monkeypatch.setattr(datasets, "load_dataset", None)  # it is not streamed again
    assert [document.text for part in plan_slices(corpus, 60) for document in read_slice(corpus, part)] == read
    monkeypatch.undo()
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "set" / "train.jsonl").write_text('{"text": "another text", "other": []}\n')
    assert [document.text for part in plan_slices(corpus, 60) for document in read_slice(corpus, part)] == [
        "another text"
    ]
    with pytest.raises(ValidationError, match="streaming belongs with max_documents"):
        HubDataset(kind="dataset", name="x", streaming=True)


ROWS = [{"text": f"line {n}, naïve 日本\nsecond", "n": n} for n in range(60)]
TEXTS_OF_ROWS = [row["text"] for row in ROWS]


def as_lines():
    return "".join(json.dumps(row) + "\n" for row in ROWS).encode()


def read_all(corpus):
    return [document for part in plan_slices(corpus, 500) for document in read_slice(corpus, part)]


@pytest.mark.parametrize(
    ("ending", "compress"),
    [
        (".gz", gzip.compress),
        (".bz2", bz2.compress),
        (".xz", lzma.compress),
        (".zst", lambda raw: pa.compress(raw, codec="zstd", asbytes=True)),
    ],
)
def test_compressed_lines_are_read_and_cut_ones_refused(ending, compress, tmp_path):
    file = tmp_path / f"c.jsonl{ending}"
    file.write_bytes(compress(as_lines()))
    corpus = JsonLines(kind="jsonl", paths=[str(file)])
    assert [document.text for document in read_all(corpus)] == TEXTS_OF_ROWS
    file.write_bytes(compress(as_lines())[:-20])
    with pytest.raises(CtdError, match=rf"c\.jsonl{ending}: not a complete {ending} file"):
        read_all(corpus)


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("content", [as_lines(), json.dumps(ROWS, indent=1).encode()], ids=["lines", "array"])
def test_a_json_array_and_a_byte_order_mark_are_read(content, mark, tmp_path):
    (tmp_path / "c.json").write_bytes(mark + content)
    corpus = JsonLines(kind="jsonl", paths=[str(tmp_path / "c.json")])
    assert [document.text for document in read_all(corpus)] == TEXTS_OF_ROWS


@pytest.mark.parametrize("delimiter", [",", "\t"])
def test_tables_of_text_are_read_with_every_value_as_text(delimiter, tmp_path):
    with (tmp_path / "c.csv").open("w", newline="") as stream:
        table = csv.DictWriter(stream, ["text", "n"], delimiter=delimiter)
        table.writeheader()
        table.writerows(ROWS)
    corpus = Csv(kind="csv", paths=[str(tmp_path / "c.csv")], delimiter=delimiter)
    assert [document.text for document in read_all(corpus)] == TEXTS_OF_ROWS
    numbers = Csv(kind="csv", paths=[str(tmp_path / "c.csv")], delimiter=delimiter, field="n")
    assert [document.text for document in read_all(numbers)] == [str(row["n"]) for row in ROWS]
    with pytest.raises(UsageError, match=r"has no 'body'; there is text, n"):
        read_all(Csv(kind="csv", paths=[str(tmp_path / "c.csv")], delimiter=delimiter, field="body"))


@pytest.mark.parametrize(
    ("content", "error", "message"),
    [
        (b"text,n\na,1\nb\n", CtdError, r"c\.csv:line 3: 1 values, and there are 2 names"),
        (b'text,n\n"a,1\n', CtdError, r"c\.csv: cannot be read after line 2 \(unexpected end of data"),
        (b"text,n\n\xff,1\n", CtdError, r"c\.csv: cannot be read after line"),
        (b"text;n\na;1\n", UsageError, r"has no 'text'; there is text;n\. It seems to be separated by \";\": set"),
        (b"text\tn\na\t1\n", UsageError, r'separated by "\\t": set corpus\.delimiter'),
        (b"text,text\na,1\n", UsageError, "has several columns 'text'"),
        (b"", UsageError, r"corpus\.paths: there is no document in \S+c\.csv"),
    ],
)
def test_a_damaged_table_is_named_with_the_line(content, error, message, tmp_path):
    (tmp_path / "c.csv").write_bytes(content)
    with pytest.raises(error, match=message):
        list(read_documents(Csv(kind="csv", paths=[str(tmp_path / "c.csv")]), 100))


def test_a_table_is_read_whatever_else_it_holds(tmp_path):
    rows = [["1", "a", ""], ["2.5", "long " * 10**6, "x"], ["n/a", 'two\nlines, "quoted"', "2026-01-01"]]
    with (tmp_path / "c.csv").open("w", newline="", encoding="utf-8-sig") as stream:
        csv.writer(stream).writerows([["n", "text", "n"], *rows])
    corpus = Csv(kind="csv", paths=[str(tmp_path / "c.csv")])
    assert [document.text for document in read_all(corpus)] == [text for _, text, _ in rows]


@pytest.mark.parametrize("name", ["c.json", "c.ndjson", "c.jsonl", "a.jsonl.d/c.json"])
@pytest.mark.parametrize("before", ["", " \n" * 5000])
def test_a_json_array_is_known_by_its_content(name, before, tmp_path):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text(before + json.dumps(ROWS))
    assert [document.text for document in read_all(JsonLines(kind="jsonl", paths=[str(tmp_path / name)]))] == (
        TEXTS_OF_ROWS
    )


def test_utf_16_is_refused_with_the_way_out(tmp_path):
    (tmp_path / "c.json").write_text(json.dumps(ROWS), encoding="utf-16")
    with pytest.raises(CtdError, match=r"c\.json: UTF-16 text\. Convert it to UTF-8"):
        read_all(JsonLines(kind="jsonl", paths=[str(tmp_path / "c.json")]))


def test_a_cut_arrow_stream_is_named_with_the_row(tmp_path):
    table = pa.Table.from_pylist(ROWS)
    with ipc.new_stream(str(tmp_path / "c.arrow"), table.schema) as writer:
        writer.write_table(table, max_chunksize=7)
    content = (tmp_path / "c.arrow").read_bytes()
    for cut in range(16, len(content), 8):  # also between two batches, where nothing else tells
        (tmp_path / "c.arrow").write_bytes(content[:cut])
        with pytest.raises(CtdError, match=r"c\.arrow: a stream that does not end"):
            read_all(Arrow(kind="arrow", paths=[str(tmp_path / "c.arrow")]))


@pytest.mark.parametrize("new", [ipc.new_file, ipc.new_stream])
def test_arrow_files_and_streams_are_read(new, tmp_path):
    table = pa.Table.from_pylist(ROWS)
    with new(str(tmp_path / "c.arrow"), table.schema) as writer:
        writer.write_table(table, max_chunksize=7)
    corpus = Arrow(kind="arrow", paths=[str(tmp_path / "c.arrow")])
    assert [document.text for document in read_all(corpus)] == TEXTS_OF_ROWS
