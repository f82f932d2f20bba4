"""The objectives by kind."""

from collections.abc import Callable
from functools import partial

from ctd_core.config.objectives import AnyObjective, Live
from ctd_core.errors import UsageError
from ctd_core.models.online_teacher import OnlineTeacher
from ctd_core.objectives.alm import alm
from ctd_core.objectives.dskd import Dskd
from ctd_core.objectives.gold import gold
from ctd_core.objectives.hidden_states import HiddenStates
from ctd_core.objectives.interface import Objective, Plan
from ctd_core.objectives.kd import kd
from ctd_core.objectives.min_ed import mined
from ctd_core.objectives.one_to_one import one_to_one_kl
from ctd_core.objectives.p_kl import p_kl
from ctd_core.objectives.sft import sft
from ctd_core.objectives.uld import uld

STORED: dict[str, Callable[..., Plan]] = {"alm": alm, "one_to_one_kl": one_to_one_kl, "sft": sft}
LIVE: dict[str, Callable[..., Objective]] = {
    "dskd": Dskd,
    "gold": gold,
    "hidden_states": HiddenStates,
    "kd": kd,
    "mined": mined,
    "p_kl": p_kl,
    "uld": uld,
}


def make_objective(options: AnyObjective, live: OnlineTeacher | None) -> Objective:
    """The objective that `options` describe; raises UsageError where it needs a live teacher and there is none."""
    if not isinstance(options, Live):
        return partial(STORED[options.kind], options)
    if live is None:
        raise UsageError(f"train.objectives holds {options.kind}, which needs a teacher loaded beside the student.")
    return LIVE[options.kind](options, live)
