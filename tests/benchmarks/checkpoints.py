"""Ratios of checkpoints against torch's own format, which has no checksums: SmolLM2 with its optimizer."""

import shutil
import tempfile
import warnings
from pathlib import Path

import torch
from rich.table import Table
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from ctd_core.config.training import Train
from ctd_core.models.loading import load_model
from ctd_core.text.prepared_tokenizer import prepare_tokenizer
from ctd_core.text.tokenizers import load_tokenizer
from ctd_core.training.checkpoint_storage import Reader, Writer
from ctd_core.training.optimizer import make_optimizer
from tests.benchmarks.measuring import compare
from tests.support.models import logprobs_of


def add_rows(table: Table, teacher: str) -> None:
    """Time to write and to read a checkpoint of model and optimizer: of ours to that of torch's own."""
    warnings.filterwarnings("ignore", "torch.distributed is disabled|The given buffer")
    tokenizer = prepare_tokenizer(load_tokenizer(teacher), teacher, None, None)
    model = logprobs_of(load_model(teacher), tokenizer.encoder.token_bytes.begins_pretoken)
    optimizer = make_optimizer(model, Train(steps=1))
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    state = {
        "student": dict(model.named_parameters()),
        "optimizer": {name: optimizer.state[parameter] for name, parameter in model.named_parameters()},
    }
    with tempfile.TemporaryDirectory() as folder:
        plan = {"ours": Path(folder) / "ours", "torch's": Path(folder) / "torch"}

        def write(name, writer):
            shutil.rmtree(plan[name], ignore_errors=True)
            plan[name].mkdir()
            save(state, storage_writer=writer(str(plan[name])), no_dist=True)

        writing = compare(lambda: write("ours", Writer), lambda: write("torch's", FileSystemWriter), repeats=5)
        reading = compare(
            lambda: load(state, storage_reader=Reader(str(plan["ours"])), no_dist=True),
            lambda: load(state, storage_reader=FileSystemReader(str(plan["torch's"])), no_dist=True),
            repeats=5,
        )
    table.add_row(
        "n", "writing a checkpoint with checksums : torch's own without, time", f"{writing.time:.2f}", "≤ 1.1"
    )
    table.add_row("", "reading and checking it : torch's own, time", f"{reading.time:.2f}", "≤ 1.1")
