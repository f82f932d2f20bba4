"""Students, teachers and their tokenizers, built from the options of a run."""

from pathlib import Path

import torch
from transformers import PreTrainedModel

from ctd_core.align.vocabulary import exact_map
from ctd_core.config.models import Student, Teacher
from ctd_core.config.shards import Prepare
from ctd_core.config.text import BytesTokenizer, TrainedTokenizer
from ctd_core.models.adapters import add_adapters
from ctd_core.models.loading import load_model, num_embeddings
from ctd_core.models.logprob_model import LogprobModel
from ctd_core.models.online_teacher import OnlineTeacher, OwnTeacher
from ctd_core.models.scoring import TopTokens
from ctd_core.models.transfer import transfer_model
from ctd_core.text.prepared_tokenizer import Side, make_side
from ctd_core.text.tokenizers import load_tokenizer


def build_student_tokenizer(student: Student, trained: Path | None) -> Side:
    """The student's tokenizer, made ready; `trained` is its directory where the run trains it."""
    chosen = student.tokenizer
    if isinstance(chosen, TrainedTokenizer):
        name, revision = str(trained), None
    elif isinstance(chosen, BytesTokenizer):
        name, revision = "bytes", None
    else:
        name, revision = chosen.name, chosen.revision
    rows = None
    if student.model is not None:
        rows = num_embeddings(student.model, student.revision, student.trust_remote_code)
    return make_side(load_tokenizer(name, revision), name, student.begin_token, student.end_token, rows)


def build_teacher_tokenizer(teacher: Teacher) -> Side:
    """A teacher's tokenizer, made ready."""
    rows = num_embeddings(teacher.model, teacher.revision, teacher.trust_remote_code)
    tokenizer = load_tokenizer(teacher.model, teacher.revision)
    return make_side(tokenizer, teacher.model, teacher.begin_token, teacher.end_token, rows)


def build_teacher(teacher: Teacher, tokenizer: Side, device: torch.device) -> LogprobModel:
    """A teacher ready to score."""
    model = load_model(teacher.model, teacher.revision, teacher.dtype, teacher.trust_remote_code).to(device)
    return LogprobModel(model, tokenizer.encoder.spelling.begins_pretoken)


def build_student(
    student: Student, teacher: Teacher, student_tokenizer: Side, teacher_tokenizer: Side
) -> PreTrainedModel:
    """The student before training: a model of its own, or the teacher under the student's tokenizer."""
    if student.model is not None:
        return load_model(student.model, student.revision, trust_remote_code=student.trust_remote_code)
    return transfer_model(
        load_model(teacher.model, teacher.revision, trust_remote_code=teacher.trust_remote_code),
        student_tokenizer,
        teacher_tokenizer,
        untie=student.head == "untied",
        vocab_multiple=student.vocab_multiple,
    )


def with_adapters(student: Student, model: PreTrainedModel, seed: int) -> PreTrainedModel:
    """`model`, with adapters where the student is to have some."""
    if student.adapters is not None:
        add_adapters(model, student.adapters, seed)
    return model


def load_student_to_train(
    student: Student, teacher: Teacher, directory: Path, tokenizer: Side, seed: int
) -> LogprobModel:
    """The student as `build_student` made it and `directory` holds it, with its adapters where it is to have some."""
    trust = student.trust_remote_code if student.model is not None else teacher.trust_remote_code
    model = with_adapters(student, load_model(str(directory), trust_remote_code=trust), seed)
    return LogprobModel(model, tokenizer.encoder.spelling.begins_pretoken)


def build_online_teacher(
    student: Student, teacher: Teacher, trained: LogprobModel, student_tokenizer: Side, maps: Path, device: torch.device
) -> OnlineTeacher:
    """The teacher on `device`, for objectives that compare the student in training, `trained`, with it directly.

    It is the student itself where adapters alone tell the two apart. `maps` is a folder for maps of vocabularies.
    """
    hidden_size = trained.model.config.get_text_config().hidden_size
    both = student_tokenizer, build_teacher_tokenizer(teacher)
    if not student.is_its_own_teacher:
        model = load_model(teacher.model, teacher.revision, teacher.dtype, teacher.trust_remote_code).to(device)
        return OnlineTeacher(hidden_size, model, *both, maps)
    model = load_model(teacher.model, teacher.revision, trust_remote_code=teacher.trust_remote_code)  # as it was made
    ends = (module.to(device) for module in (model.get_input_embeddings(), model.get_output_embeddings()))
    return OwnTeacher(hidden_size, trained.model, *both, maps, *ends)


def top_tokens(options: Prepare, student_tokenizer: Side, teacher_tokenizer: Side) -> TopTokens | None:
    """What of the teacher's distribution is stored beside the chunks; None where nothing is."""
    if not options.top_k:
        return None
    spellings = student_tokenizer.encoder.spelling, teacher_tokenizer.encoder.spelling
    return TopTokens(options.top_k, exact_map(*spellings))
