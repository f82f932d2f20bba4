"""Low-rank adapters on a model (LoRA, Hu et al., arXiv 2106.09685), by the peft library."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.tuners_utils import BaseTunerLayer
from transformers import PreTrainedModel

from ctd_core.config import Adapters
from ctd_core.errors import UsageError


def add_adapters(model: PreTrainedModel, options: Adapters, seed: int) -> None:
    """Put adapters on `model`, in place, and fix all else but its embeddings; what it computes stays the same.

    Raises UsageError where the model has no layer of the names that `options` give.
    """
    model.requires_grad_(False)
    torch.manual_seed(seed)
    config = LoraConfig(r=options.rank, lora_alpha=options.alpha, target_modules=options.targets)
    try:
        inject_adapter_in_model(config, model)
    except ValueError as error:
        raise UsageError(
            f"student.adapters.targets: {options.targets} names no layer of the model ({error})."
        ) from error
    for end in (model.get_input_embeddings(), model.get_output_embeddings()):
        end.requires_grad_(True)


def merge_adapters(model: PreTrainedModel) -> None:
    """Add the adapters to the weights that they are for, in place; nothing where there are none."""
    for name, layer in [(name, one) for name, one in model.named_modules() if isinstance(one, BaseTunerLayer)]:
        layer.merge()
        model.set_submodule(name, layer.get_base_layer())


@contextmanager
def without_adapters(model: PreTrainedModel) -> Iterator[None]:
    """`model` as it is without its adapters."""
    layers = [one for one in model.modules() if isinstance(one, BaseTunerLayer)]
    for layer in layers:
        layer.enable_adapters(False)
    try:
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(True)
