"""On-policy rounds: what the student learns from, and that a stop anywhere changes nothing."""

import json
import math
import shutil
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest

from ctd_core.config.run import RunConfig
from ctd_core.errors import CtdError, UsageError
from ctd_core.generation.sampler import TransformersSampler, Written
from ctd_core.shards.files import Folder, read_manifest
from ctd_core.shards.reading import ShardSet
from ctd_core.training.loop import Stopped
from pipelines.artifacts.checkpoints import checkpoint_at, checkpoints, latest_checkpoint, steps_done
from pipelines.artifacts.metrics_file import METRICS_FILE, read_metrics
from pipelines.artifacts.report_page import rounds_in, rounds_table
from pipelines.artifacts.round_figures import ROUND_FILE, read_round
from pipelines.artifacts.run_plan import plan_run
from pipelines.stages import asked_models, on_policy, own_texts, train_worker
from pipelines.stages.preflight import check_inputs
from pipelines.stages.preflight_training import check_own_answers
from pipelines.stages.prepare import prepare
from pipelines.stages.prepare_scoring import SliceScorer
from pipelines.stages.rounds import read_prompts_for, rounds_of
from pipelines.stages.tokenizer import student_tokenizer
from tests.pipelines.test_chat import chat_config, chat_inputs  # noqa: F401
from tests.pipelines.test_run import config, inputs  # noqa: F401
from tests.support.chat_templates import chat_tokenizer

NAMING = "In <|endoftext|> the sum"  # it would read that as the token, and learn it as text
LONG = "on and on " * 3000  # for any student of these tests
ROUNDS = {"rounds": 2, "begin": 1, "texts": 6, "batch": 4, "max_new_tokens": 8, "fraction": 0.5}


class LetterSampler(TransformersSampler):
    """Writes words of printable ASCII, which random models hardly ever do."""

    letters: tuple[int, ...] = ()
    space: int

    def write(self, prompts, stops, options, seed):
        written = super().write(prompts, stops, options, seed)
        return [
            Written(
                [self.space if n % 4 == 3 else self.letters[token % len(self.letters)] for n, token in enumerate(ids)],
                logprobs,
            )
            for ids, logprobs in written
        ]


class AnsweringSampler(LetterSampler):
    """The same, and all its texts end."""

    def write(self, prompts, stops, options, seed):
        written = super().write(prompts, stops, options, seed)
        return [Written([*ids[:-1], min(stops)], logprobs) for ids, logprobs in written]


def spells_letters(monkeypatch, plan, sampler):
    """Let the students of a run write by such a sampler."""
    by_id = student_tokenizer(plan).encoder.token_bytes.by_id
    letters = tuple(n for n, raw in enumerate(by_id) if raw and raw.isalpha() and raw.isascii())
    monkeypatch.setattr(sampler, "letters", letters)
    monkeypatch.setattr(sampler, "space", by_id.index(b" "), raising=False)
    monkeypatch.setattr(own_texts, "TransformersSampler", sampler)


@pytest.fixture
def make_plan(chat_config, tmp_path, monkeypatch):  # noqa: F811
    """A function that plans a chat run of such a name and prepares it, or takes the shards of a prepared one; its
    student's answers all end.
    """

    def make(name, prepared=None, every=2, **options):
        train = chat_config["train"] | {"steps": 7, "checkpoint_every": every, "on_policy": ROUNDS | options}
        made = plan_run(RunConfig.model_validate(chat_config | {"name": name, "train": train, "sample": {}}))
        if prepared is not None:
            shutil.copytree(prepared.files.directory / "prepared", made.files.directory / "prepared")
        prepare(made)
        spells_letters(monkeypatch, made, AnsweringSampler)
        return made

    return make


def files_of(item):
    """The files of a round's texts."""
    return sorted(item.folder.glob("texts-*/*.jsonl"))


def outcome(plan):
    """What was written, and every step's loss."""
    texts = [b"".join(map(Path.read_bytes, files_of(item))) for item in rounds_of(plan)]
    return texts, [line["loss"] for line in read_metrics(plan.training / METRICS_FILE)]


def raised_at(count, function):
    """The function, whose call of this number is broken off."""
    calls = []

    def called(*arguments, **options):
        calls.append(1)
        if len(calls) == count:
            raise KeyboardInterrupt
        return function(*arguments, **options)

    return called


