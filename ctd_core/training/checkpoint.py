"""What a checkpoint holds: all that makes the steps after it those of a run that never stopped."""

import os
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ctd_core.errors import CtdError
from ctd_core.models.student import LogprobModel

STATE = "state.pt"


def save_checkpoint(directory: Path, student: LogprobModel, optimizer: torch.optim.Optimizer, steps_done: int) -> None:
    """Write into `directory`, which has to exist; the file is there whole or not at all.

    The position in the data and the learning rate follow from the number of steps.
    """
    state = {
        "steps_done": steps_done,
        "model": student.model.state_dict(),
        "projections": student.projections.state_dict(),
        "optimizer": optimizer.state_dict(),
        "random": torch.get_rng_state(),
    }
    temporary = directory / f".{STATE}.partial"
    try:
        torch.save(state, temporary)
        os.replace(temporary, directory / STATE)
    except (OSError, RuntimeError) as error:  # torch raises RuntimeError where the disk is full
        temporary.unlink(missing_ok=True)
        raise CtdError(
            f"{directory}: the checkpoint cannot be written ({error}). Free some space and run the same command again: "
            "it goes on from the checkpoint before."
        ) from error


def load_checkpoint(directory: Path, student: LogprobModel, optimizer: torch.optim.Optimizer) -> int:
    """Put everything back and return the steps done; raises CtdError where the checkpoint is not whole."""
    state = _read(directory)
    student.model.load_state_dict(state["model"])
    student.projections.load_state_dict(state["projections"])
    optimizer.load_state_dict(state["optimizer"])
    torch.set_rng_state(state["random"])
    return int(state["steps_done"])


def load_weights(directory: Path, model: nn.Module) -> int:
    """The weights alone, for evaluation and export; returns the steps done."""
    state = _read(directory)
    model.load_state_dict(state["model"])
    return int(state["steps_done"])


def _read(directory: Path) -> dict[str, Any]:
    try:
        state: dict[str, Any] = torch.load(directory / STATE, map_location="cpu", weights_only=True)
    except Exception as error:  # OSError, RuntimeError, pickle's errors
        raise CtdError(
            f"{directory}: not a whole checkpoint ({type(error).__name__}: {error}). Delete this directory: the run "
            "goes on from the checkpoint before, or from the start."
        ) from error
    return state
