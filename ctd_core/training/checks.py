"""What ends a training with an error that names what to do."""

from collections.abc import Mapping

import numpy as np

from ctd_core.config.objectives import extra_teacher_of
from ctd_core.config.training import Train
from ctd_core.errors import CtdError, Recurring
from ctd_core.shards.batches import Batch
from ctd_core.shards.rows import RowSource
from ctd_core.training.step import LossNotFinite


def loss_not_finite(step: int, error: LossNotFinite, shards: RowSource) -> Recurring:
    """The error of a loss that is not finite, with the documents whose rows it is of."""
    documents = sorted(set(shards.documents(np.array(error.rows))))
    return Recurring(
        f"step {step + 1}: {error} ({shards.name}), from documents {', '.join(documents[:8])}. Lower "
        "train.learning_rate or take these documents out; the last checkpoint is as it was."
    )


def norm_not_finite(step: int, norm: float, batches: list[Batch], sources: Mapping[str | None, RowSource]) -> Recurring:
    rows = "; ".join(f"{batch.rows.tolist()} of {sources[batch.source].name}" for batch in batches)
    return Recurring(
        f"step {step + 1}: the gradient's norm is {norm}, on rows {rows} or those of another worker. Lower "
        "train.learning_rate; the last checkpoint is as it was."
    )


def nothing_compared(options: Train, steps: int) -> Recurring:
    kinds = ", ".join(objective.kind for objective in options.objectives)
    return Recurring(
        f"in {steps} steps there was nothing that {kinds} could compare: nothing was learned. Look at the shards with "
        "`ctd chunks --shards …`, and take an objective such as alm, or a tokenizer that shares tokens with the "
        "teacher's."
    )


def check_targets(options: Train, sources: Mapping[str | None, RowSource]) -> None:
    """Raises CtdError where an objective asks for what the shards of its teacher do not hold."""
    for objective in options.objectives:
        name = extra_teacher_of(objective)
        if name not in sources:
            raise CtdError(
                f"{objective.kind} asks for the targets of the teacher {name!r}, and no shards of it are given."
            )
        shards = sources[name]
        if "targets" in objective.needs and not shards.has_targets:
            raise CtdError(
                f"{shards.name}: {objective.kind} needs targets, and these shards have none. Prepare with targets: "
                "true."
            )
        if "top_k" in objective.needs and not shards.has_top:
            raise CtdError(
                f"{shards.name}: {objective.kind} needs shards with top tokens. Prepare with top_k, such as 16."
            )
        if "prefixes" in objective.needs and not shards.has_prefixes:
            raise CtdError(
                f"{shards.name}: {objective.kind} needs shards with likely tokens of the student. Prepare with "
                "prefix_k, such as 8."
            )
