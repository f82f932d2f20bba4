"""The tokenizers of published models that `make test` has fetched."""

from functools import cache
from pathlib import Path

from ctd_core.text.encoding import TextEncoder
from ctd_core.text.tokenizers import load_tokenizer
from pipelines.teachers.tokenizers import MISTRAL_V1, QWEN

DIRECTORY = Path("runs/tokenizers")
# Names to directories. SmolLM2's is that of the demo's teacher: byte-level BPE of 49,152 entries.
REAL = {
    "SmolLM2": Path("runs/teachers/SmolLM2-135M-Instruct"),
    "Mistral v1": DIRECTORY / MISTRAL_V1,
    "Qwen": DIRECTORY / QWEN,
}


@cache
def real_encoder(name: str) -> TextEncoder:
    """A tokenizer that `make test` has fetched."""
    return TextEncoder(load_tokenizer(str(REAL[name])), name)
