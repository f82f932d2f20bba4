"""Options of objectives."""

import math
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from ctd_core.config.align import AnyChunks, Debiased, Finest
from ctd_core.config.base import Options

# What an objective needs beside the student's log-probabilities of the text.
# targets: the teacher's stored numbers a chunk. top_k: its stored top tokens. prefixes: its stored likely tokens of the
# student. boundary: the student's probability of a pretoken boundary. teacher: the teacher itself, beside the student.
Need = Literal["targets", "top_k", "prefixes", "boundary", "teacher"]
Needs = frozenset[Need]


class Alm(Options):
    """Approximate likelihood matching (arXiv 2503.20083). The defaults are what `ctd compare` measured as the best."""

    kind: Literal["alm"]
    weight: float = Field(default=1.0, gt=0, description="its share of the loss")
    divergence: Literal["kl", "reverse_kl", "tv"] = Field(default="tv", description="of the binarised likelihoods")
    temperature: float = Field(default=math.inf, gt=0, allow_inf_nan=True, description=".inf for the limit")
    chunks: AnyChunks = Field(default=Finest(), description="how finest chunks are joined")
    boundary: bool = Field(
        default=False, description="whether a chunk's likelihood includes that a pretoken boundary follows"
    )
    average: Literal["chunk", "byte", "token"] = Field(
        default="chunk",
        description="what the loss is a mean over: merged chunks, their bytes (markers have none) or student tokens",
    )
    teacher: str | None = Field(default=None, description="one of extra_teachers, to learn from that one instead")
    exclude_one_to_one: bool = Field(
        default=False, description="whether chunks that are one token of both sides are left to one_to_one_kl"
    )

    @property
    def needs(self) -> Needs:
        """What it needs."""
        return frozenset({"targets", "boundary"} if self.boundary else {"targets"})


PUBLISHED_ALM = Alm(
    kind="alm", divergence="kl", temperature=5.0, chunks=Debiased(kind="debiased"), boundary=True
)  # as in arXiv 2503.20083


class Sft(Options):
    """Next-token cross-entropy on the corpus."""

    needs: ClassVar[Needs] = frozenset()
    kind: Literal["sft"]
    weight: float = Field(default=1.0, gt=0, description="its share of the loss")


class OneToOneKl(Options):
    """Kullback-Leibler divergence over the stored top tokens where a chunk is one token of both sides."""

    needs: ClassVar[Needs] = frozenset({"top_k"})
    kind: Literal["one_to_one_kl"]
    weight: float = Field(default=1.0, gt=0, description="its share of the loss")
    direction: Literal["forward", "reverse"] = Field(
        default="reverse", description="forward: KL(teacher ‖ student); reverse: the other"
    )


class PrefixKl(Options):
    """Kullback-Leibler divergence of the student's next token, where the teacher's next token is being spelled.

    The teacher's probabilities of all its tokens that agree with what is spelled so far, added up by the student's
    next token (compare arXiv 2512.14954).
    """

    needs: ClassVar[Needs] = frozenset({"prefixes"})
    kind: Literal["prefix_kl"]
    weight: float = Field(default=1.0, gt=0, description="its share of the loss")
    direction: Literal["forward", "reverse"] = Field(
        default="forward", description="forward: KL(teacher ‖ student); reverse: the other"
    )
    temperature: float = Field(
        default=1.0, gt=0, description="of both sides' probabilities of the stored tokens and of the rest"
    )

    @property
    def takes_drawn(self) -> bool:
        """Whether its gradient is, in expectation, that of the whole distribution where tokens are drawn."""
        return self.direction == "forward" and self.temperature == 1.0


class PolicyGradient(Options):
    """The policy gradient of the student's own texts: a chunk that its teacher finds likelier is written more often."""

    needs: ClassVar[Needs] = frozenset({"targets"})
    kind: Literal["policy_gradient"]
    weight: float = Field(default=1.0, gt=0, description="its share of the loss")
    credit: Literal["even", "proportional", "whole"] = Field(
        default="proportional",
        description="what a token gets of its chunk's advantage: an even share, one in proportion to its own "
        "log-probability, or all",
    )
    max_advantage: float = Field(default=10.0, gt=0, description="in nats, of a chunk, either way")


class Online(Options):
    """An objective that loads the teacher beside the student: stored targets do not hold what it compares."""

    needs: ClassVar[Needs] = frozenset({"teacher"})
    weight: float = Field(default=1.0, gt=0, description="its share of the loss")


class Kd(Online):
    """Kullback-Leibler divergence of the whole distribution, for one tokenizer on both sides (arXiv 1503.02531)."""

    kind: Literal["kd"]
    temperature: float = Field(default=1.0, gt=0, description="of both softmaxes")


class Uld(Online):
    """Universal logit distillation: distance of sorted probabilities (arXiv 2402.12030)."""

    kind: Literal["uld"]
    positions: Literal["same_index", "one_to_one"] = Field(
        default="same_index",
        description="compare the n-th tokens of both sides, as published, or where a chunk is one token of both sides",
    )


class MinEd(Online):
    """Divergence under a map of vocabularies by edit distance at one-to-one chunks, cross-entropy elsewhere
    (arXiv 2401.10491).
    """

    kind: Literal["min_ed"]
    temperature: float = Field(default=2.0, gt=0, description="of all softmaxes")


class PKl(Online):
    """Divergence of the student projected onto the teacher's vocabulary, at one-to-one chunks (arXiv 2605.21699)."""

    kind: Literal["p_kl"]


class Gold(Online):
    """Divergence on the tokens that both share, distance of the sorted rest, at every chunk (TRL's GOLD)."""

    kind: Literal["gold"]


class HiddenStates(Online):
    """Distance of the last hidden states at chunk ends (arXiv 2503.20083)."""

    kind: Literal["hidden_states"]


class Dskd(Online):
    """Dual-space distillation: attention from one side's tokens to the other's, projections (arXiv 2406.17328)."""

    kind: Literal["dskd"]


AnyObjective = Annotated[
    Alm | PrefixKl | Sft | PolicyGradient | OneToOneKl | Kd | Uld | MinEd | PKl | Gold | HiddenStates | Dskd,
    Field(discriminator="kind"),
]


def extra_teacher_of(objective: AnyObjective) -> str | None:
    """The name of the extra teacher that `objective` learns from; None for the main one."""
    return objective.teacher if isinstance(objective, Alm) else None
