"""What a user writes in a run's YAML file: every option once, with its only default."""

import hashlib
import json
import re
from typing import Annotated, Literal

from pydantic import BaseModel, Field, model_validator

from ctd_core.config_objectives import Alm, OneToOneKl
from ctd_core.config_train import Train
from ctd_core.options import Fraction, Options
from ctd_core.secrets import fields_with_secrets

Dtype = Literal["float32", "bfloat16", "float16"]


# --- Tokenizers and models --------------------------------------------------------------------------------------


class TrainedTokenizer(Options):
    """A new byte-level BPE tokenizer, trained on the corpus without its held-out documents."""

    kind: Literal["train"]
    vocab_size: int = Field(default=8192, ge=257)
    max_text_bytes: int = Field(default=100_000_000, gt=0, description="train on this much of the corpus at most")


class BytesTokenizer(Options):
    """The 256 bytes and an end-of-text token."""

    kind: Literal["bytes"]


class PretrainedTokenizer(Options):
    """An existing one: a directory, a hub id or a tokenizer.json file."""

    kind: Literal["pretrained"]
    name: str
    revision: str | None = None


class Adapters(Options):
    """Low-rank adapters (LoRA, arXiv 2106.09685): they and the embeddings are trained, all other weights stay."""

    rank: int = Field(default=64, ge=1)
    alpha: float = Field(default=64.0, gt=0, description="what they add is scaled by alpha / rank")
    targets: list[str] = Field(
        default=["q_proj", "k_proj", "v_proj", "o_proj", "up_proj", "gate_proj", "down_proj"],
        min_length=1,
        description="the names of the linear layers that have one",
    )


class Student(Options):
    """The model that learns: a pretrained one, or (without `model`) the teacher under a new tokenizer."""

    tokenizer: Annotated[TrainedTokenizer | BytesTokenizer | PretrainedTokenizer, Field(discriminator="kind")]
    model: str | None = None
    revision: str | None = None
    trust_remote_code: bool = Field(default=False, description="whether code that lies beside `model` may run")
    head: Literal["as_teacher", "untied"] = Field(
        default="as_teacher", description="whether a tied output matrix stays tied"
    )
    vocab_multiple: int = Field(default=1, ge=1, description="the vocabulary is padded to a multiple of this")
    adapters: Adapters | None = Field(
        default=None,
        description="train low-rank adapters; a student made from its teacher is then its live teacher too",
    )
    begin_token: str | None = Field(
        default=None, description="the token that begins a text, where it is not the usual one"
    )
    end_token: str | None = Field(default=None, description="the token that ends a text, where it is not the usual one")

    @property
    def is_its_own_teacher(self) -> bool:
        """Whether adapters alone tell the student from its teacher, but for their embeddings."""
        return self.adapters is not None and self.model is None


class Teacher(Options):
    """The model that is asked."""

    model: str
    revision: str | None = None
    trust_remote_code: bool = Field(default=False, description="whether code that lies beside `model` may run")
    dtype: Dtype = "float32"
    begin_token: str | None = Field(
        default=None, description="the token that begins a text, where it is not the usual one"
    )
    end_token: str | None = Field(default=None, description="the token that ends a text, where it is not the usual one")


# --- Corpora ----------------------------------------------------------------------------------------------------


class Corpus(Options):
    """Shares of a corpus, drawn by a hash of each document's text."""

    held_out_fraction: Fraction = Field(default=0.0, description="documents kept from training, for evaluation")
    sample_fraction: float = Field(default=1.0, gt=0, le=1, description="train on this share of the other documents")


class JsonLines(Corpus):
    """Files of one JSON object a line."""

    kind: Literal["jsonl"]
    paths: list[str] = Field(min_length=1, description="files or patterns such as data/*.jsonl, or s3://bucket/*.jsonl")
    field: str = "text"


class Parquet(Corpus):
    """Parquet files."""

    kind: Literal["parquet"]
    paths: list[str] = Field(min_length=1)
    field: str = "text"


