"""The tokens that end a text, or a message."""

from transformers import PreTrainedTokenizerFast

from ctd_core.errors import DocumentError
from ctd_core.text.chat import ChatTemplate
from ctd_core.text.documents import Turn
from ctd_core.text.encoding import complete_backend, encode_ids
from ctd_core.text.prepared_tokenizer import prepare_tokenizer

EXCHANGE = (Turn("user", "Hello"), Turn("assistant", "Hello"))


def stops_of(tokenizer: PreTrainedTokenizerFast, name: str) -> set[int]:
    """The tokens after which nothing more is written: what ends a text, and in a chat template an answer.

    A special token ends an answer. Without one, or where the template refuses a plain exchange, the end of the text
    does.
    """
    return set(prepare_tokenizer(tokenizer, name, None, None).markers["end"]) | turn_ends(tokenizer, name)


def turn_ends(tokenizer: PreTrainedTokenizerFast, name: str) -> set[int]:
    """The special token that ends an answer in its chat template; none without one, or where that refuses a plain
    exchange.
    """
    if not tokenizer.chat_template:
        return set()
    try:
        _, answer = ChatTemplate(tokenizer, name).write(EXCHANGE)
    except DocumentError:
        return set()
    added = tokenizer.added_tokens_decoder
    ids = _encode(tokenizer, answer.end)[:1]
    return {token for token in ids if token in added and added[token].special}


def around_question(tokenizer: PreTrainedTokenizerFast, name: str) -> tuple[list[int], str, list[int]]:
    """What a chat template writes before the first message of a user, in tokens, and what it writes between this and
    the answer, as text and in tokens, without white space at its ends.
    """
    user, assistant = ChatTemplate(tokenizer, name).write(EXCHANGE)
    between = (user.end + assistant.header).strip()
    return _encode(tokenizer, user.header), between, _encode(tokenizer, between)


def _encode(tokenizer: PreTrainedTokenizerFast, text: str) -> list[int]:
    return [int(token) for token in encode_ids(complete_backend(tokenizer), [text])[0]]
