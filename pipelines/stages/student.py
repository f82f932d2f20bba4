"""The student of a run at its paths: its tokenizer, the model before training, and as a checkpoint has it."""

import torch

from ctd_core.models.adapters import merge_adapters
from ctd_core.models.building import (
    build_online_teacher,
    build_student,
    build_student_tokenizer,
    build_teacher_tokenizer,
    load_student_to_train,
)
from ctd_core.models.logprob_model import LogprobModel
from ctd_core.models.online_teacher import OnlineTeacher
from ctd_core.storage.atomic import atomic_directory
from ctd_core.text.prepared_tokenizer import Side
from ctd_core.training.checkpoint import load_weights
from pipelines.artifacts.run_paths import Places
from pipelines.display.progress import say


def student_tokenizer(places: Places) -> Side:
    """The student's tokenizer, made ready; `prepare` has to have run where it is trained."""
    if places.tokenizer is not None:
        places.files.bring(places.tokenizer)
    return build_student_tokenizer(places.config.student, places.tokenizer)


def ensure_student(places: Places) -> None:
    """Write the student as it is before training, where it is not there yet."""
    places.files.bring(places.init)
    if places.init.exists():
        places.files.share(places.init, anew=False)  # where an earlier try was cut short
        return
    student, teacher = places.config.student, places.config.teacher
    if student.model is not None:
        say(f"train: the student is {student.model}")
    else:
        say(f"train: making the student from {teacher.model}")
    own, given = student_tokenizer(places), build_teacher_tokenizer(teacher)
    if student.model is None and given.encoder.tokenizer.chat_template and not own.encoder.tokenizer.chat_template:
        say(
            f"train: {teacher.model} has a chat template, and the student's tokenizer has none: the student is "
            "exported without one"
        )
    model = build_student(student, teacher, own, given)
    with atomic_directory(places.init) as temporary:
        model.save_pretrained(temporary)
    places.files.share(places.init)


def student_to_train(places: Places, tokenizer: Side) -> LogprobModel:
    """The student before training, with its adapters where it is to have some."""
    places.files.bring(places.init)
    config = places.config
    return load_student_to_train(config.student, config.teacher, places.init, tokenizer, config.train.seed)


def load_student(places: Places, tokenizer: Side, checkpoint: str | None) -> LogprobModel:
    """The student before training, or as a checkpoint has it; adapters are merged."""
    student = student_to_train(places, tokenizer)
    if checkpoint is not None:
        load_weights(checkpoint, student)
    if places.config.student.adapters is not None:
        merge_adapters(student.model)
    return student


def online_teacher(places: Places, tokenizer: Side, student: LogprobModel, device: torch.device) -> OnlineTeacher:
    """The teacher of a training, on `device`."""
    config, maps = places.config, places.output / "maps"
    return build_online_teacher(config.student, config.teacher, student, tokenizer, maps, device)
