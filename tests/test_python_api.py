"""The method in memory, through `import ctd_core`, as a notebook has it."""

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import ctd_core
from ctd_core.errors import UsageError
from tests.support.chat_templates import chat_tokenizer
from tests.support.models import llama
from tests.support.shard_sets import texts
from tests.support.tokenizers import TEXTS, train_tokenizer


@pytest.fixture
def teacher(tmp_path):
    llama(600).save_pretrained(tmp_path / "teacher")
    train_tokenizer(TEXTS, 600).save_pretrained(tmp_path / "teacher")
    return str(tmp_path / "teacher")


def test_texts_are_aligned_scored_learned_from_and_the_student_exported(teacher, tmp_path):
    student_tokenizer = ctd_core.prepare_tokenizer(train_tokenizer(TEXTS, 300))
    teacher_tokenizer = ctd_core.prepare_tokenizer(teacher)
    rows = ctd_core.make_rows(student_tokenizer, teacher_tokenizer, texts(60), window_tokens=96)
    scorer = ctd_core.load_teacher(teacher, teacher_tokenizer)
    with pytest.raises(UsageError, match="prefix_drawn is 9, more than prefix_k, 8"):
        ctd_core.score(scorer, rows, student_tokenizer, teacher_tokenizer, prefix_drawn=9)
    rows = ctd_core.score(scorer, rows, student_tokenizer, teacher_tokenizer)
    student = ctd_core.make_student(teacher, student_tokenizer, teacher_tokenizer)
    before = ctd_core.measure(student, rows)
    steps = ctd_core.train(student, rows, 30, batch_tokens=400, learning_rate=1e-2)
    after = ctd_core.measure(student, rows)
    assert [step["step"] for step in steps] == [*range(1, 31)]
    assert after["teacher_distance_bits_per_byte"] < 0.95 * before["teacher_distance_bits_per_byte"]
    ctd_core.export(student, student_tokenizer, tmp_path / "student")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "student")
    assert loaded.num_parameters() == student.model.num_parameters()
    assert len(AutoTokenizer.from_pretrained(tmp_path / "student")) == 300


def test_what_a_training_froze_learns_again_and_options_of_runs_are_refused(teacher):
    ends = ctd_core.prepare_tokenizer("bytes"), ctd_core.prepare_tokenizer(str(teacher))
    scorer = ctd_core.load_teacher(str(teacher), ends[1])
    rows = ctd_core.score(scorer, ctd_core.make_rows(*ends, TEXTS), *ends)
    student = ctd_core.make_student(str(teacher), *ends)
    ctd_core.train(student, rows, 2, freeze=["layers", "norm"])
    before = {name: parameter.detach().clone() for name, parameter in student.named_parameters()}
    ctd_core.train(student, rows, 2)
    assert all(not torch.equal(parameter, before[name]) for name, parameter in student.named_parameters())
    for option in ({"on_policy": {"rounds": 1}}, {"use_gpu": True}, {"num_workers": 2}):
        with pytest.raises(UsageError, match=f"{next(iter(option))}: here one student trains where it is"):
            ctd_core.train(student, rows, 2, **option)


def test_under_its_own_tokenizer_the_student_is_the_teacher(teacher):
    tokenizer = ctd_core.prepare_tokenizer(teacher)
    rows = ctd_core.make_rows(tokenizer, tokenizer, texts(9))
    rows = ctd_core.score(ctd_core.load_teacher(teacher, tokenizer), rows, tokenizer, tokenizer)
    student = ctd_core.make_student(teacher, tokenizer, tokenizer)
    assert ctd_core.measure(student, rows)["teacher_distance_bits_per_byte"] == pytest.approx(0, abs=1e-5)


def test_chunks_of_an_alignment_spell_the_text():
    student, teacher = (ctd_core.prepare_tokenizer(tokenizer) for tokenizer in ("bytes", train_tokenizer(TEXTS, 600)))
    for text, chunks in zip(texts(20), ctd_core.align_texts(student, teacher, texts(20)), strict=True):
        assert b"".join(chunk.text_bytes for chunk in chunks) == text.encode()
        for chunk in chunks:
            assert len(chunk.student_ids) == len(chunk.text_bytes)  # a byte a token


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("one string", "texts is one string: give a list of documents"),
        (["a text", None], r"texts\[1\] is no string but NoneType"),
        ([b"bytes"], r"texts\[0\] is no string but bytes: b'bytes'"),
    ],
)
def test_what_is_no_list_of_texts_is_refused(given, message):
    tokenizer = ctd_core.prepare_tokenizer("bytes")
    with pytest.raises(UsageError, match=message):
        ctd_core.make_rows(tokenizer, tokenizer, given)


def test_a_student_of_bytes_may_read_its_teachers_tokens(teacher, tmp_path):
    bytes_alone, old = ctd_core.prepare_tokenizer("bytes"), ctd_core.prepare_tokenizer(teacher)
    rows = ctd_core.make_rows(bytes_alone, old, texts(20), window_tokens=200)
    rows = ctd_core.score(ctd_core.load_teacher(teacher, old), rows, bytes_alone, old)
    student = ctd_core.make_student(teacher, bytes_alone, old, expansion_bytes=16)
    ctd_core.train(student, rows, 3, batch_tokens=400)
    ctd_core.export(student, bytes_alone, tmp_path / "student")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "student", trust_remote_code=True)
    ids = torch.tensor([list(b"the men")])
    assert torch.equal(loaded(ids).logits, student.model(ids).logits)


def test_a_tokenizer_takes_over_the_template_of_a_model(tmp_path):
    chat_tokenizer("ChatML").save_pretrained(tmp_path)
    kept = ctd_core.prepare_tokenizer("bytes", chat_of=str(tmp_path)).encoder.tokenizer
    assert kept.chat_template == chat_tokenizer("ChatML").chat_template
    assert ctd_core.prepare_tokenizer("bytes").encoder.tokenizer.chat_template is None


def test_the_example_in_the_readme_runs(teacher, tmp_path, monkeypatch):
    readme = (Path(__file__).parents[1] / "README.md").read_text()
    example = textwrap.dedent(readme.split("on texts in memory:")[1].split("Preparing and training go on")[0])
    example = example.replace("runs/teachers/SmolLM2-135M-Instruct", teacher).replace("steps=100", "steps=2")
    monkeypatch.chdir(tmp_path)
    exec(example, {"texts": texts(20)[4:], "other_texts": texts(20)[:4]})
    assert (tmp_path / "runs" / "byte-student" / "model.safetensors").exists()


@pytest.mark.slow
def test_import_is_light_and_names_are_there():
    code = (
        "import sys, ctd_core; assert 'torch' not in sys.modules; ctd_core.align_texts; assert 'ray' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    assert set(ctd_core.__all__) <= set(dir(ctd_core))
    assert not hasattr(ctd_core, "no_such_name")
