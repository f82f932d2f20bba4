"""Small tokenizers of every supported kind, trained in a moment on text in several scripts."""

from functools import cache

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import ByT5Tokenizer, PreTrainedTokenizerFast

from ctd_core.text.encoding import TextEncoder
from ctd_core.text.tokenizers import bytes_tokenizer, from_byt5, train_tokenizer

TEXTS = [
    "The quick brown fox jumps over the lazy dog.\n\tdef f(x):\n        return x  # nothing\r\n",
    "Größenwahn und Übermut, naïve café déjà vu. Ελληνικά. Русский текст.",
    "日本語のテキスト。中文文本。한국어 텍스트. 👩‍👩‍👧 🇩🇪",
    "the the the there then they 12345 67 890 it is what it is",
] * 4
BYTE_TOKENS = [f"<0x{byte:02X}>" for byte in range(256)]


def wrap(backend: Tokenizer) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(tokenizer_object=backend)


def sentencepiece_bpe(prefix: bool) -> PreTrainedTokenizerFast:
    """As Llama 2 and Mistral 7B (with `prefix`) or Gemma (without): metaspace in the normaliser, byte fallback."""
    backend = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    spaces = normalizers.Replace(" ", "▁")
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), spaces]) if prefix else spaces
    trainer = trainers.BpeTrainer(
        vocab_size=600, special_tokens=["<unk>", "<s>", "</s>", *BYTE_TOKENS], limit_alphabet=120, show_progress=False
    )
    backend.train_from_iterator(TEXTS, trainer)
    model = backend.model
    fresh = Tokenizer(model)
    fresh.normalizer = backend.normalizer
    fresh.add_special_tokens(["<unk>", "<s>", "</s>"])
    return wrap(fresh)


def pieces_before_bytes() -> PreTrainedTokenizerFast:
    """As Gemma: pieces of one byte, which encoding prefers, with smaller ids than the byte-fallback tokens; and added
    text that is looked for in the normalised text.
    """
    pieces = ["<unk>", "<s>", "</s>", "\n", "▁", *"aeiou", *BYTE_TOKENS]
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    backend = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.add_special_tokens(["<unk>", "<s>", "</s>"])
    backend.add_tokens([AddedToken("fox")])
    return wrap(backend)


def unigram(prepend_scheme: str) -> PreTrainedTokenizerFast:
    backend = Tokenizer(models.Unigram())
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=prepend_scheme)
    backend.decoder = decoders.Metaspace(prepend_scheme=prepend_scheme)
    trainer = trainers.UnigramTrainer(
        vocab_size=400, special_tokens=["<unk>", "</s>"], unk_token="<unk>", show_progress=False
    )
    backend.train_from_iterator(TEXTS, trainer)
    return wrap(backend)


def with_added_text() -> PreTrainedTokenizerFast:
    tokenizer = train_tokenizer(TEXTS, 400)
    tokenizer.add_tokens([AddedToken("    ", normalized=False), AddedToken("\t\t"), AddedToken("fox jumps")])
    return tokenizer


def with_normaliser(normaliser: normalizers.Normalizer) -> PreTrainedTokenizerFast:
    tokenizer = train_tokenizer(TEXTS, 400)
    tokenizer.backend_tokenizer.normalizer = normaliser
    return tokenizer


def with_prefix_space() -> PreTrainedTokenizerFast:
    tokenizer = train_tokenizer(TEXTS, 400)
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    return tokenizer


def byt5() -> PreTrainedTokenizerFast:

    return from_byt5(ByT5Tokenizer())


# Kinds that can spell every text.
TOTAL = {
    "bytes": bytes_tokenizer,
    "byt5": byt5,
    "byte-level BPE, 300": lambda: train_tokenizer(TEXTS, 300),
    "byte-level BPE, 600": lambda: train_tokenizer(TEXTS, 600),
    "byte-level BPE with a leading space": with_prefix_space,
    "byte-level BPE with added text": with_added_text,
    "byte-level BPE with NFC": lambda: with_normaliser(normalizers.NFC()),
    "SentencePiece BPE": lambda: sentencepiece_bpe(prefix=False),
    "SentencePiece BPE with a leading space": lambda: sentencepiece_bpe(prefix=True),
    "SentencePiece BPE with a leading space, pieces before bytes": pieces_before_bytes,
}
# Kinds without a token for every character.
PARTIAL = {
    "Unigram": lambda: unigram("never"),
    "Unigram with a leading space": lambda: unigram("first"),
}


@cache
def encoder(kind: str) -> TextEncoder:
    return TextEncoder((TOTAL | PARTIAL)[kind](), kind)
