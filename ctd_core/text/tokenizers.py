"""Finding a tokenizer by what a user calls it, and making new ones."""

import json
import re
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast
from transformers.utils.hub import cached_file

from ctd_core.errors import TokenizerError
from ctd_core.storage.locations import is_missing_path
from ctd_core.text.token_bytes import BYTE_OF_CHARACTER

END_OF_TEXT = "<|endoftext|>"
RUN_CHARACTERS = 256  # of text without a break, as a tokenizer is trained on it
LONG_RUN = re.compile("|".join(rf"{kind}{{{RUN_CHARACTERS + 1},}}" for kind in (r"\w", r"[^\w\s]", r"\s")))


def load_tokenizer(name: str, revision: str | None = None) -> PreTrainedTokenizerFast:
    """The fast tokenizer that `name` stands for: a directory, a hub id, a tokenizer.json file, or `bytes`.

    Where there is a tokenizer.json, the tokenizer gives the ids that this file gives, whatever class
    tokenizer_config.json names: such a class brings a pre-tokenizer and a normaliser of its own.

    Args:
        name: a directory, a hub id, a tokenizer.json file, or `bytes`.
        revision: of a hub id: a branch, tag or commit.

    Returns:
        The tokenizer.

    Raises:
        TokenizerError: there is no tokenizer, or only a slow one that is not made of plain bytes.
    """
    if name == "bytes":
        return bytes_tokenizer()
    if is_missing_path(name):
        raise TokenizerError(
            f"{name}: there is no such directory or file. Give a directory that holds a tokenizer, a hub id such as "
            "org/model, a tokenizer.json file, or `bytes`."
        )
    if Path(name).is_file():
        return PreTrainedTokenizerFast(tokenizer_object=_read_file(Path(name)))
    try:
        file = cached_file(name, "tokenizer.json", revision=revision, _raise_exceptions_for_missing_entries=False)
        if file is not None:
            return _as_file_says(Path(file), name, revision)
        from transformers import AutoTokenizer  # takes seconds, as it brings torch

        tokenizer = AutoTokenizer.from_pretrained(name, revision=revision, trust_remote_code=False)
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:  # by where and what the files are
        raise TokenizerError(
            f"{name}: no tokenizer could be loaded. Give a directory that holds one, a hub id, a tokenizer.json file "
            f"or `bytes`. ({type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no message'})"
        ) from error
    if type(tokenizer).__name__ == "ByT5Tokenizer":
        return from_byt5(tokenizer)
    if not tokenizer.is_fast:
        raise TokenizerError(f"{name}: {type(tokenizer).__name__} has no fast backend. Convert it to a tokenizer.json.")
    _refuse_endless(tokenizer.backend_tokenizer, name)
    return tokenizer


def _read_file(file: Path) -> Tokenizer:
    try:
        backend = Tokenizer.from_file(str(file))
    except Exception as error:
        if type(error) is not Exception:  # the tokenizers library raises bare Exception
            raise
        raise TokenizerError(f"{file}: not a tokenizer.json file ({error}).") from error
    _refuse_endless(backend, str(file))
    return backend


def _refuse_endless(backend: Tokenizer, name: str) -> None:
    """Raises TokenizerError where an added token is normalised to nothing: encoding looks for it for ever."""
    normaliser = backend.normalizer
    for token in backend.get_added_tokens_decoder().values():
        if token.normalized and normaliser is not None and not normaliser.normalize_str(token.content):
            raise TokenizerError(
                f"{name}: its normaliser turns the added token {token.content!r} into nothing, which encoding would "
                "look for without end. Take this token out, or set its `normalized` to false."
            )


def _as_file_says(file: Path, name: str, revision: str | None) -> PreTrainedTokenizerFast:
    """The tokenizer of `file` with the roles of special tokens and the chat template that lie beside it."""
    backend = _read_file(file)
    beside = PreTrainedTokenizerFast.from_pretrained(name, revision=revision)
    for token_id, token in sorted(beside.added_tokens_decoder.items()):
        if backend.token_to_id(token.content) is None:  # tokenizer_config.json may add tokens to the file's
            backend.add_tokens([copied_token(token, token.content, token.special)])
        if backend.token_to_id(token.content) != token_id:
            raise TokenizerError(
                f"{name}: {token.content!r} has the id {token_id} by its tokenizer_config.json, and "
                f"{backend.token_to_id(token.content)} by its tokenizer.json. Make the two agree."
            )
    _refuse_endless(backend, name)
    roles = {role: token for role, token in beside.special_tokens_map.items() if isinstance(token, str)}
    extra = [token for token in beside.all_special_tokens if token not in roles.values()]
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, **roles, extra_special_tokens=extra, chat_template=beside.chat_template,
        model_max_length=beside.model_max_length, padding_side=beside.padding_side,
        truncation_side=beside.truncation_side, clean_up_tokenization_spaces=False,
    )  # fmt: skip


