"""Finding a tokenizer by what a user calls it, and making new ones."""

from collections.abc import Iterable
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from ctd_core.errors import TokenizerError
from ctd_core.text.spelling import BYTE_OF_CHARACTER

END_OF_TEXT = "<|endoftext|>"


def load_tokenizer(name: str, revision: str | None = None) -> PreTrainedTokenizerFast:
    """The fast tokenizer that `name` stands for: a directory, a hub id, a tokenizer.json file, or `bytes`.

    Raises TokenizerError where there is none, or only a slow one that is not made of plain bytes.
    """
    if name == "bytes":
        return bytes_tokenizer()
    if Path(name).is_file():
        try:
            return PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_file(name))
        except Exception as error:  # the tokenizers library raises bare Exception
            raise TokenizerError(f"{name}: not a tokenizer.json file ({error}).") from error
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, revision=revision)
    except Exception as error:  # OSError, ValueError and more, by where the files are
        raise TokenizerError(
            f"{name}: no tokenizer could be loaded. Give a directory that holds one, a hub id, a tokenizer.json file "
            f"or `bytes`. ({type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no message'})"
        ) from error
    if type(tokenizer).__name__ == "ByT5Tokenizer":
        return from_byt5(tokenizer)
    if not tokenizer.is_fast:
        raise TokenizerError(f"{name}: {type(tokenizer).__name__} has no fast backend. Convert it to a tokenizer.json.")
    return tokenizer


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
    backend.train_from_iterator(texts, trainer)
    return _beginning_texts(backend)


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
