"""Low-rank adapters on a model (LoRA, Hu et al., arXiv 2106.09685), by the peft library."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from ctd_core.config.models import Adapters
from ctd_core.errors import UsageError


def add_adapters(model: PreTrainedModel, options: Adapters, seed: int) -> None:
    """Put adapters on `model`, in place, and fix all else but its embeddings; what it computes stays the same.

    Raises UsageError where one of the targets names no linear layer inside the model.
    """
    from peft import LoraConfig, inject_adapter_in_model

    _check_targets(model, options)
    model.requires_grad_(False)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        config = LoraConfig(r=options.rank, lora_alpha=options.alpha, target_modules=options.targets)
        inject_adapter_in_model(config, model)
    for end in (model.get_input_embeddings(), model.get_output_embeddings()):
        end.requires_grad_(True)


def _check_targets(model: PreTrainedModel, options: Adapters) -> None:
    """Raises UsageError where one of the targets names no linear layer inside the model."""
    output = model.get_output_embeddings()
    linear = [
        name.rpartition(".")[2]
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and module is not output
    ]
    for target in options.targets:
        if target not in linear:
            raise UsageError(
                f"student.adapters.targets: {target!r} is no linear layer inside the model; there are "
                f"{', '.join(dict.fromkeys(linear))}."
            )


def merge_adapters(model: nn.Module) -> None:
    """Add the adapters to the weights that they are for, in place; nothing where there are none."""
    for name, layer in _adapted(model):
        layer.merge()
        model.set_submodule(name, layer.get_base_layer())


@contextmanager
def without_adapters(model: nn.Module) -> Iterator[None]:
    """`model` as it is without its adapters."""
    layers = [layer for _, layer in _adapted(model)]
    trained = [(parameter, parameter.requires_grad) for layer in layers for parameter in layer.parameters()]
    for layer in layers:
        layer.enable_adapters(False)
    try:
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(True)
        for parameter, is_trained in trained:  # peft would train all adapters, frozen ones too
            parameter.requires_grad_(is_trained)


def _adapted(model: nn.Module) -> list[tuple[str, Any]]:
    """The layers of the model that have an adapter, by name."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    return [(name, module) for name, module in model.named_modules() if isinstance(module, BaseTunerLayer)]
