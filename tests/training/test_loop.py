"""The loop: learning, resuming, stopping."""

import json
import os
import signal
import subprocess
import sys
import time
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from ctd_core.config.models import Adapters
from ctd_core.config.objectives import PUBLISHED_ALM, Alm, Dskd, Sft
from ctd_core.config.training import Train
from ctd_core.errors import CtdError, Recurring, UsageError
from ctd_core.models.adapters import add_adapters
from ctd_core.models.language_model import HuggingFaceModel
from ctd_core.models.online_teacher import OnlineTeacher
from ctd_core.models.prefix_positions import prefix_top
from ctd_core.models.scoring import Stored
from ctd_core.models.transfer import transfer_model
from ctd_core.objectives.interface import Plan
from ctd_core.shards.reading import ShardSet
from ctd_core.training import learner, loop
from ctd_core.training.checkpoint import load_weights, save_checkpoint
from ctd_core.training.loop import Hooks, Stopped, train
from ctd_core.training.optimizer import make_optimizer, rate_fraction
from pipelines.artifacts.checkpoints import checkpoint_writer
from tests.support.disks import files_of_at_most
from tests.support.models import llama, logprobs_of
from tests.support.shard_sets import prepared, texts, write_set

STUDENT, TEACHER = "byte-level BPE, 300", "byte-level BPE, 600"


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """Shards with the targets of a random teacher."""
    location = tmp_path_factory.mktemp("shards")
    student, teacher = prepared(STUDENT), prepared(TEACHER)
    model = logprobs_of(llama(600), teacher.encoder.token_bytes.begins_pretoken)
    stored = Stored(None, prefix_top(8, 4, student, teacher))
    write_set(location, student, teacher, texts(40), teacher_model=model, stored=stored)
    return ShardSet(location, verify=True)


def new_student():
    student = prepared(STUDENT)
    return logprobs_of(
        transfer_model(llama(600), student, prepared(TEACHER)), student.encoder.token_bytes.begins_pretoken
    )


def run(options, shards, start=None, checkpoints=None, student=None, online=None):
    """The losses of a run, by step; checkpoints written into `checkpoints`/step."""
    losses = {}

    def on_checkpoint(metrics, write):
        if checkpoints is not None:
            directory = checkpoints / str(metrics["step"])
            directory.mkdir()
            write(directory)

    hooks = Hooks(
        on_step=lambda metrics: losses.update({metrics["step"]: metrics["loss"]}),
        on_checkpoint=on_checkpoint,
        evaluate=lambda model: {"evaluated": float(model.training)},
    )
    train(options, student or new_student(), shards, hooks, start, online=online)
    return losses


@pytest.mark.parametrize("objective", [PUBLISHED_ALM, Sft(kind="sft")])
def test_the_loss_falls(shards, objective):
    options = Train(steps=30, objectives=[objective], batch_tokens=1000, learning_rate=3e-3)
    losses = list(run(options, shards).values())
    assert np.mean(losses[-5:]) < 0.9 * np.mean(losses[:5])


def test_with_a_larger_eps_embeddings_of_tokens_that_the_text_lacks_stay(shards):
    counts = np.bincount(np.concatenate(shards.read("student_ids", np.arange(len(shards)))), minlength=300)
    shares = []
    for eps in (1e-8, 1.0):
        student = new_student()
        embeddings = student.model.get_input_embeddings().weight
        before = embeddings.detach().clone()
        run(Train(steps=4, batch_tokens=300, eps=eps), shards, student=student)
        moved = (embeddings.detach() - before).abs().mean(1).numpy()[: len(counts)]
        shares.append(moved[counts == 0].mean() / moved[counts >= 20].mean())
    assert shares[0] > 1 > 10 * shares[1]


@pytest.mark.parametrize("is_fast", [False, True])
def test_the_fastest_type_is_bfloat16_only_where_that_is_faster(shards, monkeypatch, is_fast):
    monkeypatch.setattr(learner, "has_fast_bfloat16", lambda device: is_fast)
    found = {
        autocast: run(Train(steps=2, batch_tokens=1000, autocast=autocast), shards)[2]
        for autocast in ("fastest", "auto", "off")
    }
    assert found["auto"] == found["off"]  # on a CPU
    assert (found["fastest"] == found["off"]) is not is_fast
    assert found["fastest"] == pytest.approx(found["off"], rel=0.02)


