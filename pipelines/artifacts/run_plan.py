"""Where the artifacts of a run are. A name has the fingerprint of what decides its content, so a changed option creates
a new directory.

runs/demo/tokenizer-<fp>/            the student's tokenizer, where it is trained
runs/demo/prepared/train-<fp>/       shards of the corpus;  prepared/<set>-<fp>/ of an evaluation set
                                     (in prepare.storage, where that is given)
runs/demo/init-<fp>/                 the student before training
runs/demo/train-<fp>/                metrics.jsonl, options.json, step_00000100/ …
runs/demo/model/                     the exported student
runs/demo/report.json

Where `output` is a URI, checkpoints and shards lie there, and all else both there and in a copy on this machine.
"""

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ctd_core.config.base import fingerprint
from ctd_core.config.models import Teacher
from ctd_core.config.run import DECIDED_BY_OBJECTIVES, RunConfig
from ctd_core.config.text import Corpus, HeldOut, Mixture, PretrainedTokenizer, TrainedTokenizer
from ctd_core.config.training import Train
from ctd_core.config.yaml_files import with_values
from ctd_core.errors import CtdError, UsageError
from ctd_core.models.fingerprints import TRANSFER_VERSION, weights_fingerprint
from ctd_core.shards.cache import Cache
from ctd_core.shards.schema import SCHEMA_VERSION
from ctd_core.storage.locations import below, is_uri
from ctd_core.text.corpora import corpus_files, plan_slices
from ctd_core.text.corpora.content import content_fingerprint
from pipelines.artifacts.remote_copy import RunFiles

TRAIN_SET = "train"
IN_JOB = "RAY_JOB_CONFIG_JSON_ENV_VAR"  # Ray sets it for the command of a job


@dataclass(frozen=True)
class DatasetPlan:
    """A set of shards to be made.

    content: the fingerprint of what `corpus` holds, or of the prompts that own texts are written after.
    held_out_fraction: which share of the documents that `corpus` holds out; None for those that it does not hold out.
    teacher_weights: the fingerprint of the teacher that scores it. stamp: the name with the fingerprint of its content.
    """

    name: str
    teacher: Teacher
    teacher_weights: str
    corpus: Corpus
    content: str
    held_out_fraction: float | None
    stamp: str
    location: str


@dataclass(frozen=True)
class TrainingPart:
    """A part of a training in rounds, up to the step `last`.

    own_texts: the set of what the student wrote itself, which it learns from then, beside the corpus or alone. keeps:
    the step whose checkpoint is kept beside the latest ones.
    """

    last: int
    own_texts: DatasetPlan | None = None
    keeps: int | None = None


@dataclass(frozen=True)
class RunPlan:
    """A run's config, with where everything that it makes lies; paths of directories are on this machine.

    tokenizer: the directory of the trained tokenizer, None where the student's tokenizer is not trained.
    init: the directory of the student before training. training: that of metrics and checkpoints.
    origin_weights: the fingerprint of the model that the student is made from: student.model, or else its teacher.
    datasets: the training sets, one for each teacher, and the evaluation sets, by name.
    evaluation: the fingerprint of what the student is measured on.
    part: the part of the training that is meant, where it has several.
    """

    config: RunConfig
    files: RunFiles
    tokenizer: Path | None
    init: Path
    training: Path
    origin_weights: str
    datasets: Mapping[str, DatasetPlan]
    evaluation: str
    part: TrainingPart | None = None

    @property
    def model(self) -> Path:
        """The directory of the exported student."""
        return self.files.directory / "model"

    @property
    def report(self) -> Path:
        """The file of what was measured."""
        return self.files.directory / "report.json"

    @property
    def vocabulary_maps(self) -> Path:
        """The directory of cached maps between vocabularies, which all runs share."""
        return self.files.directory.parent / "maps"

    @property
    def checkpoints(self) -> str:
        """The location of the training's checkpoints."""
        return self.files.within(self.training)

    @property
    def shard_cache(self) -> Cache:
        """Where copies of remote shards lie on this machine."""
        return Cache(user_cache() / "shards", self.config.prepare.cache_bytes)

    @property
    def shares(self) -> dict[str, float] | None:
        """By the label of each source of a mixture its share of the training; None of any other corpus."""
        return self.config.corpus.shares if isinstance(self.config.corpus, Mixture) else None

    @property
    def last_step(self) -> int:
        """Where this part of the training ends."""
        return self.config.train.steps if self.part is None else self.part.last

    @property
    def training_sets(self) -> dict[str | None, DatasetPlan]:
        """The training sets by the name of their teacher among extra_teachers, None for the main teacher's."""
        names: list[str | None] = [None, *self.config.extra_teachers]
        return {name: self.datasets[_train_set(name)] for name in names}


