"""What is known of a student before it is made is what it then is."""

import json

import pytest
import torch

from ctd_core.config.models import Student, Teacher
from ctd_core.models.building import (
    build_online_teacher,
    build_student,
    load_student_to_train,
    logprob_model,
    student_skeleton,
)
from ctd_core.models.model_config import longest_window
from tests.support.models import llama
from tests.support.shard_sets import prepared
from tests.support.tokenizers import TEXTS, train_tokenizer

ADAPTERS = {"targets": ["q_proj"]}


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"head": "as_teacher"},
        {"adapters": ADAPTERS},
        {"adapters": ADAPTERS, "head": "as_teacher"},
        {"byte_expansion": {"max_bytes": 4}},
        {"byte_expansion": {"max_bytes": 4}, "tokenizer": {"kind": "pretrained", "name": "one of bytes"}},
    ],
    ids=str,
)
def test_a_skeleton_has_the_students_parameters_and_what_learns_of_them(tmp_path, options):
    llama(600).save_pretrained(tmp_path / "teacher")
    student, teacher = (
        Student.model_validate({"tokenizer": {"kind": "bytes"}} | options),
        Teacher(model=str(tmp_path / "teacher")),
    )
    own = prepared("bytes")
    build_student(student, teacher, own, prepared("byte-level BPE, 600")).save_pretrained(tmp_path / "student")
    made = load_student_to_train(student, teacher, tmp_path / "student", own, seed=0).model
    learned = [
        [(name, parameter.requires_grad) for name, parameter in model.named_parameters()]
        for model in (made, student_skeleton(student, teacher))
    ]
    assert learned[0] == learned[1]


def test_weights_of_two_matrices_have_two_whatever_their_config_says(tmp_path):
    llama(300, tied=False).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": True}))
    student = Student.model_validate({"tokenizer": {"kind": "bytes"}, "head": "as_teacher"})
    assert "lm_head.weight" in dict(student_skeleton(student, Teacher(model=str(tmp_path))).named_parameters())


@pytest.mark.parametrize("options", [{}, {"adapters": ADAPTERS}], ids=str)
def test_a_teacher_beside_its_student_learns_nothing(tmp_path, options):
    llama(600).save_pretrained(tmp_path / "teacher")
    train_tokenizer(TEXTS, 600).save_pretrained(tmp_path / "teacher")
    student = Student.model_validate({"tokenizer": {"kind": "bytes"}} | options)
    teacher, own = Teacher(model=str(tmp_path / "teacher")), prepared("bytes")
    build_student(student, teacher, own, prepared("byte-level BPE, 600")).save_pretrained(tmp_path / "student")
    trained = logprob_model(load_student_to_train(student, teacher, tmp_path / "student", own, seed=0).model, own)
    online = build_online_teacher(student, teacher, trained, own, None, torch.device("cpu"))
    with online.activate():
        assert not online.model.head.weight.requires_grad
        assert not online.model.embeddings.requires_grad


def test_windows_are_no_longer_than_what_a_model_reads_alike(tmp_path):
    config = {"model_type": "phi3", "max_position_embeddings": 131072}
    rope = {"type": "longrope", "short_factor": [1.0] * 4, "long_factor": [2.0] * 4}
    for more, expected in (
        ({}, 131072),
        ({"rope_scaling": rope, "original_max_position_embeddings": 4096}, 4096),
        ({"rope_scaling": rope | {"original_max_position_embeddings": 2048}}, 2048),
        ({"rope_parameters": {"rope_type": "default"}}, 131072),
    ):
        (tmp_path / "config.json").write_text(json.dumps(config | more))
        assert longest_window(str(tmp_path)) == expected
