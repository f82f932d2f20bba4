"""Options of student, teacher and adapters."""

from typing import Annotated, Literal

from pydantic import Field

from ctd_core.config.base import Options
from ctd_core.config.text import BytesTokenizer, PretrainedTokenizer, TrainedTokenizer

Dtype = Literal["float32", "bfloat16", "float16", "fastest"]
Average = Literal["probabilities", "logprobs"]


class Adapters(Options):
    """Low-rank adapters (LoRA, arXiv 2106.09685): they and the embeddings are trained, all other weights stay."""

    rank: int = Field(default=64, ge=1, description="the rank of the update of each layer")
    alpha: float = Field(default=64.0, gt=0, description="what they add is scaled by alpha / rank")
    targets: list[str] = Field(
        default=["q_proj", "k_proj", "v_proj", "o_proj", "up_proj", "gate_proj", "down_proj"],
        min_length=1,
        description="the names of the linear layers that have one",
    )


class ByteExpansion(Options):
    """What a student of bytes reads beside each byte (arXiv 2503.20083): an embedding of its teacher's, which stays."""

    max_bytes: int = Field(
        default=16, ge=1, description="at each byte the longest token of the teacher that ends there, of at most these"
    )


class Student(Options):
    """The model that learns: a pretrained one, or (without `model`) the teacher under a new tokenizer."""

    tokenizer: Annotated[TrainedTokenizer | BytesTokenizer | PretrainedTokenizer, Field(discriminator="kind")] = Field(
        description="the tokenizer that it works with"
    )
    model: str | None = Field(
        default=None, description="a directory or a hub id; left out, the student is made from the teacher"
    )
    revision: str | None = Field(
        default=None, description="of a hub id: a commit, or a branch or tag, whose later changes are not noticed"
    )
    trust_remote_code: bool = Field(default=False, description="whether code that lies beside `model` may run")
    head: Literal["as_teacher", "untied"] | None = Field(
        default=None,
        description="whether a tied output matrix stays tied; untied is the default for bytes, as_teacher for others; "
        "untied alone fits byte_expansion",
    )
    byte_expansion: ByteExpansion | None = Field(
        default=None, description="for a tokenizer of bytes: read the embeddings of the teacher's tokens too"
    )
    pad_to_multiple_of: int = Field(default=1, ge=1, description="the vocabulary is padded to a multiple of this")
    adapters: Adapters | None = Field(
        default=None,
        description="train low-rank adapters; a student made from its teacher is then its online teacher too",
    )
    chat: Literal["keep", "adopt", "none"] | None = Field(
        default=None,
        description="keep: the teacher's chat template and its special tokens join the tokenizer; adopt: the "
        "tokenizer's own template; none: no template. keep is the default for a student made from its teacher, adopt "
        "for others",
    )
    begin_token: str | None = Field(
        default=None, description="the token that begins a text, where it is not the usual one"
    )
    end_token: str | None = Field(default=None, description="the token that ends a text, where it is not the usual one")

    @property
    def chat_of(self) -> Literal["keep", "adopt", "none"]:
        """`chat`, or its default."""
        return self.chat or ("keep" if self.model is None else "adopt")

    @property
    def unties(self) -> bool:
        """Whether a tied output matrix becomes one of its own."""
        is_asked = self.head == "untied" or self.byte_expansion is not None
        return is_asked or (self.head is None and self.tokenizer.kind == "bytes")

    @property
    def is_its_own_teacher(self) -> bool:
        """Whether the student is its teacher with adapters and other embeddings."""
        return self.adapters is not None and self.model is None


class Teacher(Options):
    """The teacher model."""

    model: str = Field(description="a directory or a hub id")
    revision: str | None = Field(
        default=None, description="of a hub id: a commit, or a branch or tag, whose later changes are not noticed"
    )
    trust_remote_code: bool = Field(default=False, description="whether code that lies beside `model` may run")
    dtype: Dtype = Field(
        default="float32",
        description="what its weights are loaded as for scoring; fastest: bfloat16 on GPUs that have it and on CPUs "
        "with AMX or AVX512-BF16, else float32, so that targets differ a little from machine to machine",
    )
    begin_token: str | None = Field(
        default=None, description="the token that begins a text, where it is not the usual one"
    )
    end_token: str | None = Field(default=None, description="the token that ends a text, where it is not the usual one")
