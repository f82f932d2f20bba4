"""Tasks by lm-evaluation-harness: its log-likelihoods against ours, its figures, and what is refused."""

import importlib.metadata

import numpy as np
import pytest
from lm_eval.api.instance import Instance
from tokenizers import processors

from ctd_core.config.evaluation import Tasks
from ctd_core.errors import CtdError, UsageError
from ctd_core.evaluation.tasks import TaskHarness, harness_model
from ctd_core.models.scorer import Asked, ScoringRequest, TransformersScorer
from ctd_core.text.chat import apply_template, with_chat_of
from ctd_core.text.prepared_tokenizer import prepare_tokenizer
from tests.support.chat_templates import TEMPLATES, chat_tokenizer
from tests.support.models import llama, logprobs_of
from tests.support.task_files import write_tasks
from tests.support.tokenizers import TEXTS, TOTAL

NONE = np.zeros(0, dtype=np.int64)


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "datasets")


@pytest.mark.parametrize("name", ["byte-level BPE, 600", "byte-level BPE with a leading space", "bytes"])
def test_the_harness_gives_the_log_likelihoods_that_targets_are_made_of(name):
    tokenizer = TOTAL[name]()
    model = llama(len(tokenizer))
    ends = [text.index(" ", len(text) // 2) for text in TEXTS]  # in the middle of a token, the harness writes others
    pairs = [(text[:end], text[end:]) for text, end in zip(TEXTS, ends, strict=True)]
    requests = [Instance("loglikelihood", {}, pair, number) for number, pair in enumerate(pairs)]
    found = harness_model(model, tokenizer, batch_size=3).loglikelihood(requests)
    scorer = TransformersScorer(logprobs_of(model, np.zeros(len(tokenizer), dtype=np.bool_)))
    for (context, text), (logprob, _) in zip(pairs, found, strict=True):
        ids = np.array(tokenizer(context + text)["input_ids"], dtype=np.int32)
        (scores,) = scorer.score([ScoringRequest(ids, NONE, NONE, NONE, NONE, NONE)], Asked())
        begin = len(tokenizer(context)["input_ids"])
        assert scores.token_logprobs[begin:].sum() == pytest.approx(logprob, abs=1e-4)


@pytest.mark.parametrize("family", sorted(TEMPLATES))
def test_through_a_chat_template_the_harness_asks_what_was_learned(family):
    given = chat_tokenizer(family)
    if "bos_token" not in TEMPLATES[family][0]:  # its student writes a token before texts
        given = with_chat_of(TOTAL["byte-level BPE, 600"](), given)
        given.chat_template = '{{ strftime_now("%d %b %Y") }}' + given.chat_template
        (begin,) = given.convert_tokens_to_ids(["<|endoftext|>"])
        given.backend_tokenizer.post_processor = processors.TemplateProcessing(
            single=["<|endoftext|>", "$A"],
            pair=["<|endoftext|>", "$A", "$B"],
            special_tokens=[("<|endoftext|>", begin)],
        )
    tokenizer = prepare_tokenizer(given, family, None, None).exported
    messages = [{"role": "user", "content": "2 + 2?"}]
    ids = apply_template(tokenizer, messages, add_generation_prompt=True)["input_ids"]
    asked = harness_model(llama(len(tokenizer)), tokenizer, batch_size=2, is_chat=True)
    text = asked.apply_chat_template(messages)
    assert asked.tok_encode(text) == ids
    assert asked.tok_batch_encode([text])[0][0].tolist() == ids


def test_figures_of_choices_and_of_what_is_written_come_with_their_standard_errors(tmp_path):
    tokenizer = TOTAL["byte-level BPE, 600"]()
    options = Tasks(names=["next_number", "number_written"], include_path=str(write_tasks(tmp_path / "tasks")), limit=8)
    harness, model, shares = TaskHarness(options), llama(len(tokenizer)), []
    chosen = harness.run(model, tokenizer, "next_number", "student", shares.append)
    assert (chosen.task, chosen.model, chosen.questions, chosen.cut_questions) == ("next_number", "student", 8, 0)
    right = chosen.figures["acc"] * 8
    assert right == round(right)
    assert chosen.errors["acc"] == pytest.approx((chosen.figures["acc"] * (1 - chosen.figures["acc"]) / 7) ** 0.5)
    assert 0 < shares[0] <= shares[-1] <= 1.0
    written = harness.run(model, tokenizer, "number_written", "student")
    assert set(written.figures) == {"exact_match"}


def test_questions_longer_than_the_model_reads_are_counted(tmp_path):
    tokenizer = TOTAL["byte-level BPE, 600"]()
    long = {"question": "on and on " * 600, "choices": ["a", "b"], "gold": 0}
    options = Tasks(names=["next_number", "number_written"], include_path=str(write_tasks(tmp_path / "t", [long] * 2)))
    harness, model = TaskHarness(options), llama(len(tokenizer))
    assert harness.run(model, tokenizer, "next_number", "student").cut_questions == 4  # two answers to each
    assert harness.run(model, tokenizer, "number_written", "student").cut_questions == 2


def test_what_cannot_be_asked_is_refused_with_the_way_out(tmp_path, monkeypatch):
    tokenizer = TOTAL["byte-level BPE, 600"]()
    tasks = str(write_tasks(tmp_path / "tasks"))
    with pytest.raises(UsageError, match=r"has no task 'next_numbr'\. It has next_number\. `lm-eval ls tasks`"):
        TaskHarness(Tasks(names=["next_numbr"], include_path=tasks))
    with pytest.raises(UsageError, match="there is no directory nowhere"):
        TaskHarness(Tasks(names=["next_number"], include_path="nowhere"))
    (tmp_path / "tasks" / "none.yaml").write_text(
        (tmp_path / "tasks" / "next_number.yaml")
        .read_text()
        .replace("next_number", "none")
        .replace("tag: numbers\n", "")
        + "num_fewshot: 0\n"
    )
    with pytest.raises(UsageError, match="none asks with 0 examples, and with no other number"):
        TaskHarness(Tasks(names=["none"], include_path=tasks, num_fewshot=5)).run(
            llama(len(tokenizer)), tokenizer, "none", "the teacher"
        )
    templated = TaskHarness(Tasks(names=["next_number"], include_path=tasks, chat_template=True))
    with pytest.raises(UsageError, match="the teacher has no chat template"):
        templated.run(llama(len(tokenizer)), tokenizer, "next_number", "the teacher")
    with pytest.raises(CtdError, match="numbers stands for several tasks: name next_number, number_written"):
        TaskHarness(Tasks(names=["numbers"], include_path=tasks)).run(
            llama(len(tokenizer)), tokenizer, "numbers", "the teacher"
        )
    (tmp_path / "tasks" / "questions.jsonl").unlink()
    with pytest.raises(CtdError, match=r"the task next_number failed for the teacher: FileNotFoundError: .*questions"):
        TaskHarness(Tasks(names=["next_number"], include_path=tasks)).run(
            llama(len(tokenizer)), tokenizer, "next_number", "the teacher"
        )


def test_a_tokenizer_without_special_tokens_stays_as_it_is(tmp_path):
    tokenizer = TOTAL["SentencePiece BPE"]()
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token) == (None, None, None)
    size = len(tokenizer)
    options = Tasks(names=["number_written"], include_path=str(write_tasks(tmp_path / "tasks")), limit=2)
    TaskHarness(options).run(llama(size), tokenizer, "number_written", "student")
    assert (len(tokenizer), tokenizer.pad_token) == (size, None)


def test_a_machine_without_the_harness_is_told_what_to_install(monkeypatch):
    def version(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr("ctd_core.evaluation.tasks.version", version)
    with pytest.raises(UsageError, match=r"pip install 'ctd-ray\[tasks\]'"):
        TaskHarness(Tasks(names=["arc_easy"]))
