"""What a training's steps measured, as JSON lines and for TensorBoard."""

import struct
import time
from unittest.mock import Mock

from tensorboardX.proto.event_pb2 import Event, SessionLog

from ctd_core.config.run import RunConfig
from ctd_core.errors import CtdError
from pipelines.artifacts.metrics_file import METRICS_FILE, read_metrics
from pipelines.artifacts.metrics_log import MetricsLog
from pipelines.artifacts.run_plan import plan_run
from pipelines.stages import train_worker
from tests.pipelines.test_run import config, inputs  # noqa: F401


def events(folder):
    """The events in the order of their files; a record is its length, a CRC, itself, a CRC."""
    for file in sorted(folder.glob("events.out.tfevents.*"), key=lambda line: line.stat().st_mtime_ns):
        content, at = file.read_bytes(), 0
        while at < len(content):
            (length,) = struct.unpack_from("<Q", content, at)
            yield Event.FromString(content[at + 12 : at + 12 + length])
            at += length + 16


def figures(folder):
    return [(event.step, value.tag, value.simple_value) for event in events(folder) for value in event.summary.value]


def test_every_figure_of_a_step_is_a_line_and_an_event_under_the_same_name(tmp_path):
    log = MetricsLog(tmp_path / METRICS_FILE, 0)
    for step in (1, 2, 3):
        log.add({"step": step, "loss": 0.5 * step, "tokens": 10})
    log.close()
    lines = read_metrics(tmp_path / METRICS_FILE)
    assert [(line["step"], line["loss"]) for line in lines] == [(1, 0.5), (2, 1.0), (3, 1.5)]
    assert {name for _, name, _ in figures(tmp_path)} == set(lines[0])
    assert [(step, value) for step, name, value in figures(tmp_path) if name == "loss"] == [
        (1, 0.5),
        (2, 1.0),
        (3, 1.5),
    ]


def test_what_is_done_between_steps_is_no_part_of_their_time(tmp_path):
    log = MetricsLog(tmp_path / METRICS_FILE, 0)
    with log.pause():
        time.sleep(0.5)
    log.add({"step": 1, "loss": 1.0, "tokens": 10})
    log.close()
    (line,) = read_metrics(tmp_path / METRICS_FILE)
    assert 0 < line["seconds"] < 0.4
    assert line["tokens_per_second"] == 10 / line["seconds"]


def test_what_lies_after_the_checkpoint_is_taken_away_and_measured_again(tmp_path):
    for done, steps in ((0, (1, 2, 3)), (2, (3, 4))):
        log = MetricsLog(tmp_path / METRICS_FILE, done)
        for step in steps:
            log.add({"step": step, "loss": 1.0, "tokens": 10})
        log.close()
    assert [line["step"] for line in read_metrics(tmp_path / METRICS_FILE)] == [1, 2, 3, 4]
    begins = [event.step for event in events(tmp_path) if event.session_log.status == SessionLog.START]
    assert begins[-1] == 3  # from there on, TensorBoard forgets what came before


def test_a_store_that_does_not_take_a_copy_ends_no_training(config, monkeypatch, caplog):  # noqa: F811
    recorder = train_worker.Recorder(plan_run(RunConfig.model_validate(config)), 0, None)
    monkeypatch.setattr(train_worker, "SHARE_SECONDS", -1.0)
    monkeypatch.setattr(recorder, "share", Mock(side_effect=CtdError("s3://bucket: 503")))
    recorder.add({"step": 1.0, "loss": 0.5, "tokens": 10.0, "seconds": 1.0})
    recorder.close()
    assert "the store does not take metrics: s3://bucket: 503" in caplog.text