@pytest.mark.parametrize("objective", [PUBLISHED_ALM, Dskd(kind="dskd")], ids=lambda line: line.kind)
@pytest.mark.parametrize("with_adapters", [False, True])
def test_a_run_that_goes_on_from_a_checkpoint_has_the_losses_of_one_that_never_stopped(
    shards, tmp_path, objective, with_adapters
):
    def student():
        made = new_student()
        if with_adapters:
            add_adapters(made.model, Adapters(rank=4), seed=0)
        return made

    options = Train(
        steps=8,
        batch_tokens=300,
        gradient_accumulation=2,
        learning_rate=1e-3,
        checkpoint_every=3,
        objectives=[objective],
    )
    online = OnlineTeacher(32, HuggingFaceModel(llama(600)), prepared(STUDENT), prepared(TEACHER), None)
    whole = run(options, shards, checkpoints=tmp_path, student=student(), online=online)
    resumed = run(options, shards, start=tmp_path / "3", student=student(), online=online)
    assert resumed == {step: loss for step, loss in whole.items() if step > 3}


STAGED = Train(
    steps=7,
    batch_tokens=300,
    learning_rate=1e-3,
    checkpoint_every=1,
    warmup_steps=0,
    stages=[
        {"steps": 2, "freeze": ["layers"], "learning_rate": 4e-3, "warmup_steps": 1},
        {"steps": 2, "freeze": ["embed_tokens"], "min_lr_ratio": 1.0, "warmup_steps": 0},
    ],
)


def weights_at(checkpoint):
    student = new_student()
    load_weights(checkpoint, student)
    return {name: tensor.clone() for name, tensor in student.model.named_parameters()}


def test_a_stage_has_settings_of_its_own_and_the_rest_those_of_the_training(shards, tmp_path):
    rates = {}
    hooks = Hooks(
        on_step=lambda metrics: rates.update({metrics["step"]: metrics["learning_rate"]}),
        on_checkpoint=lambda metrics, write: write(new_directory(tmp_path / str(metrics["step"]))),
        evaluate=lambda model: {},
    )
    start = dict(new_student().model.named_parameters())
    train(STAGED, new_student(), shards, hooks)
    first, second, last = (weights_at(tmp_path / str(step)) for step in (2, 4, 7))
    embeddings, layer = "model.embed_tokens.weight", "model.layers.1.mlp.up_proj.weight"
    assert torch.equal(first[layer], start[layer])
    assert not torch.equal(first[embeddings], start[embeddings])
    assert torch.equal(second[embeddings], first[embeddings])
    assert not torch.equal(second[layer], first[layer])
    assert not torch.equal(last[embeddings], second[embeddings])
    assert not torch.equal(last[layer], second[layer])
    assert list(rates.values()) == pytest.approx([2e-3, 4e-3, 1e-3, 1e-3, 1e-3, 2e-3 / 3, 1e-3 / 3])


@pytest.mark.parametrize("own", [None, 5e-3])
def test_a_stage_of_another_rate_has_it_for_embeddings_too_unless_it_names_theirs(shards, own):
    stage = {"steps": 1, "freeze": ["layers", "norm"], "learning_rate": 1e-3, "embedding_learning_rate": own}
    options = STAGED.model_validate(
        STAGED.model_dump() | {"steps": 2, "embedding_learning_rate": 6e-4, "warmup_steps": 0, "stages": [stage]}
    )
    rates = []
    hooks = Hooks(
        on_step=lambda metrics: rates.append(metrics["learning_rate"]),
        on_checkpoint=lambda metrics, write: None,
        evaluate=lambda model: {},
    )
    train(options, new_student(), shards, hooks)
    assert rates == pytest.approx([own or 1e-3, options.learning_rate])
    assert [part.options.embedding_learning_rate for part in options.phases] == [own, 6e-4]


def new_directory(path):
    path.mkdir()
    return path


@pytest.mark.parametrize("done", [1, 2, 3, 4, 5])
def test_a_training_in_stages_that_goes_on_has_the_losses_of_one_that_never_stopped(shards, tmp_path, done):
    whole = run(STAGED, shards, checkpoints=tmp_path)
    resumed = run(STAGED, shards, start=tmp_path / str(done))
    assert resumed == {step: loss for step, loss in whole.items() if step > done}


