"""A round's texts: the student writes them, its teacher scores them, in this process or in actors on Ray."""

import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import ray
import torch

from ctd_core.config.evaluation import WrittenTexts
from ctd_core.config.models import Teacher
from ctd_core.config.shards import Prepare
from ctd_core.config.training import OnPolicy
from ctd_core.errors import CtdError, UsageError
from ctd_core.evaluation.figures import TaskFigures
from ctd_core.generation.prompts import GENERATED, Answerer, named_token
from ctd_core.generation.sampler import Sampling, TransformersSampler
from ctd_core.models.logprob_model import LogprobModel
from ctd_core.models.model_config import positions_of
from ctd_core.models.tokenizers import build_teacher_tokenizer
from ctd_core.shards.files import Folder, finished_shards, is_finished, shard_file
from ctd_core.shards.reading import ShardSet
from ctd_core.storage.atomic import write_atomic
from ctd_core.storage.locations import file_system, open_to_read
from ctd_core.text.chat import names_of_special_tokens
from ctd_core.text.corpora.records import Record
from ctd_core.text.prepared_tokenizer import PreparedTokenizer
from ctd_core.training.loop import Stopped
from pipelines.artifacts.checkpoints import checkpoint_at, checkpoints, steps_done
from pipelines.artifacts.report import AFTER
from pipelines.artifacts.round_figures import ROUND_FILE, read_round
from pipelines.artifacts.run_plan import DatasetPlan, RunPlan
from pipelines.cluster.connection import connect, reraised_errors
from pipelines.display.progress import progress
from pipelines.stages.asked_models import RunStudent
from pipelines.stages.own_text_figures import MEASURED_SHARE, figures_of_round
from pipelines.stages.prepare import finish_set
from pipelines.stages.prepare_scoring import SliceScorer
from pipelines.stages.prepare_tasks import SliceTask, Tokenizers, align_slice
from pipelines.stages.rounds import Round, WritingTask, plan_own_texts, prompts_for
from pipelines.stages.student import load_student
from pipelines.stages.tokenizer import student_tokenizer

AT_ONCE = 32  # texts of a measuring
NOTHING = {"text": "", "ended": False, "tokens": 0, "special_tokens": 0, "logprob": 0.0}
RETRIES = 3  # of a piece of work whose machine is lost
OWN_FIGURES = {
    "teacher_distance_bits_per_byte": "distance to the teacher",
    "bits_per_byte": "bits per byte",
    "mean_tokens": "tokens a text",
    "share_ended": "ended by itself",
}
Seconds = tuple[float, float]  # of writing, of scoring: of a piece of work one of them


class StudentWriter:
    """The student of a run as it was after `step`, which writes: `live`, or else as its checkpoint has it."""

    def __init__(
        self, plan: RunPlan, options: OnPolicy, tokenizer: PreparedTokenizer, step: int, uses_gpu: bool,
        live: LogprobModel | None = None,
    ) -> None:  # fmt: skip
        self._plan, self._options, self._tokenizer, self._step, self._live = plan, options, tokenizer, step, live
        self._device = torch.device("cuda" if uses_gpu else "cpu")
        self._answerer: Answerer | None = None

    def write(self, task: WritingTask) -> tuple[SliceTask, float]:
        """Write the texts of a task, where they are not there yet; what is to be scored, and the seconds it took."""
        if _is_written(task):
            return task.shard, 0.0
        if self._answerer is None:  # not before: an error of an actor's __init__ would not come out as itself
            self._answerer = self._load()
        begun = time.monotonic()
        encoded: dict[int, list[int]] = {}
        records = list(task.prompts)
        names = names_of_special_tokens(self._tokenizer.encoder.tokenizer)
        for number, record in enumerate(task.prompts):
            try:
                if named := named_token(record, names):
                    raise UsageError(f"prompt {number} holds {named}, the name of a special token")
                encoded[number] = self._answerer.encode(record, f"prompt {number}")
            except UsageError as error:  # or too long, or refused by the chat template
                records[number] = record | {GENERATED: NOTHING | {"error": str(error)}}
        asked = [records[number] for number in encoded]
        answers = self._answerer.answer(asked, list(encoded.values()), task.seed) if asked else []
        for number, record in zip(encoded, answers, strict=True):
            records[number] = record
        write_atomic(task.texts, "".join(json.dumps(record) + "\n" for record in records))
        return task.shard, time.monotonic() - begun

    def _load(self) -> Answerer:
        options, name = self._options, "the student"
        if self._live is None:
            checkpoint = _checkpoint_of(self._plan, self._step)
            model, tokenizer = RunStudent(name, self._plan, checkpoint, self._tokenizer).load(self._device)
        else:
            model, tokenizer = self._live.model, self._tokenizer.exported
        sampling = Sampling(options.max_new_tokens, options.temperature, options.top_p)
        return Answerer(TransformersSampler(model), tokenizer, name, sampling, positions_of(model))


