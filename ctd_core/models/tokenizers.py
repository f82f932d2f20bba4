"""The prepared tokenizers of a run's student and teacher."""

from pathlib import Path

from transformers import PreTrainedTokenizerFast

from ctd_core.config.models import Student, Teacher
from ctd_core.config.text import BytesTokenizer, PretrainedTokenizer, TrainedTokenizer
from ctd_core.models.model_config import num_embeddings
from ctd_core.text.chat import with_chat_of
from ctd_core.text.prepared_tokenizer import PreparedTokenizer, prepare_tokenizer
from ctd_core.text.tokenizers import load_tokenizer


def build_student_tokenizer(student: Student, teacher: Teacher, trained: Path | None) -> PreparedTokenizer:
    """The student's tokenizer, with the chat template that student.chat says.

    Args:
        student: the student's options.
        teacher: the teacher's options.
        trained: the directory of the tokenizer where the run trains it, else None.

    Returns:
        The tokenizer, prepared; with the size of the model's embedding where the student is a model of its own.

    Raises:
        TokenizerError: it cannot be loaded, cannot spell its input, or is not its model's.
    """
    name, revision = "bytes", None
    match student.tokenizer:
        case TrainedTokenizer():
            name = str(trained)
        case PretrainedTokenizer() as chosen:
            name, revision = chosen.name, chosen.revision
        case BytesTokenizer():
            pass
    rows = None
    if student.model is not None:
        rows = num_embeddings(student.model, student.revision, student.trust_remote_code)
    tokenizer = with_chat(load_tokenizer(name, revision), student, teacher)
    return prepare_tokenizer(tokenizer, name, student.begin_token, student.end_token, rows)


def with_chat(tokenizer: PreTrainedTokenizerFast, student: Student, teacher: Teacher) -> PreTrainedTokenizerFast:
    """A student's tokenizer with the chat template that student.chat says."""
    match student.chat_of:
        case "none":
            tokenizer.chat_template = None
        case "keep":
            given = load_tokenizer(teacher.model, teacher.revision)
            return with_chat_of(tokenizer, given) if given.chat_template else tokenizer
        case "adopt":
            pass
    return tokenizer


def build_teacher_tokenizer(teacher: Teacher) -> PreparedTokenizer:
    """A teacher's tokenizer, prepared.

    Args:
        teacher: the teacher's options.

    Returns:
        The tokenizer, with the size of the teacher's embedding.

    Raises:
        TokenizerError: as build_student_tokenizer.
    """
    rows = num_embeddings(teacher.model, teacher.revision, teacher.trust_remote_code)
    tokenizer = load_tokenizer(teacher.model, teacher.revision)
    return prepare_tokenizer(tokenizer, teacher.model, teacher.begin_token, teacher.end_token, rows)