def break_off_in_step_7(plan, monkeypatch):
    """Train, but for the last step of the second round."""
    with monkeypatch.context() as patch:
        patch.setattr(train_worker.Recorder, "add", raised_at(7, train_worker.Recorder.add))
        with pytest.raises(KeyboardInterrupt):
            on_policy.train_whole(plan)


def test_rounds_share_the_steps_after_those_on_the_corpus_alone(make_plan):
    plan = make_plan("rounds")
    on_policy.train_whole(plan)
    rounds = rounds_of(plan)
    assert [(item.first, item.last) for item in rounds] == [(1, 4), (4, 7)]
    texts, losses = outcome(plan)
    assert len(losses) == 7
    assert texts[0] != texts[1]
    for item, written in zip(rounds, texts, strict=True):
        records = [json.loads(line) for line in written.splitlines()]
        assert len(records) == 6
        assert all(record["messages"][-1]["role"] == "user" and record["generated"]["ended"] for record in records)
        figures = json.loads((item.folder / "round.json").read_text())
        assert figures["texts"] == 6 == figures["learned"] + figures["dropped"]
        assert figures["not_asked"] == 0
        assert figures["teacher_distance_bits_per_byte"] > 0
        written = [record["generated"] for record in records]
        bits = -sum(text["logprob"] for text in written) / math.log(2)
        assert figures["bits_per_token"] == pytest.approx(bits / sum(text["tokens"] for text in written))
        (shards,) = item.folder.glob("own-*")
        counts = read_manifest(Folder(shards)).counts
        assert 0 < counts.scored_bytes < counts.text_bytes  # prompts are context
    table = rounds_table(rounds_in(plan.training))
    assert [row[:4] for row in table.rows] == [["0", "2 to 4", "1", "6"], ["1", "5 to 7", "4", "6"]]
    first = json.loads(texts[0].splitlines()[0])
    assert first["generated"]["text"][:60].strip() in table.rows[0][-1]


@pytest.mark.parametrize(
    ("staleness", "moment"),
    [
        (0, "writing"),
        (1, "a later step"),
        *(
            pytest.param(staleness, moment, marks=pytest.mark.chaos)
            for staleness in (0, 1)
            for moment in ("writing", "scoring", "its figures", "the first step of a round", "a later step")
        ),
    ],
)
def test_whoever_is_stopped_goes_on_within_the_round_to_the_same_losses(make_plan, monkeypatch, staleness, moment):
    whole = make_plan("whole", staleness=staleness)
    on_policy.train_whole(whole)
    plan = make_plan("stopped", whole, staleness=staleness)
    with monkeypatch.context() as patch:
        if moment == "writing":  # in the second batch of the second round
            patch.setattr(AnsweringSampler, "write", raised_at(4, AnsweringSampler.write))
        elif moment == "scoring":
            patch.setattr(SliceScorer, "score", raised_at(4, SliceScorer.score))
        elif moment == "its figures":
            patch.setattr(own_texts, "figures_of_round", raised_at(2, own_texts.figures_of_round))
        else:
            add = train_worker.Recorder.add
            patch.setattr(train_worker.Recorder, "add", raised_at(5 if moment.startswith("the first") else 6, add))
        with pytest.raises(KeyboardInterrupt):
            on_policy.train_whole(plan)
    on_policy.train_whole(plan)
    assert outcome(plan) == outcome(whole)
    on_policy.train_whole(plan)  # nothing is left to do
    assert outcome(plan) == outcome(whole)


def test_a_signal_in_a_round_stops_it(make_plan, monkeypatch):
    plan = make_plan("signal")
    with monkeypatch.context() as patch:
        patch.setattr("pipelines.stages.train.run_worker", lambda *arguments: (_ for _ in ()).throw(Stopped(0)))
        with pytest.raises(Stopped, match="stopped after step 0"):
            on_policy.train_whole(plan)
    with monkeypatch.context() as patch:  # just as the steps on the corpus end
        patch.setattr("pipelines.stages.train.stop_signals", lambda: nullcontext(lambda: True))
        with pytest.raises(Stopped, match="stopped after step 1"):
            on_policy.train_whole(plan)


