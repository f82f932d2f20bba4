"""Options of tokenizers and corpora."""

from typing import Annotated, Any, Literal

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
    revision: str | None = Field(
        default=None, description="of a hub id: a commit, or a branch or tag, whose later changes are not noticed"
    )


class Corpus(Options):
    """Fractions of a corpus, drawn by a hash of each document's text."""

    held_out_fraction: Fraction = Field(default=0.0, description="documents kept from training, for evaluation")
    sample_fraction: float = Field(
        default=1.0,
        gt=0,
        le=1,
        description="train on this fraction of the other documents; held-out sets have their own",
    )
    deduplicate: bool = Field(default=False, description="leave out documents that are the same as an earlier one")

    @property
    def parts(self) -> "list[Corpus]":
        """The corpora that it consists of: itself, or the sources of a mixture."""
        return [self]

    @property
    def is_chat(self) -> bool:
        """Whether it holds conversations."""
        return False

    def content_values(self) -> dict[str, Any]:
        """The values that decide which documents there are, as JSON has them."""
        return self.model_dump(mode="json")


class Records(Corpus):
    """Records with a text, or with a conversation, which each tokenizer's own chat template writes."""

    field: str = Field(default="text", description="the name of the text; data.text for one within another")
    messages: str | None = Field(
        default=None,
        description="in place of a text: the name of a list of messages, each with role and content; a field `system` "
        "of the same record is their first",
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
        if self.field != "text" and self.columns != [self.field]:
            raise ValueError(f"field is for texts without turns: leave it out, or {' and '.join(self.columns)}")
        if self.as_text and self.prompt is None:
            raise ValueError("as_text is for prompt and response")
        return self

    @property
    def is_chat(self) -> bool:
        """Whether it holds conversations."""
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


class OwnTexts(Records):
    """What the student of a run wrote itself, in JSON lines with what was `generated`; no run's file names it."""

    kind: Literal["own-texts"]
    paths: list[str]


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
    revision: str | None = Field(
        default=None, description="of a hub id: a commit, or a branch or tag, whose later changes are not noticed"
    )
    split: str = Field(default="train", description="of the dataset")
    streaming: bool = Field(
        default=False, description="load its first documents alone, as many as the bounds below say, and not all of it"
    )
    max_documents: int | None = Field(default=None, gt=0, description="with streaming: so many documents at most")
    max_text_bytes: int | None = Field(default=None, gt=0, description="with streaming: so much text at most, about")

    @model_validator(mode="after")
    def _streams_are_bounded(self) -> "HubDataset":
        is_bounded = self.max_documents is not None or self.max_text_bytes is not None
        if self.streaming != is_bounded:
            raise ValueError("streaming belongs with max_documents or max_text_bytes: give both, or neither")
        return self


class StdlibDocs(Corpus):
    """The documentation strings of the running Python's standard library: about 3 MB that need no download."""

    kind: Literal["stdlib-docs"]


class GeneralText(Corpus):
    """The packaged general set: prose, dialogue, word problems, code and facts, written for this project."""

    kind: Literal["general"]


class WrittenConversations(Corpus):
    """Packaged conversations that SmolLM2-135M-Instruct wrote with itself: what they say need not be true."""

    kind: Literal["conversations"]
    train_on: Literal["assistant", "all"] = Field(default="all", description="which messages are learned")

    @property
    def is_chat(self) -> bool:
        """Whether it holds conversations."""
        return True


AnyRecords = Annotated[JsonLines | Parquet | Csv | Arrow | HubDataset, Field(discriminator="kind")]
Part = JsonLines | Parquet | Csv | Arrow | TextFiles | HubDataset | StdlibDocs | GeneralText | WrittenConversations


class Source(Options):
    """A corpus in a mixture. `{kind: jsonl, paths: [a.jsonl], weight: 2}` is short for `{corpus: {…}, weight: 2}`."""

    corpus: Part = Field(discriminator="kind", description="the corpus, without fractions of its own")
    weight: float = Field(
        default=1.0, gt=0, description="its share of the bytes that are learned, of the sum of all weights"
    )
    label: str | None = Field(
        default=None, pattern=r"^[\w.-]+$", description="what results call it; its kind and number by default"
    )

    @model_validator(mode="before")
    @classmethod
    def _written_in_short(cls, values: Any) -> Any:
        if not isinstance(values, dict) or "corpus" in values:
            return values
        own = {name: value for name, value in values.items() if name in ("weight", "label")}
        return own | {"corpus": {name: value for name, value in values.items() if name not in own}}

    @model_validator(mode="after")
    def _takes_the_mixture_s_fractions(self) -> "Source":
        if self.corpus.held_out_fraction or self.corpus.sample_fraction != 1 or self.corpus.deduplicate:
            raise ValueError(
                "held_out_fraction, sample_fraction and deduplicate belong to the mixture, not to its sources"
            )
        return self


class Mixture(Corpus):
    """Several corpora, each learned as often or as little as its weight asks: of no text are there two copies."""

    kind: Literal["mixture"]
    sources: list[Source] = Field(min_length=1, description="the corpora, each with a weight")

    @model_validator(mode="after")
    def _labels_are_different(self) -> "Mixture":
        if len(self.shares) < len(self.sources):
            raise ValueError(f"labels of sources have to be different: {', '.join(self.labels)}")
        return self

    @property
    def labels(self) -> list[str]:
        """What results call each source."""
        return [source.label or f"{source.corpus.kind}-{number}" for number, source in enumerate(self.sources)]

    @property
    def shares(self) -> dict[str, float]:
        """The share of each source by its label; together 1."""
        total = sum(source.weight for source in self.sources)
        return dict(zip(self.labels, (source.weight / total for source in self.sources), strict=True))

    @property
    def parts(self) -> list[Corpus]:
        """The sources' corpora."""
        return [source.corpus for source in self.sources]

    def source(self, label: str) -> Corpus:
        """The corpus of one source, with the mixture's fractions; raises KeyError where there is none."""
        corpus = dict(zip(self.labels, self.parts, strict=True))[label]
        return corpus.model_copy(
            update={name: getattr(self, name) for name in ("held_out_fraction", "sample_fraction", "deduplicate")}
        )

    def content_values(self) -> dict[str, Any]:
        """All values but the weights, which training alone heeds."""
        return self.model_dump(mode="json", exclude={"sources": {"__all__": {"weight"}}})


AnyCorpus = Annotated[
    Part | Mixture,
    Field(discriminator="kind"),
]


class HeldOut(Options):
    """The held-out documents of the run's own corpus."""

    kind: Literal["held_out"]
    source: str | None = Field(
        default=None, description="of a mixture: the label of the source, all of them by default"
    )
    sample_fraction: float = Field(default=1.0, gt=0, le=1, description="use this fraction of them")
