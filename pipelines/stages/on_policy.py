"""On-policy distillation: in rounds, the student writes, its teacher scores that, and training goes on with it.

A round's texts, shards and figures lie in a folder of their own, so that whoever is stopped goes on within the round:
no text is written, scored or learned twice. The optimizer and the schedule are those of one training.
"""

import json
import logging
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from itertools import zip_longest

from ctd_core.config.text import Mixture
from ctd_core.errors import UsageError
from pipelines.artifacts.checkpoints import latest_checkpoint, steps_done
from pipelines.artifacts.locks import stage_lock
from pipelines.artifacts.run_plan import DatasetPlan, RunPlan, TrainingPart
from pipelines.stages.own_texts import TextMaker
from pipelines.stages.rounds import Round, rounds_of
from pipelines.stages.student import ensure_student
from pipelines.stages.train import train_student

logger = logging.getLogger(__name__)


def train_whole(plan: RunPlan) -> None:
    """Train to the last step, on the corpus alone or in rounds, as the run asks."""
    if plan.config.train.on_policy is None:
        train_student(plan)
    else:
        train_on_policy(plan)


def train_on_policy(plan: RunPlan) -> None:
    """Train to the last step, in rounds; a training that was stopped goes on within its round.

    Args:
        plan: the run, with `train.on_policy`.

    Raises:
        UsageError: there are no prompts for this student.
        Stopped: it was asked to stop.
    """
    options = plan.config.train.on_policy
    assert options is not None
    if isinstance(plan.config.corpus, Mixture) and options.fraction < 1:
        raise UsageError("train.on_policy.fraction: beside a mixture of corpora, only 1 is supported.")
    stops, on_ray = threading.Event(), bool(plan.config.train.num_workers)
    maker = TextMaker(plan, options, stops, on_ray=on_ray)
    with stage_lock(plan.files, f"rounds-{plan.training.name}"):
        ensure_student(plan)
        if options.begin:
            train_student(replace(plan, part=TrainingPart(options.begin)))
        done = steps_done(latest_checkpoint(plan.checkpoints))
        ahead = _Ahead(maker.make, on_thread=on_ray and options.staleness > 0)
        try:
            items = [item for item in rounds_of(plan) if done < item.last]
            for item, following in zip_longest(items, items[1:]):
                dataset = ahead.result(item)
                _report(item)
                if following is not None and options.staleness:
                    ahead.begin(following)
                keeps = item.first if options.staleness else None
                train_student(replace(plan, part=TrainingPart(item.last, dataset, keeps)))
        finally:
            stops.set()
            ahead.close()


class _Ahead:
    """Makes the texts of the next round: at once, or on a thread, while this one is learned."""

    def __init__(self, make: Callable[[Round], DatasetPlan], on_thread: bool) -> None:
        self._make = make
        self._thread = ThreadPoolExecutor(1) if on_thread else None
        self._begun: dict[int, Future[DatasetPlan]] = {}

    def begin(self, item: Round) -> None:
        if self._thread is not None:
            self._begun[item.number] = self._thread.submit(self._make, item)
        else:
            self._make(item)

    def result(self, item: Round) -> DatasetPlan:
        begun = self._begun.get(item.number)
        return self._make(item) if begun is None else begun.result()

    def close(self) -> None:
        if self._thread is not None:
            self._thread.shutdown(cancel_futures=True)


def _report(item: Round) -> None:
    figures = json.loads((item.folder / "round.json").read_text())
    logger.info(
        "on-policy: round %d: %d texts of %.0f tokens, %.0f%% ended, %d learned; distance to the teacher %.3f",
        item.number, figures["texts"], figures["mean_tokens"], 100 * figures["share_ended"], figures["learned"],
        figures["teacher_distance_bits_per_byte"],
    )  # fmt: skip