class TextFiles(Corpus):
    """UTF-8 text files, each one document."""

    kind: Literal["text"]
    paths: list[str] = Field(min_length=1)


class HubDataset(Corpus):
    """A dataset of the Hugging Face hub, or a directory written by `save_to_disk`."""

    kind: Literal["dataset"]
    name: str
    configuration: str | None = None
    revision: str | None = None
    split: str = "train"
    field: str = "text"


class StdlibDocs(Corpus):
    """The documentation strings of the running Python's standard library: about 3 MB that need no download."""

    kind: Literal["stdlib-docs"]


class GeneralText(Corpus):
    """The packaged general set: prose, dialogue, word problems, code and facts, written for this project."""

    kind: Literal["general"]


AnyCorpus = Annotated[
    JsonLines | Parquet | TextFiles | HubDataset | StdlibDocs | GeneralText, Field(discriminator="kind")
]


class HeldOut(Options):
    """The held-out documents of the run's own corpus."""

    kind: Literal["held_out"]
    sample_fraction: float = Field(default=1.0, gt=0, le=1, description="use this share of them")


# --- Preparation ------------------------------------------------------------------------------------------------


class Prepare(Options):
    """From documents to Arrow shards."""

    student_window_tokens: int = Field(default=1024, ge=8)
    teacher_window_tokens: int = Field(default=1024, ge=8)
    split_fraction: float = Field(
        default=1.0,
        gt=0,
        le=1,
        description="train on this share of each part's tokens: the windows in which most chunks have several student "
        "tokens; evaluation sets are left as they are",
    )
    targets: bool = Field(default=True, description="whether the teacher's numbers are computed and stored")
    storage: str | None = Field(
        default=None, description="where shards lie, such as s3://bucket/folder; with the rest of the run by default"
    )
    cache_bytes: int = Field(
        default=50_000_000_000,
        gt=0,
        description="copies of such shards that each machine keeps in ~/.cache/ctd",
    )
    max_dropped_fraction: float = Field(default=0.01, ge=0, le=1)
    part_bytes: int = Field(default=4 * 2**20, gt=0, description="text a shard, about")
    top_k: int = Field(
        default=0,
        ge=0,
        le=255,
        description="how many of the teacher's top tokens are stored where a chunk is one token of both sides",
    )
    scoring_batch_tokens: int = Field(default=4096, gt=0, description="padded teacher tokens in a forward pass")
    scoring_actors: int = Field(default=1, ge=1)
    scoring_gpus: float = Field(default=0, ge=0, description="GPUs for each scoring actor")
    scoring_resources: dict[str, Annotated[float, Field(gt=0)]] = Field(
        default={},
        description="what else of a cluster's own resources, such as {teacher: 1}, which certain machines have",
    )


# --- A run ---------------------------------------------------------------------------------------------------------


class Evaluate(Options):
    """What the student is measured on: sets by name. `gap_closed` is read on the one named in `gap_set`."""

    sets: dict[str, Annotated[AnyCorpus | HeldOut, Field(discriminator="kind")]] = Field(default={})
    batch_tokens: int = Field(default=4096, gt=0)
    gap_set: str | None = None

    @model_validator(mode="after")
    def _sets_have_names(self) -> "Evaluate":
        wrong = [name for name in self.sets if re.match(r"train(-|$)", name) or not re.fullmatch(r"[\w.-]+", name)]
        if wrong:
            raise ValueError(
                f"{wrong[0]!r} cannot name a set: names are letters, digits, _ - and ., and do not begin `train-`"
            )
        if self.gap_set is not None and self.gap_set not in self.sets:
            raise ValueError(f"gap_set is {self.gap_set!r}, but the sets are {sorted(self.sets)}")
        return self


class Sample(Options):
    """Texts that teacher and student continue at the end of a run, greedily."""

    prompts: list[str] = Field(default=[])
    max_new_tokens: int = Field(default=40, gt=0)


