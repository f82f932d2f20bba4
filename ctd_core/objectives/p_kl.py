"""P-KL of X-Token (arXiv 2605.21699): the student's distribution projected onto the teacher's vocabulary."""

from functools import cache

import torch
from torch import Tensor

from ctd_core.config.objectives import PKl
from ctd_core.models.online_teacher import OnlineTeacher
from ctd_core.models.transfer import old_tokens
from ctd_core.objectives.interface import Objective
from ctd_core.objectives.paired_positions import kl_divergence, logit_objective, one_to_one_pairs
from ctd_core.text.prepared_tokenizer import PreparedTokenizer

SPELLED_TOKENS = 4  # of the teacher's tokens that spell a student token, how many share its probability
DECAY = 0.1  # the share of each to the one before it
LEAST = 1e-10  # added to projected probabilities under the logarithm


def p_kl(options: PKl, online: OnlineTeacher) -> Objective:
    """KL(teacher ‖ projected student): each student token's probability goes to the teacher's tokens that spell it.

    A token of the same bytes takes all of it; else the first four that spell it share it as 1 : 0.1 : 0.01 : 0.001.
    What no teacher token takes is lost and the rest normalised. The published code averages over chunks of several
    tokens as well, and gives a share to an arbitrary entry; here it is the mean over one-to-one chunks alone.
    """
    projection = projection_matrix(online.student, online.teacher).coalesce()

    @cache
    def projection_of(*widths: int) -> Tensor:
        """[U, V], for models of these widths: a tokenizer may have more tokens than its model."""
        size = torch.tensor([min(pair) for pair in zip(projection.shape, widths, strict=True)])
        inside = (projection.indices() < size[:, None]).all(0)
        chosen = projection.indices()[:, inside], projection.values()[inside], tuple(size.tolist())
        return torch.sparse_coo_tensor(*chosen, check_invariants=True).coalesce().to(online.device)

    def loss(student: Tensor, teacher: Tensor) -> Tensor:
        projection = projection_of(teacher.shape[1], student.shape[1])
        probabilities = student.softmax(1)[:, : projection.shape[1]]
        with torch.autocast(student.device.type, enabled=False):
            projected: Tensor = torch.sparse.mm(projection.to(student.dtype), probabilities.T).T
        logprobs = (projected / projected.sum(1, keepdim=True).clamp(min=LEAST) + LEAST).log()
        return kl_divergence(logprobs, teacher[:, : projection.shape[0]].log_softmax(1))

    return logit_objective(one_to_one_pairs, loss)


def projection_matrix(student: PreparedTokenizer, teacher: PreparedTokenizer) -> Tensor:
    """[U, V] sparse float32: column v holds the shares of student token v's probability; they add up to 1."""
    rows, columns, shares = [], [], []
    for token, ids in enumerate(old_tokens(student, teacher)):
        weights = [DECAY**rank for rank in range(len(ids[:SPELLED_TOKENS]))]
        rows += ids[:SPELLED_TOKENS]
        columns += [token] * len(weights)
        shares += [weight / sum(weights) for weight in weights]
    size = (len(teacher.encoder.token_bytes.by_id), len(student.encoder.token_bytes.by_id))
    return torch.sparse_coo_tensor(torch.tensor([rows, columns]), torch.tensor(shares), size, check_invariants=True)
