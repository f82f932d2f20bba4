"""Several processes that train one student: replicas (DDP) or shards (FSDP2) of it."""

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from ctd_core.config.training import Train
from ctd_core.models.loading import CPU
from ctd_core.models.logprob_model import LogprobModel


@dataclass(frozen=True)
class Worker:
    """One of `world` processes that train together, and the device that it calculates on."""

    rank: int = 0
    world_size: int = 1
    device: torch.device = CPU


ALONE = Worker()


def true_everywhere(value: bool, device: torch.device) -> bool:
    """Whether it is true of every worker, each of which has to ask."""
    if not dist.is_initialized():
        return value
    least = torch.tensor(int(value), device=device)
    dist.all_reduce(least, op=dist.ReduceOp.MIN)
    return bool(least)


def distribute(student: LogprobModel, options: Train, device: torch.device, autocast: torch.dtype | None) -> None:
    """Make `student` ready for training on `device`, in place.

    ddp: each worker has a replica. fsdp (FSDP2, `torch.distributed.fsdp.fully_shard`): each has a shard of every
    parameter, gradient and optimizer state, and gathers a layer when it calculates it, in the type `autocast` where
    that is given; gradients are summed in float32.
    """
    if options.activation_checkpointing:
        for layer in student.language_model.layers:
            _compute_twice(layer)
    if options.strategy == "fsdp" and dist.is_initialized():
        _shard(student, device, autocast)
    else:
        student.to(device)


def replicated(student: LogprobModel, options: Train) -> LogprobModel | DistributedDataParallel:
    """A student that `distribute` has made ready, such that replicas add up the gradients of what is learned now."""
    if options.strategy == "fsdp" or not dist.is_initialized():
        return student
    # Gradients lie in what is sent, and not beside it; buffers are the same everywhere, and no worker waits for them.
    student.reaches_projections = has_unused = _has_unused(student)
    return DistributedDataParallel(
        student, gradient_as_bucket_view=True, broadcast_buffers=False, find_unused_parameters=has_unused
    )


def _has_unused(student: LogprobModel) -> bool:
    """Whether a text may leave out what learns, as it leaves out what is for images, or experts that it does not need.

    DDP would wait for gradients that never come; to look for them takes time at every step.
    """
    model, head = student.language_model, student.language_model.head
    hidden = model.hidden_states(torch.zeros((1, 2), dtype=torch.long, device=head.weight.device), {})
    output = [part for part in (head.weight, head.bias) if part is not model.embeddings]
    inside = [
        parameter
        for parameter in model.module.parameters()
        if parameter.requires_grad and not any(parameter is part for part in output)
    ]
    if not hidden.requires_grad:
        return bool(inside)
    gradients = torch.autograd.grad(hidden.float().sum(), inside, allow_unused=True)
    return any(gradient is None for gradient in gradients)


def _shard(student: LogprobModel, device: torch.device, narrow: torch.dtype | None) -> None:
    policy = MixedPrecisionPolicy(param_dtype=narrow, reduce_dtype=torch.float32 if narrow else None)
    options: dict[str, Any] = {"mesh": init_device_mesh(device.type, (dist.get_world_size(),)), "mp_policy": policy}
    for layer in student.language_model.layers:
        fully_shard(layer, **options)
    # Embeddings, output matrix and projections: objectives use them after the forward pass, so they stay till backward.
    fully_shard(student, reshard_after_forward=False, **options)


def _compute_twice(layer: nn.Module) -> None:
    """Enable activation checkpointing for one layer."""
    forward = layer.forward

    def again(*args: Any, **kwargs: Any) -> Any:
        return checkpoint(forward, *args, use_reentrant=False, **kwargs)

    layer.forward = again