def test_stages_that_leave_no_step_or_come_with_shares_are_refused():
    with pytest.raises(ValidationError, match="the stages have 3 steps, and steps, which counts theirs too, is 3"):
        Train(steps=3, stages=[{"steps": 1}, {"steps": 2}])
    with pytest.raises(ValidationError, match="stages are not supported with strategy: fsdp"):
        Train(steps=3, stages=[{"steps": 1}], strategy="fsdp", num_workers=2, gradient_accumulation=2)
    with pytest.raises(ValidationError, match="is no regular expression"):
        Train(steps=3, stages=[{"steps": 1, "freeze": ["("]}])


def test_each_of_two_teachers_teaches_by_its_own_shards_and_weight(shards, tmp_path):
    student_tokenizer, other_tokenizer = prepared(STUDENT), prepared("SentencePiece BPE")
    other = logprobs_of(
        llama(len(other_tokenizer.encoder.token_bytes.by_id)), other_tokenizer.encoder.token_bytes.begins_pretoken
    )
    write_set(tmp_path, student_tokenizer, other_tokenizer, texts(30, seed=3), teacher_model=other)
    second = ShardSet(tmp_path, verify=True)
    published, half = PUBLISHED_ALM, Alm(kind="alm", weight=0.5, teacher="other")

    def gradients(options, *sources):
        student, seen = new_student(), {}

        def on_checkpoint(metrics, write):
            seen.update({name: parameter.grad.clone() for name, parameter in student.model.named_parameters()})

        hooks = Hooks(on_step=lambda metrics: None, on_checkpoint=on_checkpoint, evaluate=lambda model: {})
        options = Train(steps=1, batch_tokens=300, gradient_accumulation=2, max_grad_norm=None, objectives=options)
        train(options, student, sources[0], hooks, extra_shards=dict(zip(["other"], sources[1:], strict=False)))
        return seen

    together = gradients([published, half], shards, second)
    alone = gradients([published], shards), gradients([Alm(kind="alm", weight=0.5)], second)
    for name, gradient in together.items():
        torch.testing.assert_close(gradient, alone[0][name] + alone[1][name], rtol=1e-4, atol=1e-6)


def test_a_broken_checkpoint_is_an_error_that_names_it(shards, tmp_path):
    (tmp_path / "checkpoint.json").write_bytes(b"nothing")
    with pytest.raises(CtdError, match=f"{tmp_path}: no checkpoint.json"):
        run(Train(steps=1), shards, start=tmp_path)


def test_a_checkpoint_that_cannot_be_written_leaves_nothing_behind(tmp_path):
    model = new_student()
    optimizer = make_optimizer(model, Train(steps=1))
    write = partial(save_checkpoint, student=model, optimizer=optimizer, steps_done=1)
    with files_of_at_most(10_000), pytest.raises(CtdError, match="cannot be written"):
        checkpoint_writer(str(tmp_path))({"step": 1}, write)
    assert list(tmp_path.iterdir()) == []


def test_a_loss_that_is_not_finite_stops_with_the_step_and_the_rows(shards, tmp_path):
    student = new_student()
    with torch.no_grad():
        student.model.get_input_embeddings().weight[5:] = float("nan")
    with pytest.raises(CtdError, match=r"step 1: the loss is nan on rows \[\d.*documents d\d") as error:
        run(Train(steps=3, batch_tokens=300), shards, student=student)
    assert "learning_rate" in str(error.value)


def test_frozen_parameters_stay_and_a_pattern_without_a_match_is_an_error(shards):
    student = new_student()
    before = {name: parameter.detach().clone() for name, parameter in student.model.named_parameters()}
    run(Train(steps=2, batch_tokens=300, learning_rate=1e-2, freeze=[r"layers\.0\."]), shards, student=student)
    for name, parameter in student.model.named_parameters():
        assert torch.equal(parameter, before[name]) == ("layers.0." in name)
    with pytest.raises(UsageError, match=r"no_such"):
        run(Train(steps=1, freeze=["no_such"]), shards)
    with pytest.raises(UsageError, match="nothing to train"):
        run(Train(steps=1, freeze=["."]), shards)


def test_what_a_later_stage_cannot_do_is_told_before_the_first_step(shards):
    balanced = {"objectives": [Alm(kind="alm"), Sft(kind="sft")], "weighting": "gradient_magnitude"}
    for stage, options, message in (
        ({"freeze": ["no_such"]}, {}, "no_such"),
        ({"freeze": ["."]}, {}, "nothing to train"),
        ({"freeze": ["layers"]}, balanced, "fixes the last layer"),
    ):
        student = new_student()
        before = [parameter.detach().clone() for parameter in student.model.parameters()]
        with pytest.raises(UsageError, match=message):
            run(Train(steps=4, stages=[{"steps": 1}, {"steps": 1} | stage], **options), shards, student=student)
        assert all(map(torch.equal, student.model.parameters(), before))