class RunConfig(Options):
    """A whole run: what goes in, how it is prepared, trained and measured. Everything lands in `output`/`name`."""

    name: str = Field(pattern=r"^[\w-][\w.-]*$")
    output: str = Field(default="runs", description="a directory, or s3://bucket/folder, that all machines share")
    student: Student
    teacher: Teacher
    more_teachers: dict[Annotated[str, Field(pattern=r"^[\w.-]+$")], Teacher] = Field(
        default={}, description="by name; alm learns from one that it names, on shards of their own"
    )
    corpus: AnyCorpus
    prepare: Prepare = Prepare()
    train: Train
    evaluate: Evaluate = Evaluate()
    sample: Sample = Sample()

    @model_validator(mode="after")
    def _consistent(self) -> "RunConfig":
        held_out = [name for name, chosen in self.evaluate.sets.items() if isinstance(chosen, HeldOut)]
        if held_out and not self.corpus.held_out_fraction:
            raise ValueError(f"evaluate.sets.{held_out[0]} is held out of a corpus whose held_out_fraction is 0")
        if self.student.model is not None and (self.student.head != "as_teacher" or self.student.vocab_multiple != 1):
            raise ValueError("student.head and student.vocab_multiple are for a student made from its teacher")
        if self.student.model is not None and isinstance(self.student.tokenizer, TrainedTokenizer):
            raise ValueError(
                "student.model has embeddings for a tokenizer of its own, not for one that is trained here: name it in "
                "student.tokenizer: {kind: pretrained, name: …}, or leave student.model out"
            )
        if not self.prepare.targets and self.evaluate.sets:
            raise ValueError("evaluate.sets are measured against the teacher, which needs prepare.targets: true")
        if self.train.batch_tokens < self.prepare.student_window_tokens:
            raise ValueError(
                f"train.batch_tokens is {self.train.batch_tokens}, less than one window of "
                f"prepare.student_window_tokens, {self.prepare.student_window_tokens}"
            )
        if not self.prepare.targets and any(isinstance(objective, Alm) for objective in self.train.objectives):
            raise ValueError("train.objectives holds alm, which needs prepare.targets: true")
        if not self.prepare.top_k and any(isinstance(objective, OneToOneKl) for objective in self.train.objectives):
            raise ValueError("train.objectives holds one_to_one_kl, which needs prepare.top_k above 0, such as 16")
        named = [one.teacher if isinstance(one, Alm) else None for one in self.train.objectives]
        if unknown := [one for one in named if one is not None and one not in self.more_teachers]:
            raise ValueError(f"train.objectives: {unknown[0]!r} is none of more_teachers, {sorted(self.more_teachers)}")
        if idle := [one for one in (None, *self.more_teachers) if one not in named]:
            who = "teacher" if idle[0] is None else f"more_teachers.{idle[0]}"
            raise ValueError(
                f"no objective learns from {who}: alm learns from the one that it names, others from teacher"
            )
        if secrets := list(fields_with_secrets(self.model_dump(mode="json"))):
            raise ValueError(
                f"{', '.join(secrets)}: a URI with a key in it would be shown in messages and stored with the run: "
                "leave the key out, and set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or what your store reads"
            )
        if self.train.strategy == "fsdp" and self.student.is_its_own_teacher and self.train.live_objectives:
            raise ValueError(
                f"{self.train.live_objectives[0]} asks the student without its adapters at every step, which "
                "train.strategy: fsdp shares out: take ddp"
            )
        if self.prepare.top_k and not self.prepare.targets:
            raise ValueError("prepare.top_k is part of the targets, which prepare.targets: false leaves out")
        return self


def fingerprint(*parts: object) -> str:
    """16 hexadecimal digits that stand for these values: options, or anything that JSON can hold."""
    plain = [part.model_dump(mode="json") if isinstance(part, BaseModel) else part for part in parts]
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()[:16]
