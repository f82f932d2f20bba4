"""Directories are there whole or not at all, whatever stops their writing."""

import subprocess
import sys

import pytest

from ctd_core.errors import CtdError
from ctd_core.models.export import export_model
from ctd_core.models.language_model import HuggingFaceModel
from ctd_core.storage.atomic import atomic_directory
from tests.support.disks import files_of_at_most
from tests.support.models import llama
from tests.support.tokenizers import TEXTS, train_tokenizer


def test_a_model_that_the_disk_does_not_take_leaves_the_one_before(tmp_path):
    directory, tokenizer = tmp_path / "model", train_tokenizer(TEXTS, 300)

    def export():
        with atomic_directory(directory) as temporary:
            export_model(HuggingFaceModel(llama(300)), tokenizer, "card", temporary)

    export()
    before = {file.name: file.read_bytes() for file in directory.iterdir()}
    with files_of_at_most(50_000), pytest.raises(CtdError, match="model: cannot be written"):
        export()
    assert {file.name: file.read_bytes() for file in directory.iterdir()} == before
    assert [file.name for file in tmp_path.iterdir()] == ["model"]


def test_what_a_killed_process_left_is_removed(tmp_path):
    (tmp_path / ".step_00000002.abc").mkdir()
    (tmp_path / ".step_00000002.abc" / "checkpoint.json").write_text("half")
    with atomic_directory(tmp_path / "step_00000002") as temporary:
        (temporary / "checkpoint.json").write_text("whole")
    assert [file.name for file in tmp_path.iterdir()] == ["step_00000002"]


def test_what_another_process_is_writing_is_left_alone(tmp_path):
    with atomic_directory(tmp_path / "model") as mine:
        (mine / "a").write_text("mine")
        other = "import pathlib; from ctd_core.storage.atomic import atomic_directory\n"
        other += f"with atomic_directory(pathlib.Path({str(tmp_path / 'model')!r})) as temporary: pass"
        subprocess.run([sys.executable, "-c", other], check=True)
    assert (tmp_path / "model" / "a").read_text() == "mine"
    assert [file.name for file in tmp_path.iterdir()] == ["model"]


def test_an_error_of_the_work_is_not_taken_for_one_of_the_disk(tmp_path):
    with pytest.raises(ValueError, match="mine"), atomic_directory(tmp_path / "model"):
        raise ValueError("mine")
    assert not list(tmp_path.iterdir())
