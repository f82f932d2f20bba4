"""The objectives by kind."""

from collections.abc import Callable

from ctd_core.config import AnyObjective
from ctd_core.objectives.alm import alm
from ctd_core.objectives.one_to_one import one_to_one_kl
from ctd_core.objectives.plan import Plan
from ctd_core.objectives.sft import sft
from ctd_core.shards.batches import Batch

OBJECTIVES: dict[str, Callable[..., Plan]] = {"alm": alm, "one_to_one_kl": one_to_one_kl, "sft": sft}


def plan(objective: AnyObjective, batch: Batch) -> Plan:
    """What `objective` needs for `batch`, and how its sum is made."""
    return OBJECTIVES[objective.kind](objective, batch)
