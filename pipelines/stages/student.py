"""The student of a run at its paths: the model before training, and as a checkpoint has it."""

import logging

import torch

from ctd_core.models.adapters import merge_adapters
from ctd_core.models.building import build_online_teacher, build_student, load_student_to_train
from ctd_core.models.fingerprints import check_unchanged
from ctd_core.models.loading import check_head
from ctd_core.models.logprob_model import LogprobModel
from ctd_core.models.online_teacher import OnlineTeacher
from ctd_core.models.tokenizers import build_teacher_tokenizer
from ctd_core.storage.atomic import atomic_directory
from ctd_core.text.prepared_tokenizer import PreparedTokenizer
from ctd_core.training.checkpoint import load_weights
from pipelines.artifacts.locks import stage_lock
from pipelines.artifacts.run_plan import RunPlan
from pipelines.stages.tokenizer import student_tokenizer

logger = logging.getLogger(__name__)


def ensure_student(plan: RunPlan) -> None:
    """Write the student as it is before training, where it is not there yet."""
    with stage_lock(plan.files, plan.init.name):  # of two trainings with the same student
        plan.files.fetch(plan.init)
        if not plan.init.exists():
            _make_student(plan)
        plan.files.upload(plan.init, overwrite=False)  # where an earlier try was cut short too


def _make_student(plan: RunPlan) -> None:
    student, teacher = plan.config.student, plan.config.teacher
    if student.model is not None:
        logger.info("train: the student is %s", student.model)
    else:
        logger.info("train: making the student from %s", teacher.model)
    tokenizers = student_tokenizer(plan), build_teacher_tokenizer(teacher)
    has_template = [bool(tokenizer.encoder.tokenizer.chat_template) for tokenizer in tokenizers]
    if student.model is None and has_template == [False, True]:
        logger.warning(
            "train: %s has a chat template, and the student's tokenizer has none: the student is exported without one",
            teacher.model,
        )
    model = build_student(student, teacher, *tokenizers)
    origin = teacher if student.model is None else student
    check_unchanged(origin.model or "", origin.revision, plan.origin_weights)
    check_head(model, plan.init.name)
    with atomic_directory(plan.init) as temporary:
        model.save_pretrained(temporary)


def student_to_train(plan: RunPlan, tokenizer: PreparedTokenizer) -> LogprobModel:
    """The student before training, with its adapters where it is to have some."""
    plan.files.fetch(plan.init)
    config = plan.config
    return load_student_to_train(config.student, config.teacher, plan.init, tokenizer, config.train.seed)


def load_student(plan: RunPlan, tokenizer: PreparedTokenizer, checkpoint: str | None) -> LogprobModel:
    """The student before training, or as a checkpoint has it; adapters are merged."""
    student = student_to_train(plan, tokenizer)
    if checkpoint is not None:
        load_weights(checkpoint, student)
    if plan.config.student.adapters is not None:
        merge_adapters(student.model)
    return student


def online_teacher(
    plan: RunPlan, tokenizer: PreparedTokenizer, student: LogprobModel, device: torch.device
) -> OnlineTeacher | None:
    """The teacher of a training, on `device`; None where no objective needs one."""
    config = plan.config
    if not config.train.online_objectives:
        return None
    online = build_online_teacher(config.student, config.teacher, student, tokenizer, plan.vocabulary_maps, device)
    check_unchanged(config.teacher.model, config.teacher.revision, plan.training_sets[None].teacher_weights)
    return online
