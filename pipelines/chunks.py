"""`ctd chunks`: what every chunking rule makes of a set of shards."""

from dataclasses import asdict

from rich.table import Table

from ctd_core.config_objectives import AnyChunks, AtWhitespace, Debiased, Finest, Groups
from ctd_core.evaluation.chunking import Chunking, measure_chunking
from ctd_core.shards.reading import ShardSet

RULES: list[AnyChunks] = [
    Finest(),
    AtWhitespace(kind="whitespace"),
    *(Debiased(kind="debiased", gamma=gamma) for gamma in (0.0, 0.01, 0.1, 0.3, 0.5)),
    *(Groups(kind="groups", size=size) for size in (2, 4)),
]


def measure_rules(location: str, rules: list[AnyChunks]) -> list[tuple[AnyChunks, Chunking]]:
    """The figures of `rules` on the shards in `location`; those that ask the teacher only where it was asked."""
    shards = ShardSet(location, verify=True)
    usable = [rule for rule in rules if shards.has_targets or not isinstance(rule, Debiased)]
    return [(rule, measure_chunking(shards, rule)) for rule in usable]


def rule_name(rule: AnyChunks) -> str:
    """A rule in a few words: its kind, and its option where it has one."""
    values = [f"{name} {value}" for name, value in rule.model_dump(exclude={"kind"}).items()]
    return ", ".join([rule.kind, *values])


def as_json(measured: list[tuple[AnyChunks, Chunking]]) -> list[dict[str, object]]:
    """The objects that `--json` prints, one a rule."""
    return [{"rule": rule.model_dump(), **asdict(figures)} for rule, figures in measured]


def as_table(measured: list[tuple[AnyChunks, Chunking]]) -> Table:
    """A line for each rule."""
    table = Table()
    columns = ("rule", "chunks / 1,000 bytes", "student tokens", "teacher tokens", "single tokens", "text covered")
    for column in columns:
        table.add_column(column, justify="left" if column == "rule" else "right")
    for rule, one in measured:
        table.add_row(
            rule_name(rule),
            f"{one.chunks_per_1000_bytes:.1f}",
            f"{one.student_tokens:.2f}",
            f"{one.teacher_tokens:.2f}",
            f"{one.single_token_share:.1%}",
            f"{one.covered_share:.1%}",
        )
    return table
