"""Universal logit distillation (Boizard et al., arXiv 2402.12030)."""

from torch import Tensor
from torch.nn.functional import pad

from ctd_core.config.objectives import Uld
from ctd_core.models.online_teacher import OnlineTeacher
from ctd_core.objectives.interface import Objective
from ctd_core.objectives.paired_positions import logit_objective, one_to_one_pairs, same_index_pairs

PAIRINGS = {"same_index": same_index_pairs, "one_to_one": one_to_one_pairs}


def uld(options: Uld, online: OnlineTeacher) -> Objective:
    """Σ_k |p_S(k) − p_T(k)| over both sides' probabilities in descending order, the shorter one filled up with zeros.

    The paper pairs the n-th token of either side, up to the shorter one's end (`positions: same_index`). Mean over the
    pairs. It is 0 also where the two distributions agree in all but the tokens that they are of.
    """

    def loss(student: Tensor, teacher: Tensor) -> Tensor:
        return sorted_distance(student.softmax(1), teacher.softmax(1))

    return logit_objective(PAIRINGS[options.positions], loss)


def sorted_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """[K], the L1 distance of probabilities [K, V] and [K, U], each in descending order."""
    size = max(student.shape[1], teacher.shape[1])
    student_sorted, teacher_sorted = (
        pad(probabilities.sort(1, descending=True).values, (0, size - probabilities.shape[1]))
        for probabilities in (student, teacher)
    )
    return (student_sorted - teacher_sorted).abs().sum(1)
