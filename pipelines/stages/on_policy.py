"""On-policy distillation: in rounds, the student writes, its teacher scores that, and training goes on with it.

A round's texts, shards and figures lie in a folder of their own, so that whoever is stopped goes on within the round:
no text is written, scored or learned twice. The optimizer and the schedule are those of one training.
"""

import logging
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from itertools import zip_longest

import torch

from ctd_core.config.training import OnPolicy
from ctd_core.models.logprob_model import LogprobModel
from pipelines.artifacts.checkpoints import latest_checkpoint, steps_done
from pipelines.artifacts.locks import stage_lock
from pipelines.artifacts.round_figures import read_round
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
    with stage_lock(plan.files, f"rounds-{plan.training.name}"):
        ensure_student(plan)
        if plan.config.train.num_workers:
            _train_on_ray(plan, options)
        else:
            whole = replace(plan, part=TrainingPart(plan.config.train.steps))
            train_student(whole, own_texts=_TextsOfLiveStudent(plan, options))


class _TextsOfLiveStudent:
    """What a training in this process learns from: at a round's border its student writes, and training goes on."""

    def __init__(self, plan: RunPlan, options: OnPolicy) -> None:
        self._rounds, self._options = rounds_of(plan), options
        self._maker = TextMaker(plan, options)
        self._learned: Round | None = None

    def __call__(self, step: int, student: LogprobModel, stops: Callable[[], bool]) -> DatasetPlan | None:
        item = next((item for item in self._rounds if item.first <= step < item.last), None)
        if item is None or item is self._learned:
            return None
        self._learned = item
        following = self._rounds[item.number + 1 : item.number + 1 + self._options.staleness]
        with torch.random.fork_rng(devices=[]):  # a teacher that is loaded may draw numbers
            dataset, *_ = [
                self._maker.make(made, student if made.written_at == step else None, stops)
                for made in (item, *following)
            ]
        _report(item)
        return dataset


def _train_on_ray(plan: RunPlan, options: OnPolicy) -> None:
    """Each part by workers of its own; the texts of the next round may be made on a thread while one is learned."""
    maker, stops = TextMaker(plan, options, on_ray=True), threading.Event()
    if options.begin:
        train_student(replace(plan, part=TrainingPart(options.begin)))
    done = steps_done(latest_checkpoint(plan.checkpoints))
    items = [item for item in rounds_of(plan) if done < item.last]
    begun: dict[int, Future[DatasetPlan]] = {}
    with ThreadPoolExecutor(1) as thread:
        try:
            for item, following in zip_longest(items, items[1:]):
                dataset = begun[item.number].result() if item.number in begun else maker.make(item)
                _report(item)
                if following is not None and options.staleness:
                    begun[following.number] = thread.submit(maker.make, following, stops=stops.is_set)
                keeps = item.first if options.staleness else None
                train_student(replace(plan, part=TrainingPart(item.last, dataset, keeps)))
        finally:
            stops.set()


def _report(item: Round) -> None:
    figures = read_round(item.folder)
    distance = figures.get("teacher_distance_bits_per_byte")
    logger.info(
        "on-policy: round %d: %d texts of %.0f tokens, %.0f%% ended, %d learned%s%s",
        item.number, figures["texts"], figures["mean_tokens"], 100 * figures["share_ended"], figures["learned"],
        f", {figures['not_asked']} prompts could not be asked" if figures["not_asked"] else "",
        "" if distance is None else f"; distance to the teacher {distance:.3f}",
    )  # fmt: skip
