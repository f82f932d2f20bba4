"""What is shown of slices that are not finished."""

import logging
import time
from io import StringIO

import pytest
import ray
from rich.console import Console

from pipelines.cluster.tally import Tally, reporting
from pipelines.display import progress as shown_progress
from pipelines.display.progress import Reporter, progress, show_log
from pipelines.display.tables import TextTable, print_table
from pipelines.stages.prepare_progress import SliceProgress, watched


@pytest.fixture
def reported():
    """A reporter that keeps what it is told."""

    class Kept(Reporter):
        def __init__(self):
            self.calls = []

        def update(self, done, words="", share=None):
            self.calls.append((done, words, share))

    return Kept()


def test_lines_and_tables_are_shown_as_they_are(monkeypatch):
    """And not read as rich's markup: `[/INST]` is a token, and `[old]` a folder."""
    text, lines, table = "such as [/INST] in /data/[old]/x :end:", StringIO(), StringIO()
    monkeypatch.setattr(shown_progress, "console", Console(file=lines, force_terminal=True, width=240))
    with progress("prepare [/INST]", 2) as reporter:
        reporter.update(1, text)
        show_log()
        logging.getLogger("pipelines").info(text)
    assert lines.getvalue().count(text) >= 2
    print_table(TextTable(["[/INST]"], [[text]], "alm [debiased]", "[/b]"), table)
    assert all(part in table.getvalue() for part in ("[/INST]", text, "alm [debiased]", "[/b]"))


def test_of_work_that_begins_again_no_negative_time_is_left(capsys, monkeypatch):
    now = iter(range(0, 1000, 20))
    monkeypatch.setattr(time, "monotonic", lambda: next(now))
    reporter = Reporter("train", 800, None)
    for done in (300, 348, 22, 67):
        reporter.update(done)
    shown = capsys.readouterr().err.splitlines()
    assert [line.partition(", ")[0] for line in shown] == [f"train: {done} of 800" for done in (300, 348, 22, 67)]
    assert [" left" in line for line in shown] == [False, True, False, True]
    assert "-" not in "".join(shown)


@pytest.fixture
def tally(monkeypatch):
    """A tally in this process, which is called as an actor is."""

    class Method:
        def __init__(self, method):
            self.remote = method

    class Handle:
        def __init__(self):
            local = Tally()
            self.record, self.pieces = Method(local.record), Method(local.pieces)

    monkeypatch.setattr(ray, "get", lambda value: value)
    return Handle()


def test_the_share_done_counts_tokens_and_what_is_not_read_yet_by_its_expected_size(tally, reported):
    with watched(tally, reported, {"a": 1.0, "b": 1.0, "c": 1.0, "d": 0.5}) as finish:
        finish("a", SliceProgress(1_000_000, 300, 300))
        finish("b", SliceProgress(0, 0, 0))  # a slice without text
        tally.record.remote("c", SliceProgress(1_000_000, 50, 300))
    done, words, share = reported.calls[-1]
    assert done == 2
    assert words.startswith("shards, 2.00 MB of text, 350 teacher tokens scored")
    assert share == pytest.approx(350 / (600 + 0.5 * 200))
    with watched(tally, reported, {"c": 1.0}) as finish:
        finish("c", SliceProgress(1_000_000, 300, 300))
    assert reported.calls[-1][::2] == (1, 1.0)


def test_few_of_many_calls_go_through(tally):
    report = reporting(tally, "a")
    for n in range(1000):
        report(SliceProgress(n))
    assert tally.pieces.remote() == {}
    time.sleep(1.1)
    report(SliceProgress(1000))
    report(SliceProgress(1001))
    assert tally.pieces.remote() == {"a": SliceProgress(1000)}
