"""Knowledge distillation of the whole next-token distribution, where both sides share a tokenizer."""

from torch import Tensor

from ctd_core.config.objectives import Kd
from ctd_core.errors import UsageError
from ctd_core.models.online_teacher import OnlineTeacher
from ctd_core.objectives.interface import Objective
from ctd_core.objectives.paired_positions import kl_divergence, logit_objective, same_token_pairs
from ctd_core.text.prepared_tokenizer import PreparedTokenizer


def check_same_vocabulary(student: PreparedTokenizer | None, teacher: PreparedTokenizer) -> None:
    """Raises UsageError where the tokens of the two, by id, do not stand for the same bytes; None is another's."""
    if student is None or student.encoder.token_bytes.by_id != teacher.encoder.token_bytes.by_id:
        raise UsageError(
            "train.objectives: kd compares token by token, and student and teacher have different vocabularies. Take "
            "alm, or another objective that crosses tokenizers."
        )


def kd(options: Kd, online: OnlineTeacher) -> Objective:
    """τ² · KL(softmax(teacher / τ) ‖ softmax(student / τ)) of the next token (Hinton et al., arXiv 1503.02531).

    Mean over the step's tokens that both sides have alike: with one tokenizer, all that is learned, ends of texts and
    turns among them. Entries beyond the tokenizer (padding of the vocabulary) are left out. Raises UsageError where the
    two vocabularies differ.
    """
    check_same_vocabulary(online.student, online.teacher)
    tokens = len(online.student.encoder.token_bytes.by_id)

    def loss(student: Tensor, teacher: Tensor) -> Tensor:
        known = min(tokens, student.shape[1], teacher.shape[1])  # a teacher may have no rows for added tokens
        student_logprobs, teacher_logprobs = (
            (logits[:, :known] / options.temperature).log_softmax(1) for logits in (student, teacher)
        )
        return options.temperature**2 * kl_divergence(student_logprobs, teacher_logprobs)

    return logit_objective(same_token_pairs, loss)
