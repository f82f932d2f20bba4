"""Options of chunking rules."""

from typing import Annotated, Literal

from pydantic import Field

from ctd_core.config.base import Options


class Finest(Options):
    """Every finest chunk by itself."""

    kind: Literal["finest"] = "finest"


class AtWhitespace(Options):
    """Finest chunks joined until the next begins with white space."""

    kind: Literal["whitespace"]


class Debiased(Options):
    """Finest chunks joined until the teacher's probability of a pretoken boundary exceeds gamma."""

    kind: Literal["debiased"]
    gamma: float = Field(default=0.1, ge=0, lt=1, description="the probability of a boundary above which a chunk ends")


class Groups(Options):
    """Groups of `size` finest chunks."""

    kind: Literal["groups"]
    size: int = Field(ge=1, description="finest chunks a group")


AnyChunks = Annotated[Finest | AtWhitespace | Debiased | Groups, Field(discriminator="kind")]
