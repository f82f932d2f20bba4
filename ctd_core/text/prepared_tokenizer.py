"""Documents as sequences of text and markers, and the tokens that each tokenizer writes for a marker."""

import copy
from dataclasses import dataclass
from functools import cached_property

from tokenizers import processors
from transformers import PreTrainedTokenizerFast

from ctd_core.errors import TokenizerError
from ctd_core.text.conversations import ConversationEncoder
from ctd_core.text.documents import BEGIN, END
from ctd_core.text.encoding import TextEncoder


@dataclass(frozen=True)
class PreparedTokenizer:
    """A tokenizer made ready for documents: text through `encoder`, markers by role through `markers`."""

    encoder: TextEncoder
    markers: dict[str, tuple[int, ...]]

    @cached_property
    def conversations(self) -> ConversationEncoder:
        """Encodes conversations; raises TokenizerError where the tokenizer has no chat template."""
        return ConversationEncoder(self.encoder)

    @cached_property
    def exported(self) -> PreTrainedTokenizerFast:
        """The tokenizer, such that it writes before a text what BEGIN stands for, and that END's first is its end."""
        tokenizer, begin, end = self.encoder.tokenizer, self.markers.get(BEGIN, ()), self.markers.get(END, ())
        written = written_before_text(tokenizer)
        writes_begin, has_end = written == begin or not begin, not end or tokenizer.eos_token_id == end[0]
        if writes_begin and has_end:
            return tokenizer
        changed = copy.deepcopy(tokenizer)
        if not writes_begin:
            backend, names = changed.backend_tokenizer, changed.convert_ids_to_tokens(list(begin))
            adds = processors.TemplateProcessing(
                single=[*names, "$A"], pair=[*names, "$A", "$B:1"], special_tokens=list(zip(names, begin, strict=True))
            )
            stays = backend.post_processor is not None and not written  # else it would write another beginning too
            backend.post_processor = processors.Sequence([backend.post_processor, adds]) if stays else adds
        if not has_end:
            changed.eos_token = changed.convert_ids_to_tokens(end[0])
        return changed


def prepare_tokenizer(
    tokenizer: PreTrainedTokenizerFast,
    name: str,
    begin_token: str | None,
    end_token: str | None,
    num_embeddings: int | None = None,
) -> PreparedTokenizer:
    """`tokenizer` with the markers of plain text.

    A text begins with what the tokenizer itself writes before one, else with its bos token, else with its eos token;
    it ends with its eos token. Tokens given by name come first.

    Args:
        tokenizer: a fast tokenizer.
        name: what messages call it.
        begin_token: the special token that begins a text, None for the usual one.
        end_token: the special token that ends a text, None for the usual one.
        num_embeddings: the rows of its model's embedding, where that is known: a text whose tokens lie beyond them is
            dropped.

    Returns:
        The tokenizer, ready for documents.

    Raises:
        TokenizerError: a name is none of its special tokens, or its vocabulary is not its model's.
    """
    if num_embeddings is not None:
        check_embedding(tokenizer, name, num_embeddings)
    begin = _named(tokenizer, name, begin_token)
    if begin is None:
        begin = written_before_text(tokenizer) or _first(tokenizer.bos_token_id, tokenizer.eos_token_id)
    end = _named(tokenizer, name, end_token)
    if end is None:
        end = _first(tokenizer.eos_token_id)
    if num_embeddings is not None and (
        beyond := [token_id for token_id in (*begin, *end) if token_id >= num_embeddings]
    ):
        raise TokenizerError(
            f"{name}: texts begin or end with {tokenizer.convert_ids_to_tokens(beyond)}, and the embedding has "
            f"{num_embeddings} entries. Name other tokens in begin_token and end_token."
        )
    return PreparedTokenizer(TextEncoder(tokenizer, name, num_embeddings), {BEGIN: begin, END: end})


def same_vocabulary(one: PreparedTokenizer, other: PreparedTokenizer) -> bool:
    """Whether both have the same tokens by the same ids."""
    vocabularies: list[dict[str, int]] = [of.encoder.tokenizer.get_vocab() for of in (one, other)]
    return vocabularies[0] == vocabularies[1]


def check_embedding(tokenizer: PreTrainedTokenizerFast, name: str, num_embeddings: int) -> list[str]:
    """The tokens added to a vocabulary that have no row in an embedding, as some models' special tokens have none.

    Args:
        tokenizer: a fast tokenizer.
        name: what messages call it.
        num_embeddings: the rows of its model's embedding.

    Returns:
        Their names, by id.

    Raises:
        TokenizerError: tokens of the vocabulary itself have none, so it is not this model's.
    """
    beyond = {token: token_id for token, token_id in tokenizer.get_vocab().items() if token_id >= num_embeddings}
    added = {token.content for token in tokenizer.added_tokens_decoder.values()}
    if plain := [token_id for token, token_id in beyond.items() if token not in added]:
        raise TokenizerError(
            f"{name}: its token ids reach {max(plain)}, and the model's embedding has {num_embeddings} entries. Take "
            "the tokenizer that belongs to the model."
        )
    return sorted(beyond, key=beyond.__getitem__)


def _named(tokenizer: PreTrainedTokenizerFast, name: str, token: str | None) -> tuple[int, ...] | None:
    if token is None:
        return None
    special = {added.content: token_id for token_id, added in tokenizer.added_tokens_decoder.items() if added.special}
    if token not in special:
        raise TokenizerError(f"{name}: {token!r} is none of its special tokens, which are {sorted(special)}.")
    return (special[token],)


def written_before_text(tokenizer: PreTrainedTokenizerFast) -> tuple[int, ...]:
    """The special tokens that the tokenizer itself puts before a text."""
    plain = tokenizer("a", add_special_tokens=False)["input_ids"]
    framed = tokenizer("a", add_special_tokens=True)["input_ids"]
    starts = (n for n in range(len(framed) - len(plain) + 1) if framed[n : n + len(plain)] == plain)
    return tuple(framed[: next(starts, 0)])


def _first(*token_ids: int | None) -> tuple[int, ...]:
    return next(((token_id,) for token_id in token_ids if token_id is not None), ())
