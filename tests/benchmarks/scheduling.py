"""Ratios of what Ray adds: tasks and workers side by side, a trial's start, a worker's end."""

import json
import logging
import multiprocessing
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import ray
import ray.data
import yaml
from rich.table import Table

from ctd_core.config.run import RunConfig
from ctd_core.models.tokenizers import build_teacher_tokenizer
from ctd_core.shards.building import build_rows
from ctd_core.shards.files import Folder, shard_bytes, write_shard
from ctd_core.text.corpora import plan_slices, read_slice
from ctd_core.text.corpora.slices import training_documents
from pipelines.artifacts.metrics_file import METRICS_FILE, read_metrics
from pipelines.artifacts.run_plan import TRAIN_SET, plan_run
from pipelines.cluster.connection import stop_local_ray
from pipelines.search.tune import search
from pipelines.stages.prepare import prepare
from pipelines.stages.student import ensure_student
from pipelines.stages.tokenizer import student_tokenizer
from pipelines.stages.train import train_student
from tests.benchmarks.measuring import seconds
from tests.benchmarks.source import standard_library_source
from tests.benchmarks.texts import run_without_targets, train_tokenizers
from tests.support.models import llama
from tests.support.shard_sets import texts as short_texts
from tests.support.tokenizers import TEXTS, train_tokenizer

CORPUS_BYTES = 40_000_000
TRIALS = 5


def add_rows(table: Table, teacher: str) -> None:
    """Figures (j) to (m)."""
    with tempfile.TemporaryDirectory() as folder:
        one, two, bare = preparing(Path(folder))
        table.add_row("j", "prepare, two tokenizing tasks : one, documents/s", f"{one / two:.2f}", "")
        table.add_row("", "prepare, one task on Ray : the same work without Ray, time", f"{one / bare:.2f}", "")
        ratio = workers(teacher, Path(folder))
        table.add_row("k", "training, two workers of a thread each : one, tokens/s", f"{ratio:.2f}", "≥ 1.7")
        beyond = trial(tiny_run(Path(folder) / "trial"))
        table.add_row("l", "a trial of ctd tune beyond its training, seconds", f"{beyond:.1f}", "")
        start, again = killed_worker(tiny_run(Path(folder) / "killed"))
        table.add_row("m", "from the end of a worker to the next step, seconds", f"{again:.1f}", "")
        table.add_row("", "the same : from a training's start to its first step", f"{again / start:.2f}", "")


@contextmanager
def cpus(count: int):
    """A Ray of so many CPUs, whose tokenizers have a thread each."""
    stop_local_ray()
    os.environ["RAYON_NUM_THREADS"] = "1"
    ray.init(num_cpus=count, include_dashboard=False, log_to_driver=False)
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    ray.data.DataContext.get_current().enable_progress_bars = False
    try:
        yield
    finally:
        stop_local_ray()
        del os.environ["RAYON_NUM_THREADS"]


def preparing(folder: Path) -> tuple[float, float, float]:
    """Seconds of preparing without targets by one task at a time, by two, and by a process without Ray."""
    texts = standard_library_source()
    train_tokenizers(texts, folder)
    took = []
    for count in (1, 2):
        corpus = folder / f"{count}.jsonl"  # another run
        _write(corpus, texts)
        with cpus(count):
            _warm_up(folder)
            took.append(seconds(lambda corpus=corpus: prepare(run_without_targets(folder, corpus)), repeats=1))
    os.environ["RAYON_NUM_THREADS"] = "1"
    with multiprocessing.get_context("spawn").Pool(1) as process:
        bare = process.apply(without_ray, (folder, corpus))
    del os.environ["RAYON_NUM_THREADS"]
    return took[0], took[1], bare


def _write(corpus: Path, texts: list[str]) -> None:
    with corpus.open("w") as stream:
        written = number = 0
        while written < CORPUS_BYTES:
            written += stream.write(json.dumps({"text": texts[number % len(texts)]}) + "\n")
            number += 1


def _warm_up(folder: Path) -> None:
    """Ray's workers, with what they import."""
    corpus = folder / f"warm-{time.monotonic_ns()}.jsonl"
    corpus.write_text(json.dumps({"text": "warm " * 100}) + "\n")
    prepare(run_without_targets(folder, corpus))


def without_ray(folder: Path, corpus: Path) -> float:
    """Seconds of the same work in one process: read, encode, align, cut, write."""
    plan = run_without_targets(folder, corpus)
    options, dataset = plan.config.prepare, plan.datasets[TRAIN_SET]
    tokenizers = student_tokenizer(plan), build_teacher_tokenizer(plan.config.teacher)
    windows = options.student_window_tokens, options.teacher_window_tokens

    def work() -> None:
        for part in plan_slices(dataset.corpus, options.slice_bytes):
            found = training_documents(dataset.corpus, read_slice(dataset.corpus, part))
            rows, counts = build_rows(*tokenizers, found, *windows)
            write_shard(Folder(folder / "bare"), part.number, shard_bytes(rows), counts)

    return seconds(work, repeats=1)


