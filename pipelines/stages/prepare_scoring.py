"""The teacher's part of `ctd prepare`: targets for the rows of a slice, in this process or in an actor."""

import os
import pickle
from collections.abc import Callable
from typing import Any

import pyarrow as pa
import ray
import torch
from pyarrow import ipc

from ctd_core.config.models import Teacher
from ctd_core.config.shards import Prepare
from ctd_core.errors import CtdError
from ctd_core.models.building import build_scorer, stored_targets
from ctd_core.models.fingerprints import check_unchanged
from ctd_core.models.scoring import score_rows
from ctd_core.shards.manifest import Counts
from pipelines.cluster.tally import Handle, reporting
from pipelines.stages.prepare_progress import SliceProgress
from pipelines.stages.prepare_tasks import SliceTask, Tokenizers, outcome, shared_tokenizers, write_slice


class SliceScorer:
    """A teacher that adds its targets to the rows of slices and writes their shards.

    Args:
        teacher: which.
        weights: its fingerprint, under which the targets are kept.
        options: what is stored.
        tokenizers: student's and teacher's.
        device: where it calculates.

    Raises:
        CtdError: the teacher cannot be loaded, has changed, or does not fit its tokenizer.
    """

    def __init__(
        self, teacher: Teacher, weights: str, options: Prepare, tokenizers: Tokenizers, device: torch.device
    ) -> None:
        self._options = options
        self._scorer = build_scorer(teacher, tokenizers[1], device)
        check_unchanged(teacher.model, teacher.revision, weights)
        self._stored = stored_targets(options, *tokenizers)

    def score(
        self,
        task: SliceTask,
        rows: pa.RecordBatch,
        counts: Counts,
        report: Callable[[SliceProgress], None] = lambda progress: None,
    ) -> dict[str, Any]:
        """Score rows, and write them as the shard of `task`; what a progress bar shows of it."""

        def on_batch(tokens: int, of_tokens: int) -> None:
            report(SliceProgress(counts.text_bytes, tokens, of_tokens))

        scored = score_rows(self._scorer, rows, self._options.scoring_batch_tokens, self._stored, on_batch)
        scored_as = {self._scorer.dtype: scored.num_rows} if scored.num_rows else {}
        return write_slice(task, scored, counts.model_copy(update={"scored_as": scored_as}))


class ScoringActor:
    """A SliceScorer on Ray Data, whose rows are slices."""

    def __init__(
        self, teacher: Teacher, weights: str, options: Prepare, tokenizers: ray.ObjectRef[Any], tally: Handle
    ) -> None:
        self._tally = tally
        device = torch.device("cuda" if options.scoring_gpus else "cpu")
        if device.type == "cpu":
            torch.set_num_threads(max(1, (os.cpu_count() or 1) // options.scoring_actors))
        self._failure: CtdError | None = None
        try:
            self._scorer = SliceScorer(teacher, weights, options, shared_tokenizers(tokenizers), device)
        except CtdError as error:
            self._failure = error  # raised with the first row

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        return outcome(row, lambda: self._score(row))

    def _score(self, row: dict[str, Any]) -> dict[str, Any]:
        if self._failure is not None:
            raise self._failure
        with ipc.open_file(pa.py_buffer(row["content"])) as reader:
            rows = reader.get_batch(0)
        task: SliceTask = pickle.loads(row["task"])
        return self._scorer.score(
            task, rows, Counts.model_validate_json(row["counts"]), reporting(self._tally, task.key)
        )