def plan_run(config: RunConfig) -> RunPlan:
    """The plan of a run. Reads the corpus and the weights once, for their fingerprints.

    Args:
        config: the run's options.

    Returns:
        The plan, with absolute locations.

    Raises:
        UsageError: a file of the corpus is missing, or a location would be lost with a job.
    """
    config = resolve_locations(config)
    files = run_files(config)
    corpus_content = _content_of(config.corpus, config)
    tokenizer = _tokenizer_fingerprint(config, corpus_content)
    teachers: dict[str | None, Teacher] = {None: config.teacher} | dict(config.extra_teachers.items())
    weights = {name: weights_fingerprint(teacher.model, teacher.revision) for name, teacher in teachers.items()}
    datasets = _plan_datasets(config, files, tokenizer, weights, corpus_content)
    student = config.student
    student_weights = weights_fingerprint(student.model, student.revision) if student.model is not None else None
    init = files.directory / _init_name(config, tokenizer, weights[None], student_weights)
    is_trained = isinstance(student.tokenizer, TrainedTokenizer)
    return RunPlan(
        config=config,
        files=files,
        tokenizer=files.directory / f"tokenizer-{tokenizer}" if is_trained else None,
        init=init,
        training=files.directory / _training_name(config, datasets, init),
        origin_weights=student_weights or weights[None],
        datasets=datasets,
        evaluation=fingerprint(
            config.evaluate.model_dump(mode="json", exclude={"tasks", "problems", "own_texts"}),
            [datasets[name].stamp for name in config.evaluate.sets],
        ),
    )


def with_training(plan: RunPlan, train: Train) -> RunPlan:
    """The plan of a run that differs in its training alone."""
    config = plan.config.model_copy(update={"train": train})
    training = plan.files.directory / _training_name(config, plan.datasets, plan.init)
    return replace(plan, config=config, training=training)


def variant(plan: RunPlan, values: Mapping[str, Any], source: str) -> RunPlan:
    """The plan of the same run with other values at dotted paths below train.

    Args:
        plan: the run.
        values: values by dotted path, such as train.seed.
        source: what messages call these values.

    Returns:
        The plan of the variant.

    Raises:
        UsageError: a value is wrong, or changes something else; the message names `source`.
    """
    kept = {f"prepare.{name}": getattr(plan.config.prepare, name) for name in DECIDED_BY_OBJECTIVES}
    config = with_values(plan.config, {**kept, **values}, source)
    if config.model_copy(update={"train": plan.config.train}) != plan.config:
        raise UsageError(f"{source} changes more than train.*, so its metrics could not be compared.")
    return with_training(plan, config.train)


def resolve_locations(config: RunConfig) -> RunConfig:
    """`config` with output and prepare.storage as every worker has to call them.

    Args:
        config: the run's options.

    Returns:
        The options with absolute locations.

    Raises:
        UsageError: a relative path would be lost with a job's working directory.
    """
    storage = config.prepare.storage
    prepare = config.prepare.model_copy(update={"storage": storage and _absolute(storage, "prepare.storage")})
    return config.model_copy(update={"output": _absolute(config.output, "output"), "prepare": prepare})


def run_files(config: RunConfig) -> RunFiles:
    """The files of a run: in `output`, or in the store that it names and a copy in the user's cache."""
    output, name = config.output, config.name
    if is_uri(output):
        return RunFiles(user_cache() / "runs" / fingerprint(output) / name, below(output, name))
    return RunFiles(Path(output) / name, None)


def _absolute(location: str, field: str) -> str:
    if is_uri(location):
        return location
    path = Path(location).expanduser()
    if IN_JOB in os.environ and not path.is_absolute():
        raise UsageError(
            f"{field}: {location} would lie in this job's own copy of the working directory, and be lost with it. Name "
            "a directory that all machines share, or a URI such as s3://bucket/folder."
        )
    return str(path.resolve())


def user_cache() -> Path:
    """Where what commands keep for each other lies on this machine."""
    return Path.home() / ".cache" / "ctd"


def check_corpus_unchanged(plan: RunPlan, called: str = "corpus: it") -> None:
    """Raises CtdError, which names it as `called`, where the corpus is another than when the plan was made."""
    if _content_of(plan.config.corpus, plan.config) != plan.datasets[TRAIN_SET].content:
        raise changed_meanwhile(called)