def test_asked_to_stop_while_it_writes_it_keeps_what_was_learned_before(make_plan, monkeypatch):
    whole = make_plan("whole", every=5, begin=0)
    with monkeypatch.context() as patch:  # the student that learns is the one that writes
        patch.setattr(asked_models.RunStudent, "load", None)
        on_policy.train_whole(whole)
    plan, asked = make_plan("asked", whole, every=5, begin=0), []
    write = AnsweringSampler.write

    def last(self, *arguments):
        asked.append(1)
        return write(self, *arguments)

    with monkeypatch.context() as patch:  # in the second batch of the second round, after step 4 of 7
        patch.setattr(AnsweringSampler, "write", last)
        patch.setattr("pipelines.stages.train.stop_signals", lambda: nullcontext(lambda: len(asked) == 4))
        with pytest.raises(Stopped, match="stopped after step 4"):
            on_policy.train_whole(plan)
    assert len(asked) == 4
    assert steps_done(latest_checkpoint(plan.checkpoints)) == 4
    on_policy.train_whole(plan)
    assert outcome(plan) == outcome(whole)


def test_texts_that_are_lost_are_written_again_by_the_student_of_that_step(make_plan, monkeypatch):
    whole = make_plan("whole")
    on_policy.train_whole(whole)
    plan = make_plan("lost", whole)
    break_off_in_step_7(plan, monkeypatch)
    assert list(map(steps_done, checkpoints(plan.checkpoints))) == [4, 6]
    lost = rounds_of(plan)[1].folder
    shutil.rmtree(lost)
    shutil.copytree(plan.training, other := plan.training.with_name("other"))
    on_policy.train_whole(plan)
    assert outcome(plan) == outcome(whole)
    shutil.rmtree(plan.training)
    other.rename(plan.training)
    shutil.rmtree(checkpoint_at(plan.checkpoints, 4))
    with pytest.raises(CtdError, match=r"after step 4 is missing or damaged.*goes on from an earlier one"):
        on_policy.train_whole(plan)


def test_what_is_cut_short_of_a_round_is_made_again(make_plan, monkeypatch):
    whole = make_plan("whole")
    on_policy.train_whole(whole)
    plan = make_plan("cut", whole)
    break_off_in_step_7(plan, monkeypatch)
    folder = rounds_of(plan)[1].folder
    figures = read_round(folder)
    (folder / ROUND_FILE).write_text((folder / ROUND_FILE).read_text()[:40])
    assert rounds_in(plan.training)[1:] == []
    texts = files_of(rounds_of(plan)[1])[0]
    texts.write_text("".join(texts.read_text().splitlines(keepends=True)[:-1]))
    next(folder.glob("own-*/*.arrow")).unlink()
    on_policy.train_whole(plan)
    assert outcome(plan) == outcome(whole)
    again = read_round(folder)
    timed = [name for name in figures if name.startswith("seconds")]
    assert {name: again[name] for name in again if name not in timed} == {
        name: figures[name] for name in figures if name not in timed
    }
    shutil.rmtree(checkpoint_at(plan.checkpoints, 7))  # without the student of a round, its distance is not measured
    assert checkpoint_at(plan.checkpoints, 4) not in checkpoints(plan.checkpoints)
    (folder / ROUND_FILE).unlink()
    on_policy.train_whole(plan)
    assert outcome(plan) == outcome(whole)
    assert set(figures) - set(read_round(folder)) >= {"teacher_distance_bits_per_byte"}
    assert len(rounds_table(rounds_in(plan.training)).rows) == 2


@pytest.mark.parametrize("changed", ["prompts", "corpus", "teacher"])
def test_what_has_changed_since_the_run_was_planned_is_refused(config, tmp_path, monkeypatch, changed):  # noqa: F811
    shutil.copytree(config["teacher"]["model"], tmp_path / "teacher")
    (source,) = config["corpus"]["paths"]
    corpus, prompts = Path(shutil.copy(source, tmp_path / "corpus.jsonl")), tmp_path / "prompts.jsonl"
    prompts.write_text('{"prompt": "The sum"}\n')
    rounds = {"rounds": 1, "begin": 1, "texts": 2} | ({} if changed == "corpus" else {"prompts": str(prompts)})
    plan = plan_run(
        RunConfig.model_validate(
            config
            | {"train": config["train"] | {"steps": 2, "on_policy": rounds}, "sample": {}}
            | {"teacher": config["teacher"] | {"model": str(tmp_path / "teacher")}}
            | {"corpus": config["corpus"] | {"paths": [str(corpus)]}}
        )
    )
    prepare(plan)
    spells_letters(monkeypatch, plan, LetterSampler)
    with {"prompts": prompts, "corpus": corpus, "teacher": tmp_path / "teacher" / "config.json"}[changed].open(
        "a"
    ) as stream:
        stream.write("\n" if changed == "teacher" else '{"prompt": "A difference", "text": "A difference"}\n')
    with pytest.raises(CtdError, match="changed since the command began"):
        on_policy.train_whole(plan)


