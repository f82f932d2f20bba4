"""Paths of a run's artifacts. A name has the fingerprint of what decides its content, so a changed option creates a new
directory.

runs/demo/tokenizer-<fp>/            the student's tokenizer, where it is trained
runs/demo/prepared/train-<fp>/       shards of the corpus;  prepared/<set>-<fp>/ of an evaluation set
                                     (in prepare.storage, where that is given)
runs/demo/init-<fp>/                 the student before training
runs/demo/train-<fp>/                metrics.jsonl, step_00000100/ …
runs/demo/model/                     the exported student
runs/demo/report.json

Where `output` is a URI, checkpoints and shards lie there, and all else both there and in a copy on this machine.
"""

import copy
import hashlib
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from ctd_core.config.base import fingerprint
from ctd_core.config.models import Teacher
from ctd_core.config.run import RunConfig
from ctd_core.config.text import Corpus, HeldOut, PretrainedTokenizer, TrainedTokenizer
from ctd_core.config.training import Train
from ctd_core.config.yaml_files import with_values
from ctd_core.errors import UsageError
from ctd_core.models.loading import weights_fingerprint
from ctd_core.models.transfer import TRANSFER_VERSION
from ctd_core.shards.cache import Cache
from ctd_core.shards.schema import SCHEMA_VERSION
from ctd_core.storage.locations import below, is_uri, size_and_time
from ctd_core.text.corpora import CorpusSlice, corpus_files, plan_slices
from pipelines.artifacts.remote_copy import RunFiles

logger = logging.getLogger(__name__)
TRAIN_SET = "train"
IN_JOB = "RAY_JOB_CONFIG_JSON_ENV_VAR"  # Ray sets it for the command of a job
READ_BYTES = 256 * 2**20  # a corpus of up to this is known by its content, so that a copy of it is the same one


@dataclass(frozen=True)
class DatasetPlan:
    """A set of shards to be made: which documents, and where; `stamp` stands for its content."""

    name: str
    teacher: Teacher
    corpus: Corpus
    held_out_fraction: float | None
    parts: list[CorpusSlice]
    stamp: str
    location: str


class Places:
    """The places of one run; what has to be read for a fingerprint is read once."""

    def __init__(self, config: RunConfig) -> None:
        storage = config.prepare.storage
        prepare = config.prepare.model_copy(update={"storage": storage and _everywhere(storage, "prepare.storage")})
        output = _everywhere(config.output, "output")
        self.config = config.model_copy(update={"output": output, "prepare": prepare})
        self._weights: dict[tuple[str, str | None], str] = {}

    @property
    def files(self) -> RunFiles:
        """The files of this run."""
        chosen, name = self.config.output, self.config.name
        return RunFiles(self.output / name, below(chosen, name) if is_uri(chosen) else None)

    @property
    def output(self) -> Path:
        """`output`, or this machine's copy of it, in the home of whoever works here."""
        chosen = self.config.output
        return _kept() / "runs" / fingerprint(chosen) if is_uri(chosen) else Path(chosen)

    @property
    def directory(self) -> Path:
        """Where everything of this run lies, or this machine's copies of it."""
        return self.files.directory

    def with_train(self, train: Train) -> "Places":
        """The places of a run that differs in its training alone; what was read for this one is not read again."""
        other = copy.copy(self)
        other.config = self.config.model_copy(update={"train": train})
        other.__dict__.pop("_train_name", None)
        return other

    @property
    def tokenizer(self) -> Path | None:
        """Where the trained tokenizer lies; None where the student's tokenizer is not trained."""
        return self.directory / f"tokenizer-{self._tokenizer_fingerprint}" if self._is_trained else None

    @cached_property
    def datasets(self) -> dict[str, DatasetPlan]:
        """The training sets, one for each teacher, and the evaluation sets, by name."""
        main, corpus = self.config.teacher, self.config.corpus
        chosen: dict[str, tuple[Teacher, Corpus, float | None]] = {TRAIN_SET: (main, corpus, None)}
        for name, one in self.config.evaluate.sets.items():
            chosen[name] = (main, corpus, one.sample_fraction) if isinstance(one, HeldOut) else (main, one, None)
        for name, teacher in self.config.more_teachers.items():
            chosen[_train_set(name)] = (teacher, corpus, None)
        return {name: self._dataset(name, *one) for name, one in chosen.items()}

    @property
    def training_sets(self) -> dict[str | None, DatasetPlan]:
        """The training sets by the name of their teacher among more_teachers, None for the main one's."""
        names: list[str | None] = [None, *self.config.more_teachers]
        return {name: self.datasets[TRAIN_SET if name is None else _train_set(name)] for name in names}

    @property
    def init(self) -> Path:
        """The student before training."""
        return self.directory / self._init_name

    @cached_property
    def _init_name(self) -> str:
        options = self.config.student
        own = weights_fingerprint(options.model, options.revision) if options.model is not None else None
        teacher = self._teacher_fingerprint(self.config.teacher)
        decides = fingerprint(
            TRANSFER_VERSION, options.model_dump(mode="json"), own, self._tokenizer_fingerprint, teacher
        )
        return f"init-{decides}"

    @property
    def train(self) -> Path:
        """Metrics and checkpoints."""
        return self.directory / self._train_name

    @cached_property
    def _train_name(self) -> str:
        train = self.config.train
        options = train.result_values()
        options["autocast"] = train.use_gpu and train.autocast == "auto"  # losses in bfloat16 are others
        data = [one.stamp for one in self.training_sets.values()]
        return f"train-{fingerprint(options, data, self._init_name)}"

    @property
    def checkpoints(self) -> str:
        """The location of the training's checkpoints."""
        return self.files.within(self.train)

    @cached_property
    def evaluation(self) -> str:
        """Stands for what the student is measured on."""
        sets = [self.datasets[name].stamp for name in self.config.evaluate.sets]
        return fingerprint(self.config.evaluate, sets)

    @property
    def cache(self) -> Cache:
        """Where copies of remote shards lie on this machine."""
        return Cache(_kept() / "shards", self.config.prepare.cache_bytes)

    @property
    def model(self) -> Path:
        """The exported student."""
        return self.directory / "model"

    @property
    def report(self) -> Path:
        """What was measured."""
        return self.directory / "report.json"

    @property
    def _is_trained(self) -> bool:
        return isinstance(self.config.student.tokenizer, TrainedTokenizer)

    def teacher_weights(self, teacher: Teacher) -> str:
        """Stands for a teacher's weights."""
        key = teacher.model, teacher.revision
        if key not in self._weights:
            self._weights[key] = weights_fingerprint(*key)
        return self._weights[key]

    def _teacher_fingerprint(self, teacher: Teacher) -> str:
        return fingerprint(teacher.model_dump(mode="json"), self.teacher_weights(teacher))

    @cached_property
    def _corpus_parts(self) -> list[CorpusSlice]:
        return plan_slices(self.config.corpus, self.config.prepare.part_bytes)

    @cached_property
    def _corpus_content(self) -> str:
        return _content(self.config.corpus, self._corpus_parts)

    @cached_property
    def _tokenizer_fingerprint(self) -> str:
        chosen = self.config.student.tokenizer
        options = chosen.model_dump(mode="json")
        if isinstance(chosen, PretrainedTokenizer):
            file = Path(chosen.name)
            content = hashlib.sha256(file.read_bytes()).hexdigest() if file.is_file() else None
            return fingerprint(options, content or weights_fingerprint(chosen.name, chosen.revision))
        if not self._is_trained:
            return fingerprint(options)
        corpus = self.config.corpus.model_dump(mode="json", exclude={"sample_fraction"})
        return fingerprint(options, corpus, self._corpus_content)

    def _dataset(self, name: str, teacher: Teacher, corpus: Corpus, held_out: float | None) -> DatasetPlan:
        own = corpus is self.config.corpus
        parts = self._corpus_parts if own else plan_slices(corpus, self.config.prepare.part_bytes)
        student = self.config.student
        decides = fingerprint(
            SCHEMA_VERSION,
            self._tokenizer_fingerprint,
            [student.begin_token, student.end_token],
            self._teacher_fingerprint(teacher),
            corpus.model_dump(mode="json"),
            held_out,
            self._corpus_content if own else _content(corpus, parts),
            self.config.prepare.result_values(),
        )
        stamp, storage = f"{name}-{decides}", self.config.prepare.storage
        if storage is not None:
            location = below(storage, self.config.name, stamp)
        else:
            location = self.files.within(self.directory / "prepared" / stamp)
        return DatasetPlan(name, teacher, corpus, held_out, parts, stamp, location)


