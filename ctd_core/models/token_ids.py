"""The token ids that a model's config and generation config hold, under another tokenizer."""

import re
from collections.abc import Callable, Iterator
from typing import Any

from transformers import GenerationConfig, PretrainedConfig

from ctd_core.text.prepared_tokenizer import PreparedTokenizer
from ctd_core.text.token_bytes import ids_by_bytes

IDS = re.compile(
    r"(.*_)?token_(id|ids|index)|token_ids|bad_words_ids|force_words_ids|suppress_tokens|begin_suppress_tokens"
    r"|forced_(bos|eos|decoder)_.*ids?|sequence_bias|eos_ids|eoi_token.*|boi_token.*"
)
ROLES = ("bos", "eos", "pad")
OF_MEDIA = re.compile("image|video|audio|vision|boi|eoi|boa|eoa")  # of which models compare texts with each id
NO_TOKEN = -1  # an id that no text has
# Of a generation config: under another tokenizer, as many tokens are another text.
COUNTS_OF_TOKENS = (
    "max_length", "max_new_tokens", "min_length", "min_new_tokens", "repetition_penalty", "no_repeat_ngram_size",
    "exponential_decay_length_penalty", "length_penalty",
)  # fmt: skip


def renumber(
    config: PretrainedConfig | GenerationConfig, student: PreparedTokenizer, new_ids: dict[int, int], source: str
) -> list[str]:
    """Turn every token id in `config` into the student's, in place; what has none there is taken out.

    The ids of bos, eos and pad are those of the student's tokenizer; the teacher's eos are kept beside its own where
    the student has them, as those that end a turn.

    Args:
        config: a copy of the teacher's config or generation config.
        student: the student's tokenizer.
        new_ids: the student's id of each of the teacher's that it has.
        source: what messages call `config`.

    Returns:
        What was taken out, in words.
    """
    lost: list[str] = []
    tokenizer = student.encoder.tokenizer
    for holder, name, value in list(_ids(config)):
        role = name.removesuffix("_token_id")
        own = getattr(tokenizer, name) if role in ROLES and name.endswith("_token_id") else None
        kept, missing = (None, []) if name == "sequence_bias" else _renumbered(value, new_ids.get)
        if missing and not (own is not None and isinstance(value, int)):
            lost.append(f"{source}.{name}: {', '.join(map(str, missing))}")
        elif kept is None and not missing:
            lost.append(f"{source}.{name}: {value}")
        if own is not None and (isinstance(value, list) or role == "eos"):
            others = kept if isinstance(kept, list) else [kept] if kept is not None else []
            kept = list(dict.fromkeys([own, *others]))
            kept = kept[0] if len(kept) == 1 else kept
        elif role in ROLES and name.endswith("_token_id"):
            kept = own if own is not None else kept
        elif kept is None and isinstance(value, int) and OF_MEDIA.match(name):
            kept = NO_TOKEN
        setattr(holder, name, kept)
    for role in ROLES:  # also where the teacher's config has none
        if getattr(config, f"{role}_token_id", None) is None:
            setattr(config, f"{role}_token_id", getattr(tokenizer, f"{role}_token_id"))
    return lost


def forget_counts(config: GenerationConfig) -> list[str]:
    """Take out of `config`, in place, what counts tokens; in words, what that was."""
    usual = GenerationConfig()
    changed = [name for name in COUNTS_OF_TOKENS if getattr(config, name, None) != getattr(usual, name, None)]
    told = [f"{name}: {getattr(config, name)}" for name in changed]
    for name in changed:
        setattr(config, name, getattr(usual, name, None))
    return told


def ids_with_student(student: PreparedTokenizer, teacher: PreparedTokenizer) -> dict[int, int]:
    """The student's id for each teacher id of which it has the same token: by bytes, or special ones by their name."""
    own = ids_by_bytes(student.encoder.token_bytes)
    found = {token_id: own[raw] for token_id, raw in enumerate(teacher.encoder.token_bytes.by_id) if raw and raw in own}
    named = {token.content: token_id for token_id, token in _special(student)}
    for role in ROLES:
        old, new = (getattr(tokenizer.encoder.tokenizer, f"{role}_token_id") for tokenizer in (teacher, student))
        if old is not None and new is not None:
            found[old] = new
    return found | {token_id: named[token.content] for token_id, token in _special(teacher) if token.content in named}


def _special(tokenizer: PreparedTokenizer) -> Iterator[tuple[int, Any]]:
    return (
        (token_id, token)
        for token_id, token in tokenizer.encoder.tokenizer.added_tokens_decoder.items()
        if token.special
    )


def _ids(config: Any) -> Iterator[tuple[Any, str, Any]]:
    """Every attribute of a config, and of the configs in it, that holds token ids: its owner, name and value."""
    for name, value in vars(config).items():
        if isinstance(value, PretrainedConfig):
            yield from _ids(value)
        elif value is not None and IDS.fullmatch(name):
            yield config, name, value


def _renumbered(value: Any, new_id: Callable[[int], int | None]) -> tuple[Any, list[int]]:
    """`value` with new ids, None where it loses all of them, and the old ids that have no new one.

    A list inside a list is a sequence of tokens: it is dropped completely where one token is.
    """
    if isinstance(value, bool) or not isinstance(value, int | list | tuple):
        return None, []
    if isinstance(value, int):
        return (value, []) if value < 0 else (new_id(value), [value] if new_id(value) is None else [])
    parts = [_renumbered(item, new_id) for item in value]
    missing = [old for _, olds in parts for old in olds]
    is_nested = any(isinstance(item, list | tuple) for item in value)
    sequences = [new for new, olds in parts if new is not None and not (is_nested and olds)]
    return sequences or None, missing
