"""Minimum edit distance (Wan et al., FuseLLM, arXiv 2401.10491)."""

from functools import cache

import torch
from torch import Tensor

from ctd_core.align.kept_maps import kept_nearest_map
from ctd_core.config_objectives import MinEd
from ctd_core.objectives.plan import LiveTeacher, Objective
from ctd_core.objectives.positions import logit_objective, one_to_one_places

LEAST = 1e-30  # in place of a probability of 0 under a logarithm


def mined(options: MinEd, live: LiveTeacher) -> Objective:
    """KL(mapped teacher ‖ student): each teacher token's probability goes to the student token nearest in spelling.

    Nearest is the least edit distance between the tokens' bytes; where tokens are the same bytes, it is that one. Both
    distributions are over tokens of text alone, without special ones. Mean over the one-to-one chunks.
    """
    student_spelling = live.student.encoder.spelling
    device = live.model.device
    kept = kept_nearest_map(student_spelling, live.teacher.encoder.spelling, live.maps)
    whole = torch.from_numpy(kept).long().to(device)
    text = torch.tensor([token for token, raw in enumerate(student_spelling.token_bytes) if raw], device=device)

    @cache
    def vocabularies(student_width: int, teacher_width: int) -> tuple[Tensor, Tensor, Tensor]:
        """For models of these widths, which may be less than their tokenizers': the student's tokens of text, the
        teacher's that go to one of them, and to which.
        """
        theirs = ((whole >= 0) & (whole < student_width))[:teacher_width].nonzero()[:, 0]
        return text[text < student_width], theirs, whole[theirs]

    def loss(student: Tensor, teacher: Tensor) -> Tensor:
        mine, theirs, nearest = vocabularies(student.shape[1], teacher.shape[1])
        mapped = torch.zeros_like(student).index_add(1, nearest, teacher[:, theirs].softmax(1))[:, mine]
        logprobs = student[:, mine].log_softmax(1)
        return (mapped * (mapped.clamp(min=LEAST).log() - logprobs)).sum(1)

    return logit_objective(one_to_one_places, loss)
