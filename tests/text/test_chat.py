"""Chat templates that join another tokenizer, and conversations that a template does not write."""

from datetime import date
from types import SimpleNamespace

import pytest
from transformers.utils import chat_template_utils

from ctd_core.errors import DocumentError, TokenizerError
from ctd_core.text.chat import ChatTemplate, with_chat_of
from ctd_core.text.documents import Turn
from ctd_core.text.prepared_tokenizer import prepare_tokenizer
from ctd_core.text.stops import turn_ends
from tests.support.chat_templates import TEMPLATES, chat_tokenizer
from tests.support.tokenizers import TOTAL

CONVERSATION = [Turn("user", "How far is the moon?"), Turn("assistant", "384,400 km")]


@pytest.mark.parametrize("kind", ["bytes", "byte-level BPE, 300", "SentencePiece BPE with a leading space"])
@pytest.mark.parametrize("family", TEMPLATES)
def test_a_template_joins_any_tokenizer_with_its_special_tokens(family, kind):
    teacher = chat_tokenizer(family)
    joined = with_chat_of(TOTAL[kind](), teacher)
    messages = [{"role": turn.role, "content": turn.text} for turn in CONVERSATION]
    assert joined.apply_chat_template(messages, tokenize=False) == teacher.apply_chat_template(messages, tokenize=False)
    special = {token.content for token in joined.added_tokens_decoder.values() if token.special}
    written = teacher.apply_chat_template(messages, tokenize=False)
    names = [token.content for token in teacher.added_tokens_decoder.values() if token.special]
    assert {name for name in names if name in written} <= special
    before = TOTAL[kind]().get_vocab()
    assert {token: joined.get_vocab()[token] for token in before} == before


@pytest.mark.parametrize("family", TEMPLATES)
def test_what_is_written_put_together_is_the_rendering(family):
    template = ChatTemplate(chat_tokenizer(family), family)
    text = "".join(
        part.header + turn.text[part.start : part.stop] + part.end
        for turn, part in zip(CONVERSATION, template.write(CONVERSATION), strict=True)
    )
    messages = [{"role": turn.role, "content": turn.text} for turn in CONVERSATION]
    assert text == chat_tokenizer(family).apply_chat_template(messages, tokenize=False)


@pytest.mark.parametrize("family", TEMPLATES)
def test_every_turn_of_an_assistant_has_its_end(family):
    """What tells the model to stop is learned of earlier turns too, also where the last is written otherwise."""
    written = ChatTemplate(chat_tokenizer(family), family).write(CONVERSATION * 3)
    ends = [part.end for turn, part in zip(CONVERSATION * 3, written, strict=True) if turn.role == "assistant"]
    assert all(ends)
    assert ends[-1].startswith(ends[0])
    assert ends[0] == ends[1]


def test_a_template_that_writes_the_date_writes_the_same_on_any_day(monkeypatch):
    tokenizer = TOTAL["bytes"]()
    tokenizer.chat_template = (
        "{{ strftime_now('%d %b') }}{% for m in messages %}{{ '|' + m['content'] + '|' }}{% endfor %}"
    )
    template = ChatTemplate(tokenizer, "it")
    for day in (date(2026, 1, 31), date(2026, 2, 1)):
        monkeypatch.setattr(chat_template_utils, "datetime", SimpleNamespace(now=lambda day=day: day))
        assert template.write(CONVERSATION)[0].header == "26 Jul|"


@pytest.mark.parametrize(
    ("family", "turns", "reason"),
    [
        ("Gemma", [Turn("system", "Be brief."), *CONVERSATION], "a chat template refuses the conversation"),
        ("Gemma", [CONVERSATION[0], CONVERSATION[0]], "a chat template refuses the conversation"),
        ("Qwen3", [CONVERSATION[0], Turn("assistant", "<think>hm</think>yes")], "a chat template changes a message"),
        ("failing", CONVERSATION, "a chat template refuses the conversation"),
    ],
)
def test_a_conversation_that_a_template_does_not_write_is_named(family, turns, reason):
    tokenizer = TOTAL["bytes"]() if family == "failing" else chat_tokenizer(family)
    if family == "failing":
        tokenizer.chat_template = "{{ messages[0]['content'] + messages | length }}"  # a TypeError
    with pytest.raises(DocumentError) as raised:
        ChatTemplate(tokenizer, family).write(turns)
    assert raised.value.reason == reason
    assert family in str(raised.value)


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{{ messages[0]['content'] | upper }}", "a chat template leaves out or moves a message"),
        ("{{ messages[0]['content'] ~ messages[0]['content'] }}", "a chat template leaves out or moves a message"),
        ("{{ messages[0]['content'] ~ messages[0]['content'] | length }}", "a chat template depends on contents"),
    ],
)
def test_a_template_that_does_more_than_write_around_contents_is_refused(template, reason):
    tokenizer = TOTAL["bytes"]()
    tokenizer.chat_template = template
    with pytest.raises(DocumentError) as raised:
        ChatTemplate(tokenizer, "it").write([Turn("user", "x")])
    assert raised.value.reason == reason


def test_a_tokenizer_without_a_template_is_refused_for_conversations():
    with pytest.raises(TokenizerError, match="has no chat template"):
        prepare_tokenizer(TOTAL["bytes"](), "the bytes", None, None).conversations  # noqa: B018


@pytest.mark.parametrize("family", ["Gemma", "Mistral v1", "Phi-3"])
def test_a_message_that_names_a_special_token_and_cannot_be_spelled_is_dropped_by_its_reason(family):
    conversations = prepare_tokenizer(chat_tokenizer(family), family, None, None).conversations
    turns = [Turn("user", "What is <s>?"), Turn("assistant", "A token; ▁the is another.")]
    (error,) = conversations.encode_batch([turns])
    assert isinstance(error, DocumentError)
    assert error.reason == "tokens spell another text"


def test_a_text_ends_at_the_end_of_an_answer_and_not_of_other_messages():
    """As gpt-oss: its thoughts end with <|end|>, and it goes on."""
    tokenizer = TOTAL["bytes"]()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|end|>", "<|return|>"]})
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m['role'] + ': ' + m['content'] }}"
        "{{ '<|return|>' if m['role'] == 'assistant' else '<|end|>' }}{% endfor %}"
    )
    assert turn_ends(tokenizer, "it") == {tokenizer.convert_tokens_to_ids("<|return|>")}
