"""`ctd chunks`: what every chunking rule makes of a set of shards."""

from dataclasses import asdict

from ctd_core.config.align import AnyChunks, AtWhitespace, Debiased, Finest, Groups
from ctd_core.errors import UsageError
from ctd_core.evaluation.chunking import Chunking, measure_chunking
from ctd_core.shards.reading import ShardSet
from pipelines.display.tables import TextTable

RULES: list[AnyChunks] = [
    Finest(),
    AtWhitespace(kind="whitespace"),
    *(Debiased(kind="debiased", gamma=gamma) for gamma in (0.0, 0.01, 0.1, 0.3, 0.5)),
    *(Groups(kind="groups", size=size) for size in (2, 4)),
]


def measure_rules(location: str, rules: list[AnyChunks] | None) -> list[tuple[AnyChunks, Chunking]]:
    """The figures of `rules` on the shards in `location`, or of the usual ones that these allow.

    Raises UsageError where a rule asks for what the shards do not hold.
    """
    shards = ShardSet(location, verify=True)
    if rules is None:
        rules = [rule for rule in RULES if shards.has_targets or not isinstance(rule, Debiased)]
    check_rules(shards, rules)
    return [(rule, measure_chunking(shards, rule)) for rule in rules]


def check_rules(shards: ShardSet, rules: list[AnyChunks]) -> None:
    """Raises UsageError where one of `rules` asks the teacher's numbers of shards without them."""
    if not shards.has_targets and any(isinstance(rule, Debiased) for rule in rules):
        raise UsageError(f"--rule debiased: {shards.name} holds no numbers of the teacher. Prepare with targets: true.")


def rule_name(rule: AnyChunks) -> str:
    """A rule in a few words: its kind, and its option where it has one."""
    values = [f"{name} {value}" for name, value in rule.model_dump(exclude={"kind"}).items()]
    return ", ".join([rule.kind, *values])


def as_json(measured: list[tuple[AnyChunks, Chunking]]) -> list[dict[str, object]]:
    """The objects that `--json` prints, one a rule."""
    return [{"rule": rule.model_dump(), **asdict(figures)} for rule, figures in measured]


def as_table(measured: list[tuple[AnyChunks, Chunking]]) -> TextTable:
    """A row for each rule."""
    columns = ["rule", "chunks / 1,000 bytes", "student tokens", "teacher tokens", "single tokens", "text covered"]
    rows = [
        [
            rule_name(rule),
            f"{chunking.chunks_per_1000_bytes:.1f}",
            f"{chunking.student_tokens:.2f}",
            f"{chunking.teacher_tokens:.2f}",
            f"{chunking.single_token_share:.1%}",
            f"{chunking.covered_share:.1%}",
        ]
        for rule, chunking in measured
    ]
    return TextTable(columns, rows)
