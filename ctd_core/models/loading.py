"""Loading Hugging Face models, with what their configs claim held against what their weights hold."""

import logging
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import AutoModelForCausalLM, GenerationConfig, PreTrainedModel

from ctd_core.config.models import Dtype
from ctd_core.errors import CtdError, UsageError, first_line
from ctd_core.models.language_model import HuggingFaceModel
from ctd_core.models.model_config import read_model_config

DTYPES: dict[Dtype, torch.dtype] = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
CPU = torch.device("cpu")
# Of a generation config.
OF_DRAWING = ["temperature", "top_p", "top_k", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff"]
OF_BEAMS = ["early_stopping", "length_penalty"]
OF_TOKENS = ["bos_token_id", "eos_token_id", "pad_token_id"]
logger = logging.getLogger(__name__)


def has_fast_bfloat16(device: torch.device) -> bool:
    """Whether `device` multiplies matrices of bfloat16 faster than of float32: by tensor cores, AMX or AVX-512."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    is_known = device.type == "cpu" and hasattr(torch.cpu, "get_capabilities")  # not in older releases
    capabilities = torch.cpu.get_capabilities() if is_known else {}
    return bool(capabilities.get("amx_bf16") or capabilities.get("avx512_bf16"))


def load_model(
    name: str,
    revision: str | None = None,
    dtype: Dtype = "float32",
    trust_remote_code: bool = False,
    device: torch.device = CPU,
) -> PreTrainedModel:
    """The causal language model in a directory or of a hub id, in evaluation mode.

    Its config says whether its two matrices are tied as the weights have it, which may not be what the file says. In
    this process, attention is then calculated without cuDNN, which plans for every new shape of a batch: in a training
    on an H100, steps with a shape of their own took twice the time of those with one that had been there.

    Args:
        name: a directory or a hub id.
        revision: of a hub id: a branch, tag or commit.
        dtype: what the weights are loaded as; see Teacher.dtype.
        trust_remote_code: whether code that lies beside the weights may run.
        device: where it is put.

    Returns:
        The model, on `device`.

    Raises:
        UsageError: there is no model, one without some of its weights, or one with code of its own that is not trusted.
        CtdError: its logits are not what its output matrix gives (see Head).
    """
    torch.backends.cuda.enable_cudnn_sdp(False)
    if dtype == "fastest":
        dtype = "bfloat16" if has_fast_bfloat16(device) else "float32"
    model = _loaded(name, revision, trust_remote_code, dtype=DTYPES[dtype]).eval()
    check_head(model, name)
    train_every_row(model)
    if model.get_output_embeddings().weight is not model.get_input_embeddings().weight:
        for part in (model.config, model.config.get_text_config()):
            part.tie_word_embeddings = False
    return model.to(device)


def check_weights(name: str, revision: str | None = None, trust_remote_code: bool = False) -> None:
    """Look whether the model in `name` is there whole, without reading its weights; raises UsageError as load_model."""
    _loaded(name, revision, trust_remote_code, device_map="meta")


def _loaded(name: str, revision: str | None, trust_remote_code: bool, **how: Any) -> PreTrainedModel:
    config = read_model_config(name, revision, trust_remote_code)
    try:
        model: PreTrainedModel
        model, found = AutoModelForCausalLM.from_pretrained(
            name,
            config=config,
            revision=revision,
            trust_remote_code=trust_remote_code,
            output_loading_info=True,
            **how,
        )
    except (OSError, ValueError, SafetensorError) as error:
        raise UsageError(
            f"{name}: no causal language model could be loaded. Give a directory written by save_pretrained, or a hub "
            f"id. ({first_line(error)})"
        ) from error
    if forgotten := _forget_unused(model.generation_config):
        logger.warning(
            "%s: its generation config asks for what it does not use, and could not be written again. Taken out: %s",
            name, ", ".join(forgotten),
        )  # fmt: skip
    if missing := sorted(found["missing_keys"]):
        raise UsageError(
            f"{name}: its files hold no weights for {', '.join(missing[:4])}{' …' if len(missing) > 4 else ''}, which "
            "would be random numbers. Give the whole model, with its output matrix, as save_pretrained writes it."
        )
    return model


def _forget_unused(config: GenerationConfig | None) -> list[str]:
    """Take out of a generation config, in place, what `generate` passes over and `save_pretrained` refuses; in words.

    Such are a temperature where nothing is drawn, and stopping rules of beams where there are none.
    """
    if config is None or _fits(config):
        return []
    unused = ([] if config.do_sample is True else OF_DRAWING) + (OF_BEAMS if config.num_beams in (None, 1) else [])
    usual, before = GenerationConfig(), config.to_dict()
    for name in unused:
        setattr(config, name, getattr(usual, name, None))
    if (config.pad_token_id or 0) < 0:
        config.pad_token_id = None
    if not _fits(config):
        kept = {name: getattr(config, name) for name in OF_TOKENS}
        config.__dict__ = GenerationConfig(**kept).__dict__
    after = config.to_dict()
    return [f"{name}: {value}" for name, value in before.items() if value != after.get(name)]


def _fits(config: GenerationConfig) -> bool:
    try:
        config.validate(strict=True)
    except ValueError:
        return False
    return True


def train_every_row(model: PreTrainedModel) -> None:
    """Let the embedding of the padding token learn as any other: it may be the token that begins every text."""
    model.get_input_embeddings().padding_idx = None


@torch.no_grad()
def check_head(model: PreTrainedModel, name: str) -> None:
    """Raises CtdError where a model's logits are no numbers, or not those of `head_of`: it does something more."""
    ids = model.get_input_embeddings().weight.isfinite().all(1).nonzero()[:4, 0][None]  # of rows that are numbers
    own = model(input_ids=ids, use_cache=False).logits.float()
    if not own.isfinite().any():
        raise CtdError(
            f"{name}: its logits are not finite. Its files are damaged, or {model.dtype} is too small a type for it."
        )
    language_model = HuggingFaceModel(model)
    head = language_model.head
    logits = nn.functional.linear(language_model.hidden_states(ids), head.weight, head.bias).float() * head.scale
    if head.cap is not None:
        logits = head.cap * torch.tanh(logits / head.cap)
    known = own.isfinite()  # a row of the output matrix may not be
    tolerance = math.sqrt(torch.finfo(model.dtype).eps) * float(own[known].abs().max())
    if logits.shape != own.shape or not float((logits - own)[known].abs().max()) <= tolerance:
        raise CtdError(
            f"{name}: {type(model).__name__} computes its logits in a way that is not supported: not from its last "
            "hidden states, its output matrix, a bias, a scale and a soft cap alone."
        )


def count_parameters(name: str, revision: str | None = None, trust_remote_code: bool = False) -> int:
    """The number of parameters of the model in `name`, from its config alone."""
    return parameters(skeleton(name, revision, trust_remote_code))


def skeleton(name: str, revision: str | None = None, trust_remote_code: bool = False) -> PreTrainedModel:
    """The model in `name` without its weights."""
    config = read_model_config(name, revision, trust_remote_code)
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)


def may_hold(name: str, model: PreTrainedModel, part: nn.Module) -> bool:
    """Whether the weights in `name` hold one for this part of the model; not known, so True, but of a directory."""
    files = list(Path(name).glob("*.safetensors"))
    weight = next(found for found, module in model.named_modules() if module is part) + ".weight"
    opened: Iterator[Any] = (safe_open(file, "pt") for file in files)
    return not files or any(weight in weights.keys() for weights in opened)  # noqa: SIM118


def parameters(model: nn.Module) -> int:
    """The number of parameters, shared ones once."""
    return sum(parameter.numel() for parameter in model.parameters())
