"""The actor of `ctd prepare` that holds the teacher."""

import os
import pickle
from typing import Any

import pyarrow as pa
import ray
import torch
from pyarrow import ipc

from ctd_core.config.models import Teacher
from ctd_core.config.shards import Prepare
from ctd_core.errors import CtdError
from ctd_core.models.building import build_scorer, stored_targets
from ctd_core.models.scoring import score_rows
from ctd_core.shards.manifest import Counts
from pipelines.cluster.tally import Handle, reporting
from pipelines.stages.prepare_progress import SliceProgress
from pipelines.stages.prepare_tasks import SliceTask, outcome, shared_tokenizers, write_slice


class ScoringActor:
    """Adds the teacher's targets to the rows of a slice and writes their shard."""

    def __init__(self, teacher: Teacher, options: Prepare, tokenizers: ray.ObjectRef[Any], tally: Handle) -> None:
        self._options, self._tally = options, tally
        device = torch.device("cuda" if options.scoring_gpus else "cpu")
        if device.type == "cpu":
            torch.set_num_threads(max(1, (os.cpu_count() or 1) // options.scoring_actors))
        student_tokenizer, teacher_tokenizer = shared_tokenizers(tokenizers)
        self._failure: CtdError | None = None
        try:
            self._scorer = build_scorer(teacher, teacher_tokenizer, device)
        except CtdError as error:
            self._failure = error  # raised with the first row
        self._stored = stored_targets(options, student_tokenizer, teacher_tokenizer)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        return outcome(row, lambda: self._score(row))

    def _score(self, row: dict[str, Any]) -> dict[str, Any]:
        if self._failure is not None:
            raise self._failure
        with ipc.open_file(pa.py_buffer(row["content"])) as reader:
            rows = reader.get_batch(0)
        task: SliceTask = pickle.loads(row["task"])
        counts = Counts.model_validate_json(row["counts"])
        report = reporting(self._tally, task.key)

        def on_batch(tokens: int, of_tokens: int) -> None:
            report(SliceProgress(counts.text_bytes, tokens, of_tokens))

        scored = score_rows(self._scorer, rows, self._options.scoring_batch_tokens, self._stored, on_batch)
        return write_slice(task, scored, counts)
