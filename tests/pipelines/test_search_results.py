"""What a search writes of its trials."""

import math

from pyarrow import parquet

from ctd_core.config.yaml_files import read_config
from pipelines.recipes import read_recipe
from pipelines.search.results import TrialResult, order, write_results

METRIC = "general_teacher_distance_bits_per_byte"


def trial(number, steps, last, error=None, **values):
    lines = [{"step": step, METRIC: last + steps - step} for step in range(2, steps + 1, 2)]
    return TrialResult(number, {f"train.{name}": value for name, value in values.items()}, lines, error)


def test_the_best_is_first_and_neither_stopped_nor_failed_nor_without_a_number():
    trials = [
        trial(0, 6, 0.5),
        trial(1, 2, 0.1),
        trial(2, 6, 0.4),
        trial(3, 6, 0.0, error="out of memory"),
        trial(4, 6, math.nan),
        trial(5, 0, 0.0),
    ]
    assert [trial.number for trial in order(trials, METRIC, "min")] == [2, 0, 4, 1, 5, 3]
    assert [trial.number for trial in order(trials, METRIC, "max")][:2] == [0, 2]


def test_only_what_trials_differ_in_is_shown_and_kept_with_its_type(tmp_path):
    chunks = [{"kind": "finest"}, {"kind": "debiased", "gamma": 0.25}]
    trials = [trial(n, 4, 0.5, learning_rate=10.0**-n, boundary=n == 1, warmup=3, chunks=chunks[n]) for n in (0, 1)]
    run = read_config(read_recipe("small"), "small", [])
    write_results("a <search>", trials, METRIC, run, tmp_path)
    rows = parquet.read_table(tmp_path / "trials.parquet").to_pylist()
    assert [row["step"] for row in rows] == [2, 4, 2, 4]
    assert rows[-1] == {
        "trial": 1, "error": None, "step": 4, METRIC: 0.5, "train.learning_rate": 0.1, "train.boundary": "True",
        "train.chunks.kind": "debiased", "train.chunks.gamma": 0.25,
    }  # fmt: skip
    assert rows[0]["train.chunks.gamma"] is None
    head, _, first, _ = (tmp_path / "trials.md").read_text().splitlines()
    assert head == "| trial | learning_rate | boundary | chunks.kind | chunks.gamma | steps | " + METRIC + " |"
    assert first == "| 0 | 1.0 | False | finest |  | 4 | 0.5000 |"
    page = (tmp_path / "index.html").read_text()
    assert "a &lt;search&gt;" in page
    assert page.count("<svg") == 2
    assert read_config((tmp_path / "best.yaml").read_text(), "best", []) == run