class TextScorer:
    """A teacher that scores what was written."""

    def __init__(
        self, teacher: Teacher, weights: str, options: Prepare, tokenizers: Tokenizers, uses_gpu: bool
    ) -> None:
        self._given = teacher, weights, options, tokenizers, torch.device("cuda" if uses_gpu else "cpu")
        self._scorer: SliceScorer | None = None

    def score(self, written: tuple[SliceTask, float]) -> Seconds:
        """Align, score and store a file of texts; the seconds of its writing and of this."""
        task, seconds_writing = written
        _, _, options, tokenizers, _ = self._given
        if self._scorer is None:
            self._scorer = SliceScorer(*self._given)
        begun = time.monotonic()
        self._scorer.score(task, *align_slice(task, tokenizers, options))
        return seconds_writing, time.monotonic() - begun


class TextMaker:
    """Makes the scored texts of rounds, where they are not there yet.

    Args:
        plan: the run.
        options: its rounds.
        on_ray: in actors, or else in this process.
        measures: nothing is learned from the texts, and the distance to the teacher is measured on all of them.
    """

    def __init__(self, plan: RunPlan, options: OnPolicy, *, on_ray: bool = False, measures: bool = False) -> None:
        self._plan, self._options, self._on_ray = plan, options, on_ray
        self._field = "evaluate.own_texts" if measures else "train.on_policy"
        self._measured_share = 1.0 if measures else MEASURED_SHARE
        self._fragmented_fraction = 1.0 if measures else plan.config.prepare.fragmented_fraction
        self._live_writer: StudentWriter | None = None  # whose student is the same in all rounds

    @cached_property
    def _prompts(self) -> Sequence[Record]:
        student, _ = self._tokenizers
        return prompts_for(self._plan, self._field, is_chat=bool(student.encoder.tokenizer.chat_template))

    @cached_property
    def _tokenizers(self) -> Tokenizers:
        return student_tokenizer(self._plan), build_teacher_tokenizer(self._plan.training_sets[None].teacher)

    def make(
        self, item: Round, live: LogprobModel | None = None, stops: Callable[[], bool] = lambda: False
    ) -> DatasetPlan:
        """The scored texts of a round.

        Args:
            item: the round.
            live: the student as it is after the step at which it writes; where none is given, a checkpoint is read.
            stops: once it is true, no further piece of work is begun.

        Returns:
            Their set.

        Raises:
            CtdError: they cannot be written or scored. What is done is kept.
            Stopped: `stops` was true.
        """
        plan, begun = self._plan, time.monotonic()
        made = plan_own_texts(plan, self._options, item, self._prompts, self._fragmented_fraction)
        dataset, done_file = made.dataset, item.folder / ROUND_FILE
        plan.files.fetch(done_file)
        is_told = read_round(item.folder).get("set") == dataset.stamp
        if is_told and is_finished(Folder(dataset.location), plan.shard_cache):
            return dataset
        finished = finished_shards(Folder(dataset.location))
        missing = [
            task for task in made.tasks if shard_file(task.shard.slice.number) not in finished or not _is_written(task)
        ]
        writing = scoring = 0.0
        if missing:
            work = self._work_on_ray(item, missing, stops) if self._on_ray else self._work_here(item, missing, live)
            with progress(f"round {item.number}", 2 * len(missing)) as reporter:
                for number, seconds in enumerate(work, 1):
                    writing, scoring = writing + seconds[0], scoring + seconds[1]
                    reporter.update(number, "batches of texts written, and scored")
                    if stops():
                        raise Stopped(item.written_at)
        counted = plan.config.prepare.model_copy(update={"max_dropped_fraction": 0.99})  # and shown below
        config = plan.config.model_copy(update={"prepare": counted})
        slices = [task.shard.slice for task in made.tasks]
        try:
            finish_set(replace(plan, config=config), dataset, slices, self._tokenizers)
        except CtdError as error:
            raise CtdError(
                f"{self._field}: round {item.number}: the student hardly writes what can be learned. Take a lower "
                f"train.learning_rate, a train.on_policy.fraction below 1, or more max_new_tokens. ({error})"
            ) from error
        figures: dict[str, Any] = {"round": item.number, "set": dataset.stamp, "written_at": item.written_at}
        figures |= {"first_step": item.first, "last_step": item.last}
        figures |= {"seconds_writing": writing, "seconds_scoring": scoring}
        measuring = time.monotonic()
        records = [record for task in made.tasks for record in _records(task)]
        shards = ShardSet(dataset.location, verify=True, cache=plan.shard_cache)
        batch_tokens = plan.config.evaluate.batch_tokens
        figures |= figures_of_round(records, shards, live or self._writer_of(item), self._measured_share, batch_tokens)
        figures |= {"seconds_measuring": time.monotonic() - measuring, "seconds": time.monotonic() - begun}
        write_atomic(done_file, json.dumps(figures, indent=1))
        plan.files.upload(done_file)
        return dataset

    def _writer_of(self, item: Round) -> LogprobModel | None:
        """The student that wrote a round's texts, where its checkpoint is still there."""
        if not _has_checkpoint(self._plan, item.written_at):
            return None
        student = load_student(self._plan, self._tokenizers[0], _checkpoint_of(self._plan, item.written_at))
        return student.to("cuda" if torch.cuda.is_available() else "cpu")

    def _work_here(self, item: Round, tasks: list[WritingTask], live: LogprobModel | None) -> Iterator[Seconds]:
        """In this process: first all is written, then all is scored, so that the teacher is there for that alone."""
        uses_gpu = torch.cuda.is_available()
        writer = self._live_writer
        if live is None or writer is None:
            step, student = item.written_at, self._tokenizers[0]
            writer = StudentWriter(self._plan, self._options, student, step, uses_gpu, live)
        self._live_writer = None if live is None else writer
        for task in tasks:
            yield writer.write(task)[1], 0.0
        del writer
        base, prepare = self._plan.training_sets[None], self._plan.config.prepare
        scorer = TextScorer(base.teacher, base.teacher_weights, prepare, self._tokenizers, uses_gpu)
        for task in tasks:
            yield 0.0, scorer.score((task.shard, 0.0))[1]

    def _work_on_ray(self, item: Round, tasks: list[WritingTask], stops: Callable[[], bool]) -> Iterator[Seconds]:
        """In actors, which write and score at the same time; each asks for resources of its own."""
        plan, options, prepare = self._plan, self._options, self._plan.config.prepare
        base = plan.training_sets[None]
        resources = options.generation_resources | (prepare.scoring_resources or {})
        gpus = options.generation_actors * options.generation_gpus + prepare.scoring_actors * prepare.scoring_gpus
        connect(1, gpus, "train.on_policy.generation_gpus and prepare.scoring_gpus", resources)
        with reraised_errors():
            shared = ray.put(plan), ray.put(self._tokenizers), ray.put(self._tokenizers[0])
            writers = [
                _actor(StudentWriter, options.generation_gpus, options.generation_resources).remote(
                    shared[0], options, shared[2], item.written_at, bool(options.generation_gpus)
                )
                for _ in range(min(options.generation_actors, len(tasks)))
            ]
            scorers = [
                _actor(TextScorer, prepare.scoring_gpus, prepare.scoring_resources).remote(
                    base.teacher, base.teacher_weights, prepare, shared[1], bool(prepare.scoring_gpus)
                )
                for _ in range(min(prepare.scoring_actors, len(tasks)))
            ]
            waiting = [
                scorers[n % len(scorers)].score.remote(writers[n % len(writers)].write.remote(task))
                for n, task in enumerate(tasks)
            ]
            try:
                while waiting:
                    ready, waiting = ray.wait(waiting, timeout=1.0)
                    if stops():
                        raise Stopped(item.written_at)
                    for writing, scoring in map(ray.get, ready):
                        yield writing, 0.0
                        yield 0.0, scoring
            finally:
                for actor in (*writers, *scorers):
                    ray.kill(actor)


