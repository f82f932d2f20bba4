"""Language models and their output matrices."""

import hashlib
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from ctd_core.config import Dtype
from ctd_core.errors import CtdError, UsageError
from ctd_core.models.logprobs import Head

DTYPES: dict[Dtype, torch.dtype] = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def load_model(name: str, revision: str | None = None, dtype: Dtype = "float32") -> PreTrainedModel:
    """The causal language model in a directory or of a hub id, in evaluation mode.

    Raises UsageError where there is none, CtdError where its logits are not what its output matrix gives (see Head).
    """
    try:
        model = AutoModelForCausalLM.from_pretrained(name, revision=revision, dtype=DTYPES[dtype])
    except Exception as error:  # OSError, ValueError, errors of safetensors …
        raise UsageError(
            f"{name}: no causal language model could be loaded. Give a directory written by save_pretrained, or a hub "
            f"id. ({type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no message'})"
        ) from error
    model.eval()
    check_head(model, name)
    train_every_row(model)
    return model


def train_every_row(model: PreTrainedModel) -> None:
    """Let the embedding of the padding token learn as any other: it may be the token that begins every text."""
    model.get_input_embeddings().padding_idx = None


def head_of(model: PreTrainedModel) -> Head:
    """The model's output matrix with what its config does to logits."""
    output = model.get_output_embeddings()
    config = model.config.get_text_config()
    scale = float(getattr(config, "logit_scale", None) or 1.0) / float(getattr(config, "logits_scaling", None) or 1.0)
    cap = getattr(config, "final_logit_softcapping", None)
    return Head(output.weight, getattr(output, "bias", None), scale, float(cap) if cap else None)


def last_hidden(model: PreTrainedModel, input_ids: Tensor) -> Tensor:
    """The hidden states [B, S, H] that the output matrix turns into logits; `input_ids` is [B, S], padded right."""
    hidden: Tensor = model.base_model(input_ids=input_ids, use_cache=False).last_hidden_state
    return hidden


def layers(model: PreTrainedModel) -> nn.ModuleList:
    """The model's layers, the first first; raises UsageError where its architecture keeps them in no list."""
    count = model.config.get_text_config().num_hidden_layers
    for one in model.base_model.modules():
        if isinstance(one, nn.ModuleList) and len(one) == count:
            return one
    raise UsageError(f"{type(model).__name__} has no list of its {count} layers, so they are not known.")


@torch.no_grad()
def check_head(model: PreTrainedModel, name: str) -> None:
    """Raises CtdError where the logits of `head_of` are not the model's own: its architecture does something more."""
    ids = torch.arange(4, device=model.device)[None] % model.get_input_embeddings().weight.shape[0]
    own = model(input_ids=ids, use_cache=False).logits.float()
    head = head_of(model)
    logits = nn.functional.linear(last_hidden(model, ids), head.weight, head.bias).float() * head.scale
    if head.cap is not None:
        logits = head.cap * torch.tanh(logits / head.cap)
    tolerance = math.sqrt(torch.finfo(model.dtype).eps) * float(own.abs().max())
    if logits.shape != own.shape or float((logits - own).abs().max()) > tolerance:
        raise CtdError(
            f"{name}: {type(model).__name__} computes its logits in a way that is not supported: not from its last "
            "hidden states, its output matrix, a bias, a scale and a soft cap alone."
        )


def weights_fingerprint(name: str, revision: str | None) -> str:
    """SHA-256 over the weights, configs and tokenizer of a local directory; a hub id stands for itself."""
    folder = Path(name)
    if not folder.is_dir():
        return f"{name}@{revision}"
    digest = hashlib.sha256()
    suffixes = {".safetensors", ".bin", ".json", ".txt", ".model", ".tiktoken", ".jinja"}
    for file in sorted(folder.iterdir()):
        if file.is_file() and file.suffix in suffixes:
            digest.update(file.name.encode())
            with file.open("rb") as stream:
                digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()


def count_parameters(name: str, revision: str | None) -> int:
    """The number of parameters of the model in `name`, from its config alone."""
    return parameters(skeleton(name, revision))


def skeleton(name: str, revision: str | None) -> PreTrainedModel:
    """The model in `name` without its weights."""
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(name, revision=revision))


def parameters(model: nn.Module) -> int:
    """The number of parameters, shared ones once."""
    return sum(parameter.numel() for parameter in model.parameters())


def vocabulary_mask(begins_pretoken: Any, model: PreTrainedModel) -> Tensor:
    """`begins_pretoken` [tokens] as a bool tensor [V] on the model's device; padding entries are not in it."""
    size = model.get_output_embeddings().weight.shape[0]
    mask = torch.zeros(size, dtype=torch.bool, device=model.device)
    mask[: len(begins_pretoken)] = torch.from_numpy(begins_pretoken[:size])  # ids beyond are refused where they occur
    return mask
