"""Models are asked as they were scored, and stop as they are exported."""

from ctd_core.config.run import RunConfig
from ctd_core.models.model_config import end_tokens
from pipelines.artifacts.run_plan import plan_run
from pipelines.stages.asked_models import student_before, teacher_of
from pipelines.stages.student import ensure_student
from tests.pipelines.test_chat import chat_config, chat_inputs  # noqa: F401
from tests.pipelines.test_run import config, inputs  # noqa: F401
from tests.support.chat_templates import CHATML
from tests.support.models import llama
from tests.support.tokenizers import TEXTS, train_tokenizer


def saved(folder, **special):
    tokenizer = train_tokenizer(TEXTS, 600)
    tokenizer.add_special_tokens(special)
    tokenizer.save_pretrained(folder)
    llama(len(tokenizer)).save_pretrained(folder)
    return tokenizer


def test_a_student_made_from_a_base_model_stops_at_the_end_of_its_answer(chat_config, tmp_path):  # noqa: F811
    tokenizer = saved(tmp_path / "base", additional_special_tokens=["<|im_start|>", "<|im_end|>"])
    tokenizer.chat_template = CHATML
    tokenizer.save_pretrained(tmp_path / "base")
    base = str(tmp_path / "base")
    student = {"model": base, "tokenizer": {"kind": "pretrained", "name": base}, "chat": "adopt"}
    plan = plan_run(RunConfig.model_validate(chat_config | {"student": student}))
    ensure_student(plan)
    model, asked = student_before(plan).load()
    ends = {tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("<|im_end|>")}
    assert set(end_tokens(model.generation_config)) == ends
    assert asked.eos_token_id == tokenizer.eos_token_id


def test_a_teacher_is_asked_with_the_tokens_that_it_is_scored_with(config, tmp_path):  # noqa: F811
    tokenizer = saved(tmp_path / "teacher", additional_special_tokens=["<s>", "</s>"])
    stamps, plain = set(), tokenizer("the quick", add_special_tokens=False)["input_ids"]
    for named in ({}, {"begin_token": "<s>"}, {"end_token": "<s>"}, {"begin_token": "<s>", "end_token": "</s>"}):
        teacher = {"model": str(tmp_path / "teacher")} | named
        asked = teacher_of(plan_run(RunConfig.model_validate(config | {"teacher": teacher})))
        stamps.add(asked.stamp())
        _, found = asked.load()
        begin = tokenizer.convert_tokens_to_ids("<s>") if "begin_token" in named else tokenizer.eos_token_id
        assert found("the quick")["input_ids"] == [begin, *plain]
        assert found.eos_token == named.get("end_token", tokenizer.eos_token)
    assert len(stamps) == 4