def changed_meanwhile(called: str) -> CtdError:
    """What is raised where something that a command reads changes while it works."""
    return CtdError(f"{called} has changed since the command began. Run it again.")


def _content_of(corpus: Corpus, config: RunConfig) -> str:
    return content_fingerprint(corpus_files(corpus), plan_slices(corpus, config.prepare.slice_bytes))


def _train_set(teacher: str | None) -> str:
    return TRAIN_SET if teacher is None else f"{TRAIN_SET}-{teacher}"


def _tokenizer_fingerprint(config: RunConfig, corpus_content: str) -> str:
    chosen = config.student.tokenizer
    options = chosen.model_dump(mode="json")
    if isinstance(chosen, PretrainedTokenizer):
        file = Path(chosen.name)
        content = hashlib.sha256(file.read_bytes()).hexdigest() if file.is_file() else None
        return fingerprint(options, content or weights_fingerprint(chosen.name, chosen.revision))
    if isinstance(chosen, TrainedTokenizer):
        values = config.corpus.content_values()
        values.pop("sample_fraction")
        return fingerprint(options, values, corpus_content)
    return fingerprint(options)


def _teacher_fingerprint(teacher: Teacher, weights: str) -> str:
    return fingerprint(teacher.model_dump(mode="json"), weights)


def _init_name(config: RunConfig, tokenizer: str, teacher_weights: str, student_weights: str | None) -> str:
    teacher = _teacher_fingerprint(config.teacher, teacher_weights)
    options = config.student.model_dump(mode="json")
    return f"init-{fingerprint(TRANSFER_VERSION, options, student_weights, tokenizer, teacher)}"


def _training_name(config: RunConfig, datasets: Mapping[str, DatasetPlan], init: Path) -> str:
    options = config.train.result_values()
    autocast = config.train.autocast  # losses in bfloat16 are others
    options["autocast"] = autocast != "off" if config.train.use_gpu else autocast == "fastest" and "on CPUs"
    if (prompts := prompts_fingerprint(config, "train.on_policy")) is not None:
        options["prompts"] = prompts
    names = [None, *config.extra_teachers]
    shares = [config.corpus.shares] if isinstance(config.corpus, Mixture) else []
    return f"train-{fingerprint(options, [datasets[_train_set(name)].stamp for name in names], init.name, *shares)}"


def prompts_fingerprint(config: RunConfig, field: str) -> str | None:
    """That of the file of prompts after which the student writes for `field`; None where there is none.

    Raises UsageError where it cannot be read.
    """
    file = config.prompts_of_own_texts.get(field)
    try:
        return None if file is None else hashlib.sha256(Path(file).read_bytes()).hexdigest()
    except OSError as error:
        raise UsageError(f"{field}.prompts: {file} cannot be read ({error.strerror}).") from error


def _plan_datasets(
    config: RunConfig, files: RunFiles, tokenizer: str, weights: Mapping[str | None, str], corpus_content: str
) -> dict[str, DatasetPlan]:
    corpus = config.corpus
    sets: dict[str, tuple[str | None, Corpus, float | None]] = {TRAIN_SET: (None, corpus, None)}
    for name, measured in config.evaluate.sets.items():
        if isinstance(measured, HeldOut):
            documents = corpus.source(measured.source) if isinstance(corpus, Mixture) and measured.source else corpus
            sets[name] = None, documents, measured.sample_fraction
        else:
            sets[name] = None, measured, None
    for extra in config.extra_teachers:
        sets[_train_set(extra)] = extra, corpus, None
    plans = {}
    for name, (teacher_name, documents, held_out) in sets.items():
        teacher = config.teacher if teacher_name is None else config.extra_teachers[teacher_name]
        content = corpus_content if documents is corpus else _content_of(documents, config)
        keeps_chat = teacher_name is not None and config.student.chat_of == "keep"  # of the run's first teacher
        decides = fingerprint(
            SCHEMA_VERSION,
            tokenizer,
            [config.student.begin_token, config.student.end_token, config.student.chat_of],
            _teacher_fingerprint(teacher, weights[teacher_name]),
            documents.content_values(),
            held_out,
            content,
            config.prepare.result_values(),
            *([_teacher_fingerprint(config.teacher, weights[None])] if keeps_chat else []),
        )
        stamp = f"{name}-{decides}"
        if config.prepare.storage is not None:
            location = below(config.prepare.storage, config.name, stamp)
        else:
            location = files.within(files.directory / "prepared" / stamp)
        plans[name] = DatasetPlan(name, teacher, weights[teacher_name], documents, content, held_out, stamp, location)
    return plans