def measure_own_texts(plan: RunPlan, options: WrittenTexts, checkpoint: str) -> TaskFigures:
    """What the student writes at a checkpoint, scored by its teacher, in this process.

    Args:
        plan: the run.
        options: how much is written.
        checkpoint: its location.

    Returns:
        The distance to the teacher there, and what the texts are like, as figures of a task.

    Raises:
        CtdError: nothing could be scored.
    """
    step = steps_done(checkpoint)
    drawn = OnPolicy(
        rounds=1, texts=options.texts, batch=min(options.texts, AT_ONCE), max_new_tokens=options.max_new_tokens,
        temperature=options.temperature,
    )  # fmt: skip
    item = Round(0, step, step, step, plan.training / "own-texts")
    TextMaker(plan, drawn, measures=True).make(item)
    found = read_round(item.folder)
    figures = {title: found[name] for name, title in OWN_FIGURES.items() if name in found}
    return TaskFigures(task="own texts", model=AFTER, figures=figures, errors={}, questions=options.texts)


def _actor(kind: type, gpus: float, resources: dict[str, float] | None) -> Any:
    needs: dict[str, Any] = {"num_gpus": gpus} if gpus else {"num_cpus": 1}
    made: Any = ray.remote(max_restarts=-1, max_task_retries=RETRIES, resources=resources or {}, **needs)(kind)
    return made


def _is_written(task: WritingTask) -> bool:
    """Whether what was written after every prompt of a task is there, whole."""
    files, path = file_system(task.texts)
    if not files.get_file_info(path).is_file:
        return False
    try:
        records = _records(task)
    except ValueError:
        return False
    return len(records) == len(task.prompts) and all(
        prompt.items() <= record.items() for prompt, record in zip(task.prompts, records, strict=True)
    )


def _records(task: WritingTask) -> list[Record]:
    with open_to_read(task.texts) as stream:
        return [json.loads(line) for line in stream.read().decode().splitlines()]


def _has_checkpoint(plan: RunPlan, step: int) -> bool:
    return not step or checkpoint_at(plan.checkpoints, step) in checkpoints(plan.checkpoints)


def _checkpoint_of(plan: RunPlan, step: int) -> str | None:
    if not _has_checkpoint(plan, step):
        raise CtdError(
            f"{plan.training}: what the student wrote after step {step} is missing or damaged, and its checkpoint of "
            f"that step is not kept. Move the checkpoints of later steps aside and run the same command again: it goes "
            "on from an earlier one, and writes again."
        )
    return checkpoint_at(plan.checkpoints, step) if step else None
