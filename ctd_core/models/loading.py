"""Language models and their output matrices."""

import hashlib
import json
import math
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import CONFIG_MAPPING, AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from ctd_core.config.models import Dtype
from ctd_core.errors import CtdError, UsageError
from ctd_core.ops.fused_logprobs import Head

DTYPES: dict[Dtype, torch.dtype] = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def load_model(
    name: str, revision: str | None = None, dtype: Dtype = "float32", trust_remote_code: bool = False
) -> PreTrainedModel:
    """The causal language model in a directory or of a hub id, in evaluation mode.

    Its config says whether its two matrices are tied as the weights have it, which may not be what the file says.

    Raises:
        UsageError: there is no model, or one with code of its own that is not trusted.
        CtdError: its logits are not what its output matrix gives (see Head).
    """
    config = read_model_config(name, revision, trust_remote_code)
    try:
        model = AutoModelForCausalLM.from_pretrained(
            name, config=config, revision=revision, dtype=DTYPES[dtype], trust_remote_code=trust_remote_code
        )
    except (OSError, ValueError, SafetensorError) as error:
        raise UsageError(
            f"{name}: no causal language model could be loaded. Give a directory written by save_pretrained, or a hub "
            f"id. ({_first_line(error)})"
        ) from error
    model.eval()
    check_head(model, name)
    train_every_row(model)
    if model.get_output_embeddings().weight is not model.get_input_embeddings().weight:
        for part in (model.config, model.config.get_text_config()):
            part.tie_word_embeddings = False
    return model


def read_model_config(name: str, revision: str | None = None, trust_remote_code: bool = False) -> PretrainedConfig:
    """The config of the model in a directory or of a hub id.

    Raises:
        UsageError: there is no model, it is a directory of adapters, or its code is its own and not trusted.
    """
    folder = Path(name)
    if folder.is_dir() and (folder / "adapter_config.json").exists() and not (folder / "config.json").exists():
        base = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8")).get("base_model_name_or_path")
        raise UsageError(
            f"{name}: these are LoRA adapters of {base}, not a model. Merge them first: `from peft import "
            f"AutoPeftModelForCausalLM as Adapted; Adapted.from_pretrained({name!r}).merge_and_unload()"
            ".save_pretrained('merged')`, and copy the tokenizer's files there."
        )
    if _is_missing_path(name):
        raise UsageError(f"{name}: there is no such directory. Name one that exists, or a hub id such as org/model.")
    try:
        values, _ = PretrainedConfig.get_config_dict(name, revision=revision)
        if "auto_map" in values and values.get("model_type") not in CONFIG_MAPPING and not trust_remote_code:
            raise UsageError(
                f"{name}: this model brings code of its own, which is not run unless you trust it: read it, then set "
                "trust_remote_code: true beside the model's name."
            )
        config: PretrainedConfig = AutoConfig.from_pretrained(
            name, revision=revision, trust_remote_code=trust_remote_code
        )
    except (OSError, ValueError) as error:
        raise UsageError(f"{name}: no model is there ({_first_line(error)}).") from error
    return config


def _is_missing_path(name: str) -> bool:
    """Whether `name` can only be a path, and nothing is there: hub ids are `name` or `owner/name`."""
    is_path = name.startswith((".", "/", "~")) or name.count("/") > 1
    return is_path and not Path(name).expanduser().exists()


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).splitlines() or ['no message'])[0]}"


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
    suffixes = {".safetensors", ".bin", ".json", ".txt", ".model", ".tiktoken", ".jinja", ".py", ".gguf"}
    for file in sorted(folder.iterdir()):
        if file.is_file() and file.suffix in suffixes:
            digest.update(file.name.encode())
            with file.open("rb") as stream:
                digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()


def num_embeddings(name: str, revision: str | None = None, trust_remote_code: bool = False) -> int:
    """The rows of the embedding of the model in `name`, from its config alone."""
    return int(read_model_config(name, revision, trust_remote_code).get_text_config().vocab_size)


def count_parameters(name: str, revision: str | None = None, trust_remote_code: bool = False) -> int:
    """The number of parameters of the model in `name`, from its config alone."""
    return parameters(skeleton(name, revision, trust_remote_code))


def skeleton(name: str, revision: str | None = None, trust_remote_code: bool = False) -> PreTrainedModel:
    """The model in `name` without its weights."""
    config = read_model_config(name, revision, trust_remote_code)
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)


def parameters(model: nn.Module) -> int:
    """The number of parameters, shared ones once."""
    return sum(parameter.numel() for parameter in model.parameters())


def vocabulary_mask(begins_pretoken: Any, model: PreTrainedModel) -> Tensor:
    """`begins_pretoken` [tokens] as a bool tensor [V] on the model's device; padding entries are not in it."""
    size = model.get_output_embeddings().weight.shape[0]
    mask = torch.zeros(size, dtype=torch.bool, device=model.device)
    mask[: len(begins_pretoken)] = torch.from_numpy(begins_pretoken[:size])  # ids beyond are refused where they occur
    return mask
