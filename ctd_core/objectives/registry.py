"""The objectives by kind: a new one is its file, its config class and a line here."""

from collections.abc import Callable

from ctd_core.config.objectives import AnyObjective
from ctd_core.errors import UsageError
from ctd_core.models.online_teacher import OnlineTeacher
from ctd_core.objectives.alm import alm
from ctd_core.objectives.dskd import Dskd
from ctd_core.objectives.gold import gold
from ctd_core.objectives.hidden_states import HiddenStates
from ctd_core.objectives.interface import Objective
from ctd_core.objectives.kd import kd
from ctd_core.objectives.min_ed import min_ed
from ctd_core.objectives.one_to_one import one_to_one_kl
from ctd_core.objectives.p_kl import p_kl
from ctd_core.objectives.policy_gradient import policy_gradient
from ctd_core.objectives.prefix_kl import prefix_kl
from ctd_core.objectives.sft import sft
from ctd_core.objectives.uld import uld

# From an objective's options and the online teacher, which is there for those that need it.
OBJECTIVES: dict[str, Callable[..., Objective]] = {
    "alm": alm,
    "dskd": Dskd,
    "gold": gold,
    "hidden_states": HiddenStates,
    "kd": kd,
    "min_ed": min_ed,
    "one_to_one_kl": one_to_one_kl,
    "p_kl": p_kl,
    "policy_gradient": policy_gradient,
    "prefix_kl": prefix_kl,
    "sft": sft,
    "uld": uld,
}


def make_objective(options: AnyObjective, online: OnlineTeacher | None) -> Objective:
    """The objective that `options` describe; raises UsageError where it needs an online teacher and there is none."""
    if "teacher" in options.needs and online is None:
        raise UsageError(f"train.objectives holds {options.kind}, which needs a teacher loaded beside the student.")
    return OBJECTIVES[options.kind](options, online)
