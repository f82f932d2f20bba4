"""Options of tokenizers and corpora."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from ctd_core.config.base import Fraction, Options


class TrainedTokenizer(Options):
    """A new byte-level BPE tokenizer, trained on the corpus without its held-out documents."""

    kind: Literal["train"]
    vocab_size: int = Field(default=8192, ge=257, description="entries, the 256 bytes and the end of text among them")
    max_text_bytes: int = Field(default=100_000_000, gt=0, description="train on this much of the corpus at most")


class BytesTokenizer(Options):
    """The 256 bytes and an end-of-text token."""

    kind: Literal["bytes"]


class PretrainedTokenizer(Options):
    """An existing one: a directory, a hub id or a tokenizer.json file."""

    kind: Literal["pretrained"]
    name: str = Field(description="a directory, a hub id or a tokenizer.json file")
    revision: str | None = Field(default=None, description="of a hub id: a branch, tag or commit")


class Corpus(Options):
    """Fractions of a corpus, drawn by a hash of each document's text."""

    held_out_fraction: Fraction = Field(default=0.0, description="documents kept from training, for evaluation")
    sample_fraction: float = Field(
        default=1.0,
        gt=0,
        le=1,
        description="train on this fraction of the other documents; held-out sets have their own",
    )


class Records(Corpus):
    """Records with a text, or with a conversation, which each tokenizer's own chat template writes."""

    field: str = Field(default="text", description="the name of the text; data.text for one within another")
    messages: str | None = Field(
        default=None, description="in place of a text: the name of a list of messages, each with role and content"
    )
    prompt: str | None = Field(default=None, description="in place of a text: the name of what a user wrote …")
    response: str | None = Field(default=None, description="… and of the assistant's answer")
    as_text: bool = Field(
        default=False,
        description="prompt and response as one text without a chat template, of which the response is learned",
    )
    train_on: Literal["assistant", "all"] = Field(
        default="assistant", description="which messages of a conversation are learned"
    )

    @model_validator(mode="after")
    def _one_way_to_read(self) -> "Records":
        if (self.prompt is None) != (self.response is None):
            raise ValueError("prompt and response belong together: name both")
        if self.messages is not None and self.prompt is not None:
            raise ValueError("name either messages, or prompt and response")
        if self.as_text and self.prompt is None:
            raise ValueError("as_text is for prompt and response")
        return self

    @property
    def is_chat(self) -> bool:
        """Whether its records hold conversations."""
        return self.messages is not None or (self.prompt is not None and not self.as_text)

    @property
    def columns(self) -> list[str]:
        """The names of what is read of each record."""
        if self.messages is not None:
            return [self.messages]
        if self.prompt is not None and self.response is not None:
            return [self.prompt, self.response]
        return [self.field]

    @property
    def columns_option(self) -> str:
        """The options that `columns` come from, as errors name them."""
        if self.messages is not None:
            return "corpus.messages"
        return "corpus.field" if self.prompt is None else "corpus.prompt and corpus.response"


class JsonLines(Records):
    """Files of one JSON object a line, or of one JSON array; compressed ones (.gz, .bz2, .xz, .zst) too."""

    kind: Literal["jsonl"]
    paths: list[str] = Field(min_length=1, description="files or patterns such as data/*.jsonl, or s3://bucket/*.jsonl")


class Parquet(Records):
    """Parquet files."""

    kind: Literal["parquet"]
    paths: list[str] = Field(min_length=1, description="files or patterns, as for jsonl")


class Csv(Records):
    """Files of comma-separated values with a line of names, or of other separators."""

    kind: Literal["csv"]
    paths: list[str] = Field(min_length=1, description="files or patterns, as for jsonl")
    delimiter: str = Field(default=",", min_length=1, max_length=1, description='"\\t" for tabs')


class Arrow(Records):
    """Arrow IPC files or streams."""

    kind: Literal["arrow"]
    paths: list[str] = Field(min_length=1, description="files or patterns, as for jsonl")


class TextFiles(Corpus):
    """UTF-8 text files, each one document."""

    kind: Literal["text"]
    paths: list[str] = Field(min_length=1, description="files or patterns, as for jsonl")


class HubDataset(Records):
    """A dataset of the Hugging Face hub, or a directory written by `save_to_disk`."""

    kind: Literal["dataset"]
    name: str = Field(description="a hub id, or a directory written by `save_to_disk`")
    configuration: str | None = Field(default=None, description="of a dataset that has several")
    revision: str | None = Field(default=None, description="of a hub id: a branch, tag or commit")
    split: str = Field(default="train", description="of the dataset")


class StdlibDocs(Corpus):
    """The documentation strings of the running Python's standard library: about 3 MB that need no download."""

    kind: Literal["stdlib-docs"]


class GeneralText(Corpus):
    """The packaged general set: prose, dialogue, word problems, code and facts, written for this project."""

    kind: Literal["general"]


AnyCorpus = Annotated[
    JsonLines | Parquet | Csv | Arrow | TextFiles | HubDataset | StdlibDocs | GeneralText, Field(discriminator="kind")
]


class HeldOut(Options):
    """The held-out documents of the run's own corpus."""

    kind: Literal["held_out"]
    sample_fraction: float = Field(default=1.0, gt=0, le=1, description="use this fraction of them")
