"""A trained student as a directory that Hugging Face transformers loads."""

import logging
from pathlib import Path
from typing import Any

from torch import nn
from transformers import PreTrainedTokenizerFast

from ctd_core.errors import CtdError
from ctd_core.models.language_model import LanguageModel
from ctd_core.models.model_config import end_tokens
from ctd_core.text.sentencepiece_file import sentencepiece_file
from ctd_core.text.stops import stops_of
from ctd_core.text.tokenizers import save_tokenizer

logger = logging.getLogger(__name__)


def export_model(
    model: LanguageModel,
    tokenizer: PreTrainedTokenizerFast,
    card: str,
    directory: Path,
) -> None:
    """Write model, tokenizer, generation config and model card into `directory`.

    Args:
        model: what is written.
        tokenizer: the student's, as PreparedTokenizer.exported has it.
        card: the text of README.md.
        directory: an existing directory.

    Raises:
        CtdError: a weight is not finite.
    """
    for name, tensor in model.module.state_dict().items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise CtdError(f"{name} holds numbers that are not finite, so the model is not exported. Train it again.")
    stop_at_ends(model.module, tokenizer)
    _leave_unused_code_out(model)
    model.save(directory)
    save_tokenizer(tokenizer, directory)
    try:
        file = sentencepiece_file(tokenizer)
    except ImportError:
        logger.info(
            "export: no tokenizer.model, which llama.cpp reads: `pip install ctd-ray[gguf]` brings what it takes"
        )
    else:
        if file is not None:
            (directory / "tokenizer.model").write_bytes(file)
    (directory / "README.md").write_text(card, encoding="utf-8")


def stop_at_ends(model: nn.Module, tokenizer: PreTrainedTokenizerFast) -> None:
    """Let `generate` stop where a text ends, or an answer: a base model that learned to chat knows of none of these."""
    config: Any = getattr(model, "generation_config", None)
    if config is None:
        return
    known = end_tokens(config)
    if missing := sorted(stops_of(tokenizer, "the student's tokenizer") - set(known)):
        config.eos_token_id = [*known, *missing]


def _leave_unused_code_out(model: LanguageModel) -> None:
    """A class of transformers needs no code of its own, whatever the config that came with the weights names."""
    config: Any = getattr(model.module, "config", None)
    if type(model.module).__module__.startswith("transformers.") and hasattr(config, "auto_map"):
        del config.auto_map