def test_on_ray_texts_are_written_beside_training_and_are_the_same(config, tmp_path):  # noqa: F811
    rounds = {"rounds": 2, "texts": 16, "batch": 8, "max_new_tokens": 2, "staleness": 1}
    plans, before = {}, tmp_path / "before"
    for name, workers in (("here", 0), ("ray", 1)):
        train = config["train"] | {"steps": 4, "num_workers": workers, "on_policy": rounds}
        plan = plan_run(RunConfig.model_validate(config | {"name": name, "train": train, "sample": {}}))
        if before.exists():
            shutil.copytree(before, plan.files.directory)
        else:
            prepare(plan)
            shutil.copytree(plan.files.directory, before)
        on_policy.train_whole(plan)
        plans[name] = plan
    assert outcome(plans["ray"])[0] == outcome(plans["here"])[0]
    assert outcome(plans["ray"])[1] == pytest.approx(outcome(plans["here"])[1], rel=1e-5)
    for plan in plans.values():
        figures = [json.loads((item.folder / "round.json").read_text()) for item in rounds_of(plan)]
        assert [found["written_at"] for found in figures] == [0, 0]  # the second a round before


def test_messages_of_a_file_are_read_as_a_corpus_reads_them(tmp_path):
    file = tmp_path / "prompts.jsonl"
    parts = [{"type": "text", "text": "Hi, "}, {"type": "text", "text": "you"}]
    call = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]}
    asked = {"role": "user", "content": "?"}
    for messages, expected in (
        ([{"role": "human", "content": parts, "name": "Ann"}], [{"role": "user", "content": "Hi, you", "name": "Ann"}]),
        ([{"role": "user", "content": None}], "prompt 1: a message without a content"),
        ([{"role": "user", "content": [{"type": "image"}]}], "prompt 1: a message that is not text"),
        ([asked, call, {"role": "tool", "content": "4"}], "prompt 1: a message calls tools"),
        (
            [asked, {"role": "assistant", "content": "4", "reasoning": "so"}, asked],
            "prompt 1: a message with reasoning",
        ),
    ):
        file.write_text(json.dumps({"messages": messages}))
        if isinstance(expected, str):
            with pytest.raises(UsageError, match=expected):
                read_prompts_for(str(file), is_chat=True)
        else:
            assert read_prompts_for(str(file), is_chat=True) == [{"messages": expected}]


def test_prompts_may_come_from_a_file(config, tmp_path, monkeypatch):  # noqa: F811
    file = tmp_path / "prompts.jsonl"
    file.write_text(
        "".join(json.dumps({"prompt": prompt, "id": 7}) + "\n" for prompt in ("The sum", "A difference", LONG, NAMING))
    )
    rounds = {"rounds": 1, "texts": 8, "max_new_tokens": 6, "prompts": str(file)}
    train = config["train"] | {"steps": 1, "on_policy": rounds}
    plan = plan_run(RunConfig.model_validate(config | {"train": train, "sample": {}}))
    prepare(plan)
    spells_letters(monkeypatch, plan, LetterSampler)
    on_policy.train_whole(plan)
    (item,) = rounds_of(plan)
    records = [json.loads(line) for file in files_of(item) for line in file.read_text().splitlines()]
    assert (
        sorted(record["prompt"] for record in records)
        == ["A difference"] * 2 + [NAMING] * 2 + ["The sum"] * 2 + [LONG] * 2
    )
    counts = read_manifest(Folder(next(item.folder.glob("own-*")))).counts
    assert {reason: dropped.documents for reason, dropped in counts.dropped.items()} == {
        "a prompt that the student cannot be asked": 4
    }
    figures = read_round(item.folder)
    assert (figures["texts"], figures["not_asked"], figures["mean_tokens"]) == (4, 4, 6)
    file.write_text(json.dumps({"prompt": "Another"}) + "\n")
    assert plan_run(plan.config).training != plan.training  # another training
    file.write_text("{}\n")
    with pytest.raises(UsageError, match="line 1: no `prompt`"):
        check_inputs(plan.config)
    file.write_text('{"messages": [{"role": "user", "content": "The sum"}]}\n')
    with pytest.raises(UsageError, match="messages, and the student has no chat template"):
        check_inputs(plan.config)
    file.unlink()
    with pytest.raises(UsageError, match=r"train\.on_policy\.prompts: .* cannot be read"):
        plan_run(plan.config)


