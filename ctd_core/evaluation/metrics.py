"""The figures of a student on a text: one entry each, which reports, tables, searches and cards go through."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Logprobs = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Likelihoods:
    """Chunk log-likelihoods of student and teacher on the same text, and how long both tokenizations of it are.

    student_logprobs, teacher_logprobs: [C], natural logarithms, of all finest chunks of text that have context on both
    sides. text_bytes: of these chunks. student_tokens_per_byte, teacher_tokens_per_byte: of the complete text, without
    special tokens and what a chat template writes.
    """

    student_logprobs: Logprobs
    teacher_logprobs: Logprobs
    text_bytes: int
    student_tokens_per_byte: float
    teacher_tokens_per_byte: float

    @property
    def bits_a_nat_and_byte(self) -> float:
        """What a sum of natural logarithms is multiplied by to be in bits per byte."""
        return 1 / (self.text_bytes * math.log(2))

    @property
    def of_teacher(self) -> "Likelihoods":
        """The likelihoods of a perfect student: the teacher's own."""
        teacher, tokens = self.teacher_logprobs, self.teacher_tokens_per_byte
        return Likelihoods(teacher, teacher, self.text_bytes, tokens, tokens)


@dataclass(frozen=True)
class Metric:
    """One figure.

    name: in report.json, in metrics.jsonl (after the set's name and _) and in searches. title, unit, digits: in tables.
    is_headline: whether tables of several variants or steps have it. lower_is_better: which way a search goes.
    """

    name: str
    title: str
    unit: str
    digits: int
    lower_is_better: bool
    is_headline: bool
    measure: Callable[[Likelihoods], float]

    def words(self, of: str = "") -> str:
        """The title, with what it is of, and the unit."""
        return f"{self.title}{of}" + (f" ({self.unit})" if self.unit else "")


def _bits_per_byte(found: Likelihoods) -> float:
    return -float(found.student_logprobs.sum()) * found.bits_a_nat_and_byte


def _teacher_distance(found: Likelihoods) -> float:
    return float(np.abs(found.student_logprobs - found.teacher_logprobs).sum()) * found.bits_a_nat_and_byte


def _correlation(found: Likelihoods) -> float:
    return _pearson(found.student_logprobs, found.teacher_logprobs)


def _rank_correlation(found: Likelihoods) -> float:
    return _pearson(_ranks(found.student_logprobs), _ranks(found.teacher_logprobs))


def _pearson(student: Logprobs, teacher: Logprobs) -> float:
    """Pearson's correlation; not a number where one side does not vary, and 1 of what is equal."""
    if len(student) < 2 or student.std() == 0 or teacher.std() == 0:
        return math.nan
    return 1.0 if np.array_equal(student, teacher) else float(np.corrcoef(student, teacher)[0, 1])


def _ranks(values: Logprobs) -> Logprobs:
    """[C], the rank of each value, equal ones at the mean of theirs."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ranks: Logprobs = (np.cumsum(counts) - (counts - 1) / 2)[inverse]
    return ranks


BITS_PER_BYTE = Metric("bits_per_byte", "bits per byte", "", 3, True, True, _bits_per_byte)
# Σ |student − teacher chunk log-likelihood| in bits, for each byte.
TEACHER_DISTANCE = Metric(
    "teacher_distance_bits_per_byte", "distance", "bits per byte", 3, True, True, _teacher_distance
)
METRICS = (
    BITS_PER_BYTE,
    TEACHER_DISTANCE,
    Metric("correlation", "correlation", "", 3, False, False, _correlation),  # Pearson's
    Metric("rank_correlation", "rank correlation", "", 3, False, False, _rank_correlation),  # Spearman's
    Metric("tokens_per_byte", "tokens per byte", "", 3, True, False, lambda found: found.student_tokens_per_byte),
)


def metrics_of(found: Likelihoods) -> dict[str, float]:
    """Every metric, by name."""
    return {metric.name: metric.measure(found) for metric in METRICS}


def metric_key(set_name: str, metric: Metric) -> str:
    """What metrics.jsonl and searches call a metric on an evaluation set."""
    return f"{set_name}_{metric.name}"


def metric_words(name: str) -> str:
    """What a person calls a metric of metrics.jsonl, with its unit; `name` itself where it is none."""
    for metric in sorted(METRICS, key=lambda metric: -len(metric.name)):  # a name may be the end of a longer one
        if name.endswith(f"_{metric.name}"):
            return metric.words(f" on {name.removesuffix(f'_{metric.name}')}")
    return name.replace("_", " ")


def is_metric_key(name: str) -> bool:
    """Whether `name` is what `metric_key` makes."""
    return any(name.endswith(f"_{metric.name}") for metric in METRICS)


def gap_closed(before: dict[str, float], after: dict[str, float]) -> float:
    """The fraction of the initial teacher distance that training removed; 0 where there was none."""
    start = before[TEACHER_DISTANCE.name]
    return 1 - after[TEACHER_DISTANCE.name] / start if start else 0.0
