"""Checkpoints are data: nothing in them runs code, and what is not what was written is not used."""

import pickle
import random
import shutil

import numpy as np
import pytest
import safetensors.torch
import torch

from ctd_core.config.training import Train
from ctd_core.errors import CtdError, UsageError
from ctd_core.training.checkpoint import load_checkpoint, load_weights, save_checkpoint
from ctd_core.training.optimizer import make_optimizer
from pipelines.artifacts.checkpoints import latest_checkpoint
from tests.support.models import llama, logprobs_of

FILE = "tensors-00000.safetensors"


def student(seed=0):
    model = logprobs_of(llama(40, seed=seed, dtype=torch.bfloat16), np.zeros(40, dtype=bool))
    optimizer = make_optimizer(model, Train(steps=1))
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    return model, optimizer


@pytest.fixture
def checkpoint(tmp_path):
    model, optimizer = student()
    location = tmp_path / "step_00000007"
    save_checkpoint(location, model, optimizer, 7)
    return location


def test_what_is_written_is_read_back_bit_for_bit_and_is_safetensors(checkpoint):
    before, after = student(), student(seed=1)
    assert load_checkpoint(checkpoint, *after) == 7
    for name, tensor in before[0].state_dict().items():
        assert torch.equal(after[0].state_dict()[name], tensor)
    for old, new in zip(before[1].state.values(), after[1].state.values(), strict=True):
        assert all(torch.equal(old[key], new[key]) for key in old)
    tensors = safetensors.torch.load_file(checkpoint / FILE)
    assert any(torch.equal(tensor, before[0].model.get_input_embeddings().weight) for tensor in tensors.values())


def test_flipped_bytes_anywhere_are_found_before_the_checkpoint_is_used(checkpoint, tmp_path):
    state = random.Random(0)
    for name in (FILE, "checkpoint.json"):
        content = (checkpoint / name).read_bytes()
        header = 8 + int.from_bytes(content[:8], "little") if name == FILE else 0  # nothing is read from it
        for _ in range(8):
            damaged = bytearray(content)
            for at in state.sample(range(header, len(content)), 64 if name == FILE else 1):
                damaged[at] ^= 1 << state.randrange(8)
            (checkpoint / name).write_bytes(damaged)
            with pytest.raises(CtdError, match=r"aside|version"):
                load_checkpoint(checkpoint, *student())
        (checkpoint / name).write_bytes(content)
    (checkpoint / FILE).write_bytes(content[:-1])
    with pytest.raises(CtdError, match="aside"):
        load_checkpoint(checkpoint, *student())


class Planted:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (self.path, "w")


@pytest.mark.parametrize("name", [".metadata", "checkpoint.json", FILE])
def test_a_planted_pickle_does_not_run(checkpoint, tmp_path, name):
    trace = tmp_path / "it ran"
    (checkpoint / name).write_bytes(pickle.dumps(Planted(str(trace))))
    with pytest.raises(CtdError):
        load_weights(latest_checkpoint(str(tmp_path)), student()[0])
    assert not trace.exists()


def test_a_checkpoint_of_an_earlier_version_is_refused_with_the_way_out(checkpoint, tmp_path):
    shutil.move(checkpoint / "checkpoint.json", checkpoint / ".metadata")
    with pytest.raises(UsageError, match=r"step_00000007: a checkpoint of an earlier version.*aside"):
        latest_checkpoint(str(tmp_path))


def test_errors_that_say_nothing_of_the_checkpoint_pass_through(checkpoint, monkeypatch):
    def out_of_memory(*args, **kwargs):
        raise MemoryError

    monkeypatch.setattr(torch, "frombuffer", out_of_memory)
    with pytest.raises(MemoryError):
        load_checkpoint(checkpoint, *student())


def test_a_checkpoint_of_another_student_is_an_error_that_is_not_called_damage(checkpoint):
    other = logprobs_of(llama(41), np.zeros(41, dtype=bool))
    with pytest.raises(Exception, match=r"[Ss]ize") as found:
        load_weights(checkpoint, other)
    assert "aside" not in str(found.value)
