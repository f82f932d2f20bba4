"""AdamW parameter groups, learning-rate schedule, clipping, freezing."""

import re
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from ctd_core.config.training import Phase, Train
from ctd_core.errors import UsageError
from ctd_core.models.language_model import LanguageModel
from ctd_core.models.logprob_model import LogprobModel


def freeze(model: nn.Module, patterns: list[str], field: str = "train") -> None:
    """Fix the parameters with a match of any of `patterns`, the `freeze` of `field`, in their names.

    Raises UsageError where a pattern has no match.
    """
    for pattern in patterns:
        found = [parameter for name, parameter in model.named_parameters() if re.search(pattern, name)]
        if not found:
            names = ", ".join(name for name, _ in list(model.named_parameters())[:4])
            raise UsageError(
                f"{field}.freeze: no parameter has a match of {pattern!r} in its name; names are {names} …"
            )
        for parameter in found:
            parameter.requires_grad_(False)


def check_phases(student: LanguageModel, phases: Sequence[Phase]) -> None:
    """Freeze the student for each phase in turn, the last first, and leave it as it was.

    Raises UsageError where a pattern has no match, or a phase leaves nothing to train, or to compare gradients at.
    """
    learned = [parameter for parameter in student.module.parameters() if parameter.requires_grad]
    for _, field, options in reversed(phases):  # so that what a stage takes from `train` is told of `train`
        freeze(student.module, options.freeze, field)
        if not any(parameter.requires_grad for parameter in learned):
            raise UsageError(f"{field}.freeze: it fixes every parameter, so there is nothing to train.")
        is_balanced = options.weighting == "gradient_magnitude"
        if is_balanced and not any(parameter.requires_grad for parameter in student.layers[-1].parameters()):
            raise UsageError(
                f"{field}.freeze: it fixes the last layer, at which weighting: gradient_magnitude compares gradients."
            )
        for parameter in learned:
            parameter.requires_grad_(True)


def make_optimizer(student: LogprobModel, options: Train) -> torch.optim.AdamW:
    """AdamW with a learning rate for the embeddings with the output matrix, one for the rest, one for projections.

    Matrices decay, vectors do not. Its state is there from the start, so that a checkpoint can be read into it.
    """
    model, head = student.model, student.language_model.head
    ends = {id(tensor) for tensor in (student.language_model.embeddings, head.weight, head.bias) if tensor is not None}
    groups = []
    for is_end, rate in ((False, options.learning_rate), (True, options.embedding_learning_rate)):
        for decays in (False, True):
            chosen = [
                parameter
                for parameter in model.parameters()
                if parameter.requires_grad and (id(parameter) in ends) == is_end and (parameter.ndim > 1) == decays
            ]
            if chosen:
                peak = options.learning_rate if rate is None else rate
                decay = options.weight_decay if decays else 0.0
                groups.append({"params": chosen, "lr": peak, "peak": peak, "weight_decay": decay})
    peak = options.projection_learning_rate
    for decays in (False, True):
        if chosen := [parameter for parameter in student.projections.parameters() if (parameter.ndim > 1) == decays]:
            decay = options.weight_decay if decays else 0.0
            groups.append({"params": chosen, "lr": peak, "peak": peak, "weight_decay": decay})
    optimizer = torch.optim.AdamW(groups, betas=options.betas, eps=options.eps, fused=True)
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            means = {name: torch.zeros_like(parameter, requires_grad=False) for name in ("exp_avg", "exp_avg_sq")}
            optimizer.state[parameter] = {"step": torch.zeros((), device=parameter.device), **means}
    return optimizer


def rate_fraction(step: int, options: Train) -> float:
    """The fraction of the peak learning rate at `step`, counted from 0: linear warm-up, then linear decay."""
    if step < options.warmup:
        return (step + 1) / (options.warmup + 1)
    left = (options.steps - step) / max(options.steps - options.warmup, 1)
    return options.min_lr_ratio + (1 - options.min_lr_ratio) * left


def set_rate(optimizer: torch.optim.Optimizer, fraction: float) -> None:
    """Set every group's learning rate to this fraction of its peak."""
    for group in optimizer.param_groups:
        group["lr"] = group["peak"] * fraction


def clip(module: nn.Module, max_norm: float | None) -> Tensor:
    """The gradient's norm before it was clipped to `max_norm`; None leaves it as it is."""
    trained = [parameter for parameter in module.parameters() if parameter.grad is not None]
    norm = nn.utils.clip_grad_norm_(trained, max_norm if max_norm is not None else float("inf"))
    return norm.full_tensor() if isinstance(norm, DTensor) else norm