def variant(base: Places, values: Mapping[str, Any], source: str) -> Places:
    """The run of `base` with other values at dotted paths below train; raises UsageError, naming `source`."""
    config = with_values(base.config, values, source)
    if config.model_copy(update={"train": base.config.train}) != base.config:
        raise UsageError(f"{source} changes more than train.*, so its figures could not be compared.")
    return base.with_train(config.train)


def _everywhere(location: str, field: str) -> str:
    """`location` as every worker has to call it; raises UsageError, naming `field`, where a job would lose it."""
    if is_uri(location):
        return location
    path = Path(location).expanduser()
    if IN_JOB in os.environ and not path.is_absolute():
        raise UsageError(
            f"{field}: {location} would lie in this job's own copy of the working directory, and be lost with it. Name "
            "a directory that all machines share, or a URI such as s3://bucket/folder."
        )
    return str(path.resolve())


def _kept() -> Path:
    """Where each machine keeps copies of what lies elsewhere."""
    return Path.home() / ".cache" / "ctd"


def _train_set(teacher: str) -> str:
    return f"{TRAIN_SET}-{teacher}"


def _content(corpus: Corpus, parts: list[CorpusSlice]) -> str:
    """Stands for what the parts hold: the files by name and content (those of a large corpus, and remote ones, by size
    and time), the texts themselves where there are none.
    """
    digest = hashlib.sha256()
    files = {file: size_and_time(file) for file in corpus_files(corpus)}
    is_small = sum(size for size, _ in files.values()) <= READ_BYTES
    if files and (not is_small or any(map(is_uri, files))):
        logger.info("corpus: %d files are known by size and time of change: their content is not compared", len(files))
    for file, (size, changed) in files.items():
        is_read = is_small and not is_uri(file)
        content = hashlib.sha256(Path(file).read_bytes()).hexdigest() if is_read else changed
        digest.update(repr((file, size, content)).encode())
    for part in parts:
        digest.update(repr((part.source, part.start, part.stop)).encode())
        for document in part.documents:
            digest.update(document.text.encode(errors="surrogatepass") + b"\0")
    return digest.hexdigest()