def workers(teacher: str, folder: Path) -> float:
    """Tokens a second of two workers over those of one, on a whole model, in steps of 4,096 tokens."""
    documents = [json.dumps({"text": text}) + "\n" for text in standard_library_source()[:60]]
    (folder / "train.jsonl").write_text("".join(documents))
    rates = []
    for count in (1, 2):
        train = {"steps": 4, "num_workers": count, "gradient_accumulation": 8, "batch_tokens": 512}
        config = {
            "name": f"workers-{count}",
            "output": str(folder / "runs"),
            "student": {"tokenizer": {"kind": "pretrained", "name": teacher}},
            "teacher": {"model": teacher},
            "corpus": {"kind": "jsonl", "paths": [str(folder / "train.jsonl")]},
            "prepare": {"targets": False, "student_window_tokens": 512, "teacher_window_tokens": 512},
            "train": {**train, "objectives": [{"kind": "sft"}]},
        }
        plan = plan_run(RunConfig.model_validate(config))
        prepare(plan)
        stop_local_ray()
        train_student(plan)
        stop_local_ray()
        lines = read_metrics(plan.training / METRICS_FILE)
        rates.append(statistics.median(line["tokens_per_second"] for line in lines[1:]))
    return rates[1] / rates[0]


def tiny_run(folder: Path) -> dict[str, Any]:
    """A run of a model of a few thousand parameters, with a teacher and a corpus."""
    llama(600).save_pretrained(folder / "teacher")
    train_tokenizer(TEXTS, 600).save_pretrained(folder / "teacher")
    (folder / "corpus.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in short_texts(120)))
    return {
        "name": "tiny",
        "output": str(folder / "runs"),
        "teacher": {"model": str(folder / "teacher")},
        "student": {"tokenizer": {"kind": "train", "vocab_size": 300}},
        "corpus": {"kind": "jsonl", "paths": [str(folder / "corpus.jsonl")], "held_out_fraction": 0.2},
        "prepare": {"student_window_tokens": 96, "teacher_window_tokens": 96},
        "train": {"steps": 2, "batch_tokens": 400, "gradient_accumulation": 2},
        "evaluate": {"sets": {"held-out": {"kind": "held_out"}}},
    }


def trial(config: dict[str, Any]) -> float:
    """Seconds that a further trial adds to a search, without those of its steps; one trial at a time."""
    folder = Path(config["output"]).parent
    (folder / "run.yaml").write_text(yaml.safe_dump(config))
    space = {"train.learning_rate": {"log_uniform": [1e-5, 1e-3]}}
    options = {"recipe": str(folder / "run.yaml"), "space": space, "scheduler": {"kind": "none"}, "concurrent": 1}
    took = []
    for count in (1, TRIALS):
        (folder / f"{count}.yaml").write_text(yaml.safe_dump({**options, "trials": count, "seed": count}))
        took.append(seconds(lambda count=count: search(folder / f"{count}.yaml", [], False), repeats=1))
    stop_local_ray()
    files = list(Path(config["output"]).glob(f"tiny/train-*/{METRICS_FILE}"))
    steps = sum(line["seconds"] for file in files for line in read_metrics(file)) / len(files)
    return (took[1] - took[0]) / (TRIALS - 1) - steps


def killed_worker(config: dict[str, Any]) -> tuple[float, float]:
    """Seconds from a training's start to its first step, and from the end of a worker to the next step."""
    folder = Path(config["output"]).parent
    config["train"] |= {"steps": 2000, "num_workers": 2, "checkpoint_every": 50}
    config["evaluate"] = {}
    (folder / "run.yaml").write_text(yaml.safe_dump(config))
    plan = plan_run(RunConfig.model_validate(config))
    prepare(plan)
    ensure_student(plan)
    stop_local_ray()
    file, begun = plan.training / METRICS_FILE, time.monotonic()
    command = [sys.executable, "-m", "pipelines", "train", "--config", str(folder / "run.yaml")]
    training = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    start = _wait_for(lambda: bool(read_metrics(file))) - begun
    _wait_for(lambda: len(read_metrics(file)) > 60)
    below = psutil.Process(training.pid).children(recursive=True)
    victim = next(file for file in below if "RayTrainWorker" in " ".join(file.cmdline()))
    killed = time.monotonic()
    victim.kill()
    time.sleep(0.5)  # what the other worker had begun
    seen = file.stat().st_ino  # a training that goes on begins with a new file
    _wait_for(lambda: file.stat().st_ino != seen)
    back = len(read_metrics(file))
    again = _wait_for(lambda: len(read_metrics(file)) > back) - killed
    training.send_signal(signal.SIGINT)
    training.wait()
    return start, again


def _wait_for(happened) -> float:
    """When it happened."""
    while not happened():
        time.sleep(0.02)
    return time.monotonic()
