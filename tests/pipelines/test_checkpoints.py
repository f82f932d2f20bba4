"""Checkpoints of a training, where they lie."""

from functools import partial

import numpy as np
import pytest
import torch
from pyarrow import fs

from ctd_core.config.training import Train
from ctd_core.errors import CtdError
from ctd_core.storage.locations import file_system
from ctd_core.training.checkpoint import load_checkpoint, load_weights, save_checkpoint
from ctd_core.training.optimizer import make_optimizer
from pipelines.artifacts.checkpoints import checkpoint_at, checkpoint_writer, checkpoints, latest_checkpoint, steps_done
from tests.support.models import llama, logprobs_of
from tests.support.stores import s3_store


def test_a_checkpoint_goes_to_a_store_and_is_whole_with_its_last_file_alone(tmp_path):
    student = logprobs_of(llama(20), np.zeros(20, dtype=bool))
    other = logprobs_of(llama(20, seed=1), np.zeros(20, dtype=bool))
    optimizers = [make_optimizer(model, Train(steps=1)) for model in (student, other)]
    with s3_store("bucket") as (head, tail, _):
        training = f"{head}/runs/one/train-0{tail}"
        keep = checkpoint_writer(training)
        files, path = file_system(checkpoint_at(training, 1))
        for step in (1, 2, 3):
            if step == 2:
                files.delete_file(f"{path}/checkpoint.json")  # as if killed while it was written
            keep({"step": step}, partial(save_checkpoint, student=student, optimizer=optimizers[0], steps_done=step))
        assert [steps_done(checkpoint) for checkpoint in checkpoints(training)] == [2, 3]
        assert files.get_file_info(path).type == fs.FileType.NotFound
        assert load_checkpoint(checkpoints(training)[-1], other, optimizers[1]) == 3
        for parameter, copied in zip(student.parameters(), other.parameters(), strict=True):
            assert torch.equal(parameter, copied)
        files, path = file_system(checkpoints(training)[-1])
        files.delete_file(f"{path}/checkpoint.json")
        assert [steps_done(checkpoint) for checkpoint in checkpoints(training)] == [2]
        files.delete_file(f"{path.replace('3', '2')}/tensors-00000.safetensors")
        with pytest.raises(CtdError, match=r"differs from its checksum|not a complete checkpoint|cannot be read"):
            load_weights(latest_checkpoint(training), other)
