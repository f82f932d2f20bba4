"""Options of preparation: from a corpus to shards."""

from typing import Annotated

from pydantic import Field

from ctd_core.config.base import Options, resource

PREFIX_K = 8  # tokens, where an objective asks for some and nothing else is said


class Prepare(Options):
    """From documents to Arrow shards."""

    student_window_tokens: int = Field(
        default=1024, ge=8, description="documents longer than this are cut, at the ends of chunks"
    )
    teacher_window_tokens: int = Field(default=1024, ge=8, description="the same on the teacher's side")
    fragmented_fraction: float = Field(
        default=1.0,
        gt=0,
        le=1,
        description="train on this fraction of the tokens of each slice's windows in which something is learned: those "
        "whose chunks have most student tokens; evaluation sets are left as they are",
    )
    targets: bool = Field(default=True, description="whether the teacher's numbers are computed and stored")
    storage: str | None = resource(
        default=None,
        description="where shards lie, such as s3://bucket/folder; with the rest of the run by default. Elsewhere "
        "they are made again",
    )
    cache_bytes: int = resource(
        default=50_000_000_000,
        gt=0,
        description="the size of each machine's cache of remote shards, in ~/.cache/ctd",
    )
    max_dropped_fraction: float = resource(
        default=0.01, ge=0, le=1, description="more dropped documents than this fail the job"
    )
    slice_bytes: int = Field(default=4 * 2**20, gt=0, description="text a shard, about")
    top_k: int = Field(
        default=0,
        ge=0,
        le=255,
        description="how many of the teacher's top tokens are stored where a chunk is one token of both sides",
    )
    prefix_k: int | None = Field(
        default=None,
        ge=0,
        le=255,
        description="how many tokens of the student are stored at each of its tokens, by the teacher's next one; by "
        "default 8 where an objective asks for them, else none",
    )
    prefix_drawn: int | None = Field(
        default=None,
        ge=0,
        le=255,
        description="how many of these are drawn, from all but the likeliest and by their probabilities, and stand for "
        "all of those; by default half, or none where prefix_kl is in reverse or has a temperature, which takes the "
        "likeliest alone",
    )
    scoring_batch_tokens: int = resource(default=4096, gt=0, description="padded teacher tokens in a forward pass")
    scoring_actors: int = resource(default=1, ge=1, description="copies of the teacher that score at once")
    scoring_gpus: float = resource(default=0, ge=0, description="GPUs for each scoring actor")
    scoring_resources: dict[str, Annotated[float, Field(gt=0)]] = resource(
        default={},
        description="what else of a cluster's own resources, such as {teacher: 1}, which certain machines have",
    )