def copied_token(token: AddedToken, content: str, special: bool) -> AddedToken:
    """An added token with the flags of another."""
    return AddedToken(
        content, lstrip=token.lstrip, rstrip=token.rstrip, single_word=token.single_word, normalized=token.normalized,
        special=special,
    )  # fmt: skip


def save_tokenizer(tokenizer: PreTrainedTokenizerFast, directory: Path) -> None:
    """Write `tokenizer` so that AutoTokenizer gives the same ids from it, in transformers 4.56 and newer.

    Its class is the one that takes tokenizer.json as it is, and no code that the original names; fields of transformers
    5 alone get their older names.
    """
    tokenizer.save_pretrained(directory)
    file = directory / "tokenizer_config.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    config["tokenizer_class"] = "PreTrainedTokenizerFast"
    if isinstance(config.get("extra_special_tokens"), list):
        config["additional_special_tokens"] = config.pop("extra_special_tokens")
    for name in (
        "backend", "is_local", "local_files_only", "name_or_path", "add_bos_token", "add_eos_token", "auto_map",
    ):  # fmt: skip
        config.pop(name, None)
    file.write_text(json.dumps(config, indent=2, ensure_ascii=False), encoding="utf-8")


def bytes_tokenizer() -> PreTrainedTokenizerFast:
    """One token a byte, `id == byte` for 0 to 255, and an end-of-text token that also begins texts."""
    vocabulary = {character: byte for character, byte in BYTE_OF_CHARACTER.items()}
    backend = _byte_level(models.BPE(vocabulary, []))
    backend.add_special_tokens([END_OF_TEXT])
    return _beginning_texts(backend)


def from_byt5(tokenizer: object) -> PreTrainedTokenizerFast:
    """A fast tokenizer with the ids of a ByT5 tokenizer: its special tokens first, then the 256 bytes."""
    offset = int(tokenizer.offset)  # type: ignore[attr-defined]
    added = sorted(tokenizer.added_tokens_decoder.items())  # type: ignore[attr-defined]
    vocabulary = {character: byte + offset for character, byte in BYTE_OF_CHARACTER.items()}
    vocabulary |= {token.content: token_id for token_id, token in added}
    backend = _byte_level(models.BPE(vocabulary, []))
    backend.add_special_tokens([token for _, token in added])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="</s>", pad_token="<pad>", unk_token="<unk>",
        clean_up_tokenization_spaces=False,
    )  # fmt: skip


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """A new byte-level BPE tokenizer of `vocab_size` entries, the 256 bytes and an end-of-text token among them, which
    begins texts too.

    Raises TokenizerError where `vocab_size` has no room for those.
    """
    if vocab_size < 257:
        raise TokenizerError(f"vocab_size is {vocab_size}: the 256 bytes and {END_OF_TEXT} need at least 257.")
    backend = _byte_level(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=[END_OF_TEXT], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )  # fmt: skip
    backend.train_from_iterator((piece for text in texts for piece in _short_runs(text)), trainer)
    return _beginning_texts(backend)


def _short_runs(text: str) -> list[str]:
    """`text`, cut within unbroken runs alone: counting pairs in a run takes the square of its length."""
    cuts = [
        at for run in LONG_RUN.finditer(text) for at in range(run.start() + RUN_CHARACTERS, run.end(), RUN_CHARACTERS)
    ]
    return [text[start:stop] for start, stop in pairwise([0, *cuts, len(text)])]


def _beginning_texts(backend: Tokenizer) -> PreTrainedTokenizerFast:
    """`backend` with END_OF_TEXT before every text, as a student sees it in training, and in all the usual roles."""
    backend.post_processor = processors.TemplateProcessing(
        single=f"{END_OF_TEXT} $A", special_tokens=[(END_OF_TEXT, backend.token_to_id(END_OF_TEXT))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token=END_OF_TEXT, eos_token=END_OF_TEXT, pad_token=END_OF_TEXT,
        clean_up_tokenization_spaces=False,
    )  # fmt: skip


def _byte_level(model: models.BPE) -> Tokenizer:
    backend = Tokenizer(model)
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    return backend