def test_embeddings_have_a_learning_rate_of_their_own():
    optimizer = make_optimizer(new_student(), Train(steps=1, learning_rate=1.0, embedding_learning_rate=2.0))
    sizes = {group["lr"]: sum(parameter.numel() for parameter in group["params"]) for group in optimizer.param_groups}
    assert sizes[2.0] == 300 * 32


def test_the_rate_rises_then_falls_to_its_share():
    options = Train(steps=10, warmup_steps=4, min_lr_ratio=0.1)
    rates = [rate_fraction(step, options) for step in range(11)]
    assert rates[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert rates[-1] == pytest.approx(0.1)
    assert all(a > b for a, b in pairwise(rates[4:]))


def test_workers_that_cannot_share_a_step_are_an_error():
    with pytest.raises(ValidationError, match="multiple"):
        Train(steps=1, gradient_accumulation=3, num_workers=2)


RUN = """
import json, sys
from pathlib import Path
from tests.training.test_loop import *
from pipelines.artifacts.checkpoints import checkpoint_writer, latest_checkpoint
location, out = Path(sys.argv[1]), Path(sys.argv[2])
hooks = Hooks(
    on_step=lambda metrics: print(json.dumps([metrics["step"], metrics["loss"]]), flush=True),
    on_checkpoint=checkpoint_writer(str(out)), evaluate=lambda model: {},
)
torch.set_num_threads(1)
options = Train(steps=40, batch_tokens=300, learning_rate=1e-3, checkpoint_every=2)
train(options, new_student(), ShardSet(location, verify=False), hooks, latest_checkpoint(str(out)))
"""


def started(shards, out):
    command = [sys.executable, "-c", RUN, shards.name, str(out)]
    root = Path(__file__).parents[2]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=root)


def lines(output):
    return dict(json.loads(line) for line in output.splitlines() if line.endswith("]"))


@pytest.mark.slow
def test_a_run_killed_in_the_middle_and_started_again_has_the_losses_of_one_that_was_not(shards, tmp_path):
    uninterrupted = lines(started(shards, tmp_path / "whole").communicate()[0])
    assert len(uninterrupted) == 40
    process = started(shards, tmp_path / "killed")
    while not list((tmp_path / "killed").glob("step_*/checkpoint.json")):
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    before = lines(process.communicate()[0])
    after = lines(started(shards, tmp_path / "killed").communicate()[0])
    assert 0 < len(after) < 40
    assert uninterrupted == before | after
    assert before.items() <= uninterrupted.items()


def test_a_training_that_compares_nothing_fails_before_it_leaves_a_model(shards, monkeypatch):
    nothing = Plan(0.0, lambda student, teacher: student.token.sum() * 0, frozenset())
    monkeypatch.setattr(loop, "make_objective", lambda options, online: lambda batch: nothing)
    steps, checkpoints = [], []
    hooks = Hooks(
        lambda metrics: steps.append(metrics), lambda metrics, write: checkpoints.append(metrics), lambda _: {}
    )
    options = Train(steps=200, batch_tokens=300, objectives=[Sft(kind="sft")], checkpoint_every=100)
    with pytest.raises(Recurring, match=r"in 20 steps there was nothing that sft could compare"):
        train(options, new_student(), shards, hooks)
    with pytest.raises(Recurring, match="in 3 steps"):
        train(options.model_copy(update={"steps": 3}), new_student(), shards, hooks)
    assert (checkpoints, len(steps)) == ([], 19 + 2)
    assert steps[0]["count_0_sft"] == 0


def test_a_training_that_is_asked_to_stop_writes_a_checkpoint_and_goes_on_from_it(shards, tmp_path):
    options = Train(steps=8, batch_tokens=300, learning_rate=1e-3)
    uninterrupted = run(options, shards)
    losses, stopped = {}, tmp_path / "stopped"
    hooks = Hooks(
        on_step=lambda metrics: losses.update({metrics["step"]: metrics["loss"]}),
        on_checkpoint=lambda metrics, write: write(stopped) if metrics["step"] == 3 else None,
        evaluate=lambda model: {},
        stops_after=lambda step: step == 3,
    )
    with pytest.raises(Stopped, match="stopped after step 3"):
        train(options, new_student(), shards, hooks)
    assert losses | run(options, shards, start=stopped) == uninterrupted