def test_all_that_a_student_writes_is_measured_after_prompts_of_a_file(config, tmp_path, monkeypatch):  # noqa: F811
    file = tmp_path / "prompts.jsonl"
    file.write_text('{"prompt": "The sum"}\n{"prompt": "A difference"}\n')
    measured = {"texts": 12, "max_new_tokens": 12, "prompts": str(file)}
    changes = {
        "prepare": config["prepare"] | {"fragmented_fraction": 0.3},
        "train": config["train"] | {"steps": 1},
        "evaluate": config["evaluate"] | {"own_texts": measured},
    }
    plan = plan_run(RunConfig.model_validate(config | changes | {"sample": {}}))
    prepare(plan)
    on_policy.train_whole(plan)
    spells_letters(monkeypatch, plan, LetterSampler)
    own_texts.measure_own_texts(plan, plan.config.evaluate.own_texts, latest_checkpoint(plan.checkpoints))
    (shards,) = (plan.training / "own-texts").glob("own-*")
    assert read_manifest(Folder(shards)).counts.documents == 12
    assert len(ShardSet(str(shards), verify=True)) == 12
    (texts,) = (plan.training / "own-texts").glob("texts-*/*.jsonl")
    assert {json.loads(line)["prompt"] for line in texts.read_text().splitlines()} == {"The sum", "A difference"}


def test_a_corpus_without_prompts_for_the_student_is_refused_before_training(config, chat_config):  # noqa: F811
    run = chat_config | {"corpus": config["corpus"]}
    for field, asked in (
        ("evaluate.own_texts", {"evaluate": chat_config["evaluate"] | {"own_texts": {}}}),
        ("train.on_policy", {"train": chat_config["train"] | {"on_policy": {"rounds": 1}}}),
    ):
        with pytest.raises(
            UsageError, match=rf"{field}: the corpus holds no prompts.* Name a file .*: {field}.prompts"
        ):
            check_inputs(RunConfig.model_validate(run | asked))


def test_a_model_of_texts_learns_its_own_alone(config, monkeypatch):  # noqa: F811
    rounds = {"rounds": 2, "texts": 5, "max_new_tokens": 12}
    train = config["train"] | {"steps": 4, "on_policy": rounds}
    plan = plan_run(RunConfig.model_validate(config | {"train": train, "sample": {}}))
    prepare(plan)
    spells_letters(monkeypatch, plan, LetterSampler)
    on_policy.train_whole(plan)
    for item in rounds_of(plan):
        records = [json.loads(line) for file in files_of(item) for line in file.read_text().splitlines()]
        assert all(record["prompt"] and record["generated"]["tokens"] <= 12 for record in records)
        figures = json.loads((item.folder / "round.json").read_text())
        assert figures["learned"] > 0
        assert figures["share_ended"] < 1


def test_what_has_no_rounds_or_no_prompts_is_refused(make_plan, config):  # noqa: F811
    with pytest.raises(ValueError, match="2 rounds, for which 2 steps are too few"):
        RunConfig.model_validate(
            config | {"train": config["train"] | {"steps": 2, "on_policy": {"rounds": 2, "begin": 1}}}
        )
    plan = make_plan("alone")
    with pytest.raises(UsageError, match="a search has no rounds"):
        on_policy.train_student(plan)


@pytest.mark.parametrize("family", ["ChatML", "Llama 3", "Mistral v1", "Qwen3"])
def test_a_template_that_writes_more_before_an_answer_than_it_asks_by_is_refused(family):
    asked = SimpleNamespace(prompts_of_own_texts={"train.on_policy": None})
    with pytest.raises(UsageError, match=r"writes '.*<think>") if family == "Qwen3" else nullcontext():
        check_own_answers(asked, chat_tokenizer(family))
