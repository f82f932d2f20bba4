"""What a student wrote, whatever tokens it drew, is aligned exactly with its teacher, or dropped by reason."""

import json
from functools import cache
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import decoders, processors

from ctd_core.align.documents import MARKER, SCORED, align_documents
from ctd_core.errors import DocumentError
from ctd_core.generation.own_texts import prompts_of
from ctd_core.generation.prompts import Answerer
from ctd_core.generation.sampler import Sampling, Written
from ctd_core.text.corpora.records import own_text_of
from ctd_core.text.documents import Document, Turn, plain_document
from ctd_core.text.prepared_tokenizer import PreparedTokenizer
from ctd_core.text.token_bytes import decode
from tests.align.test_conversations import check
from tests.support.chat_templates import TEMPLATES, chat_tokenizer
from tests.support.tokenizers import TOTAL, encoder

REASONS = {
    "a text of its own that is empty",
    "a text of its own with special tokens inside",
    "a text of its own that is not Unicode",
}
NAMED = ("<|im_end|>", "</s>", "[/INST]", "<end_of_turn>\n", "<|endoftext|>")  # of teachers, as text
DRAWN = st.lists(st.one_of(st.integers(0, 10**6), st.sampled_from(NAMED)), max_size=12)


class Draws:
    """A sampler that has drawn these tokens."""

    def __init__(self, ids, stops=()):
        self.ids, self.stops = ids, stops

    def write(self, prompts, stops, options, seed):
        end = next((n + 1 for n, token in enumerate(self.ids) if token in stops), len(self.ids))
        return [Written(self.ids[:end], [-1.0] * end)]


@cache
def answerer(tokenizer):
    return Answerer(Draws([]), tokenizer, "the student", Sampling(12), None)


def drawn(tokenizer, tokens, stops):
    """Ids of the tokenizer: numbers as they come, names as the tokenizer writes them as text; then an end."""
    ids = []
    for token in tokens:
        if isinstance(token, int):
            ids.append(token % len(tokenizer))
        else:
            pieces = tokenizer.tokenize(token, split_special_tokens=True)
            ids += [number for number in tokenizer.convert_tokens_to_ids(pieces) if number is not None]
    return ids + stops


def own_text(tokenizer, record, tokens, ends):
    asking = answerer(tokenizer)
    asking._sampler.ids = drawn(tokenizer, tokens, [min(asking._stops)] if ends else [])
    (written,) = asking.answer([record], [[1]], seed=0)
    return own_text_of(json.loads(json.dumps(written)), "texts:1")


@settings(max_examples=400)
@given(st.sampled_from(sorted(TEMPLATES)), st.sampled_from(sorted(TEMPLATES)), DRAWN, st.booleans())
def test_an_answer_of_any_tokens_is_aligned_by_its_bytes_or_dropped(student, teacher, tokens, ends):
    record = {"messages": [{"role": "user", "content": "What is 2 + 2?"}]}
    document = own_text(chat_tokenizer(student), record, tokens, ends)
    if isinstance(document, DocumentError):
        assert document.reason in REASONS
    else:
        check(student, teacher, document, names_special=True)


KINDS = ["bytes", "byte-level BPE, 600", "SentencePiece BPE with a leading space"]


@pytest.mark.parametrize(("student", "teacher"), product(KINDS, KINDS))
def test_a_text_of_any_tokens_is_aligned_by_its_bytes_or_dropped(student, teacher):
    tokenizers = [PreparedTokenizer(encoder(kind), {"begin": (1,), "end": (2,)}) for kind in (student, teacher)]
    writes = TOTAL[student]()
    prompt = "It is"

    @given(DRAWN)
    def promises(tokens):
        document = own_text(writes, {"prompt": prompt}, tokens, ends=False)
        if isinstance(document, DocumentError):
            assert document.reason in REASONS
            return
        (aligned,) = align_documents(*tokenizers, [document])
        if isinstance(aligned, DocumentError):
            assert aligned.reason
            return
        answer = document.text.removeprefix(prompt).encode()
        scored = (aligned.chunk_kinds & SCORED > 0) & (aligned.chunk_kinds & MARKER == 0)
        assert aligned.chunk_bytes.sum() == len(document.text.encode())
        for side, ids, ends in (
            (tokenizers[0], aligned.student_ids, aligned.student_chunk_ends),
            (tokenizers[1], aligned.teacher_ids, aligned.teacher_chunk_ends),
        ):
            pieces = np.split(ids, ends[:-1])
            spelled = b"".join(decode(side.encoder.token_bytes, piece) for piece, is_text in zip(
                pieces, aligned.chunk_kinds & MARKER == 0, strict=True
            ) if is_text)  # fmt: skip
            begun = document.text.removeprefix(prompt)  # one kind of tokenizer begins each part with a space
            assert spelled.strip() in {f"{prompt}{space}{begun}".encode().strip() for space in ("", " ")}
        assert aligned.chunk_bytes[scored].sum() <= len(answer)  # of the prompt nothing is learned

    promises()


