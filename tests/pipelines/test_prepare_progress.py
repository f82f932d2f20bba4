"""What is shown of slices that are not finished."""

import time

import pytest
import ray

from pipelines.cluster.tally import Tally, reporting
from pipelines.display.progress import Reporter
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
