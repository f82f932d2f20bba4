"""Students and teachers, built from the options of a run."""

from functools import partial
from pathlib import Path

import torch
from torch import nn
from transformers import PreTrainedModel

from ctd_core.align.vocabulary import exact_map
from ctd_core.config.models import Student, Teacher
from ctd_core.config.shards import Prepare
from ctd_core.models.adapters import add_adapters
from ctd_core.models.byte_students import with_byte_expansion
from ctd_core.models.language_model import HuggingFaceModel
from ctd_core.models.loading import load_model, may_hold, skeleton
from ctd_core.models.logprob_model import LogprobModel
from ctd_core.models.model_config import check_learnable
from ctd_core.models.online_teacher import OnlineTeacher, as_own_teacher
from ctd_core.models.prefix_positions import prefix_top
from ctd_core.models.scorer import Scorer, TransformersScorer
from ctd_core.models.scoring import Stored, TopTokens
from ctd_core.models.tokenizers import build_teacher_tokenizer
from ctd_core.models.transfer import transfer_model
from ctd_core.text.prepared_tokenizer import PreparedTokenizer


def logprob_model(model: PreTrainedModel, tokenizer: PreparedTokenizer) -> LogprobModel:
    """A Hugging Face model that answers with log-probabilities; `tokenizer` says which tokens begin a pretoken."""
    return LogprobModel(HuggingFaceModel(model), tokenizer.encoder.token_bytes.begins_pretoken)


def build_scorer(teacher: Teacher, tokenizer: PreparedTokenizer, device: torch.device) -> Scorer:
    """A teacher ready to score.

    Args:
        teacher: the teacher's options.
        tokenizer: the teacher's tokenizer.
        device: where it is put.

    Returns:
        The scorer.

    Raises:
        UsageError: there is no such model.
    """
    model = load_model(teacher.model, teacher.revision, teacher.dtype, teacher.trust_remote_code, device)
    return TransformersScorer(logprob_model(model, tokenizer))


def build_student(
    student: Student, teacher: Teacher, student_tokenizer: PreparedTokenizer, teacher_tokenizer: PreparedTokenizer
) -> PreTrainedModel:
    """The student before training: a model of its own, or the teacher under the student's tokenizer."""
    if student.model is not None:
        check_learnable(student.model, student.revision, student.trust_remote_code)
        return load_model(student.model, student.revision, trust_remote_code=student.trust_remote_code)
    original = load_model(teacher.model, teacher.revision, trust_remote_code=teacher.trust_remote_code)
    tokenizers = student_tokenizer, teacher_tokenizer
    model = transfer_model(original, *tokenizers, student.unties, student.pad_to_multiple_of)
    if student.byte_expansion is not None:
        model = with_byte_expansion(model, original, *tokenizers, student.byte_expansion.max_bytes)
    return model


def student_skeleton(student: Student, teacher: Teacher) -> PreTrainedModel:
    """The student to train without its weights: its parameters are named as its own are, and learn where they do.

    It has an output matrix of its own also where its weights may have one, whatever their config says.
    """
    origin = teacher if student.model is None else student
    model = skeleton(origin.model or "", origin.revision, origin.trust_remote_code)
    output = model.get_output_embeddings()
    if (student.model is None and student.unties) or may_hold(origin.model or "", model, output):
        output.weight = nn.Parameter(torch.empty_like(output.weight))
    return with_adapters(student, model, seed=0)


def with_adapters(student: Student, model: PreTrainedModel, seed: int) -> PreTrainedModel:
    """`model`, with adapters where the student is to have some."""
    if student.adapters is not None:
        add_adapters(model, student.adapters, seed)
    return model


def load_student_to_train(
    student: Student, teacher: Teacher, directory: Path, tokenizer: PreparedTokenizer, seed: int
) -> LogprobModel:
    """The student as `build_student` made it and `directory` holds it, with its adapters where it is to have some."""
    trust = student.trust_remote_code if student.model is not None else teacher.trust_remote_code
    return logprob_model(with_adapters(student, load_model(str(directory), trust_remote_code=trust), seed), tokenizer)


def build_online_teacher(
    student: Student,
    teacher: Teacher,
    trained: LogprobModel,
    student_tokenizer: PreparedTokenizer,
    vocabulary_maps: Path | None,
    device: torch.device,
) -> OnlineTeacher:
    """The teacher for objectives that compare the student with it directly.

    It is the student itself where adapters alone tell the two apart.

    Args:
        student: the student's options.
        teacher: the teacher's options.
        trained: the student in training.
        student_tokenizer: the student's tokenizer.
        vocabulary_maps: a directory in which maps between vocabularies are cached.
        device: where the teacher is put.

    Returns:
        The teacher, on `device`.

    Raises:
        UsageError: there is no such model.
    """
    hidden_size = trained.language_model.hidden_size
    tokenizers = student_tokenizer, build_teacher_tokenizer(teacher)
    if not student.is_its_own_teacher:
        model = load_model(teacher.model, teacher.revision, teacher.dtype, teacher.trust_remote_code, device)
        model.requires_grad_(False)  # of its output matrix, gradients would be kept
        return OnlineTeacher(hidden_size, HuggingFaceModel(model), *tokenizers, vocabulary_maps)
    original = load_model(teacher.model, teacher.revision, trust_remote_code=teacher.trust_remote_code)
    original.requires_grad_(False)
    ends = [end.to(device) for end in (original.get_input_embeddings(), original.get_output_embeddings())]
    own = trained.language_model
    if not isinstance(own, HuggingFaceModel):
        raise TypeError("adapters are for Hugging Face models alone")
    return OnlineTeacher(hidden_size, own, *tokenizers, vocabulary_maps, partial(as_own_teacher, own, *ends))


def stored_targets(
    options: Prepare, student_tokenizer: PreparedTokenizer, teacher_tokenizer: PreparedTokenizer
) -> Stored:
    """What of the teacher's distribution is stored beside the two numbers a chunk."""
    token_bytes = student_tokenizer.encoder.token_bytes, teacher_tokenizer.encoder.token_bytes
    return Stored(
        TopTokens(options.top_k, exact_map(*token_bytes)) if options.top_k else None,
        prefix_top(options.prefix_k, options.prefix_drawn or 0, student_tokenizer, teacher_tokenizer)
        if options.prefix_k
        else None,
    )