def test_the_space_before_what_is_written_stays_where_tokens_alone_would_lose_it():
    tokenizer = TOTAL["SentencePiece BPE with a leading space"]()
    tokenizer.backend_tokenizer.decoder = decoders.Sequence(  # as Llama 2 and Mistral v1 have it
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    asking = Answerer(Draws([]), tokenizer, "the student", Sampling(12), None)
    prompt, drawn = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in ("the fox", "jumps"))
    asking._sampler.ids = drawn
    assert tokenizer.decode(drawn) == "jumps"
    (written,) = asking.answer([{"prompt": "the fox"}], [prompt], seed=0)
    assert written["generated"]["text"] == " jumps"


def test_a_text_ends_where_its_models_own_config_says_and_ids_without_a_token_are_counted():
    tokenizer = chat_tokenizer("Llama 3")
    end, four = tokenizer.convert_tokens_to_ids("<|eot_id|>"), tokenizer("4", add_special_tokens=False)["input_ids"]
    assert end != tokenizer.eos_token_id
    another = tokenizer.convert_tokens_to_ids("<|begin_of_text|>")
    beyond = len(tokenizer) + 3  # a row that pads the vocabulary
    for drawn, stops, expected in (
        ([*four, another, *four], [another], ("4", True, 0)),
        ([*four, another, *four], (), ("44", False, 1)),
        ([*four, *four], four, ("44", False, 0)),  # of a config that nobody set
        ([*four, end], [-1], ("4", True, 0)),
        ([*four, beyond, end], (), ("4", True, 1)),
    ):
        asking = Answerer(Draws(drawn, stops), tokenizer, "the student", Sampling(12), None)
        (written,) = asking.answer([{}], [[1]], seed=0)
        found = written["generated"]
        assert (found["text"], found["ended"], found["special_tokens"]) == expected


@pytest.mark.parametrize(
    ("text", "prompt"),
    [
        ("the quick brown fox jumps over the lazy dog", "the quick brown fox"),  # never all of it
        ("word " * 100, ("word " * 40).strip()),
        ("日本語のテキスト", "日本語の"),
        ("a", None),
        (" " * 300 + "late", None),
    ],
)
def test_a_prompt_is_the_first_words_of_a_text(text, prompt):
    found = prompts_of(plain_document("1", text), is_chat=False)
    assert found == ([] if prompt is None else [{"prompt": prompt}])


def test_a_prompt_of_a_conversation_has_the_names_in_its_messages():
    turns = (Turn("user", "Hi", scored=False, names=(("name", "Ann"),)), Turn("assistant", "Hello"))
    messages = [{"role": "user", "content": "Hi", "name": "Ann"}]
    (record,) = prompts_of(Document("1", turns), is_chat=True)
    assert record == {"messages": messages}
    generated = {"text": "4", "ended": True, "special_tokens": 0}
    assert own_text_of({**record, "generated": generated}, "texts:1").turns[0] == turns[0]


def test_nothing_is_written_behind_the_end_that_a_tokenizer_puts_there():
    tokenizer = TOTAL["byte-level BPE, 300"]()
    end = tokenizer.eos_token
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=[end, "$A", end], pair=[end, "$A", end, "$B", end], special_tokens=[(end, tokenizer.eos_token_id)]
    )
    asking = Answerer(Draws([]), tokenizer, "the student", Sampling(12), None)
    plain = tokenizer("the fox", add_special_tokens=False)["input_ids"]
    assert asking.encode({"prompt": "the fox"}, "a prompt") == [tokenizer.eos_token_id, *plain]


@pytest.mark.parametrize(
    ("written", "learned"),
    [("one two thr", "one two"), ("one two ", "one"), (" one", " one"), ("日本語のテ", "日本語のテ")],
)
def test_of_a_text_that_was_cut_the_last_of_several_words_is_left_out(written, learned):
    generated = {"text": written, "ended": False, "special_tokens": 0}
    document = own_text_of({"messages": [{"role": "user", "content": "Go on."}], "generated": generated}, "texts:1")
    assert document.turns[-1].text == learned
    assert document.turns[-1].is_cut
    whole = own_text_of({"prompt": "Go on.", "generated": generated | {"ended": True}}, "texts:1")
    assert whole.text == "Go on." + written
