"""A run on a mixture of three formats."""

import csv
import json

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet
from typer.testing import CliRunner

from ctd_core.config.run import RunConfig
from ctd_core.errors import UsageError
from ctd_core.shards import schema
from ctd_core.shards.files import Folder, read_manifest
from ctd_core.shards.reading import ShardSet
from ctd_core.training.streams import _stream
from pipelines.artifacts.metrics_file import read_metrics
from pipelines.artifacts.run_plan import plan_run
from pipelines.cli import app
from tests.pipelines.test_run import config, ctd, inputs, only, written  # noqa: F401  # fixtures
from tests.support.shard_sets import texts

WEIGHTS = {"lines": 0.5, "table": 0.2, "columns": 0.3}


@pytest.fixture
def mixed(config, tmp_path):  # noqa: F811
    """A run on JSON lines, CSV and Parquet."""
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts(40, seed=1)))
    with (tmp_path / "b.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows([["text"], *([text] for text in texts(60, seed=2))])
    parquet.write_table(pa.table({"text": texts(80, seed=3)}), tmp_path / "c.parquet")
    sources = [
        {"kind": "jsonl", "paths": [str(tmp_path / "a.jsonl")], "label": "lines", "weight": WEIGHTS["lines"]},
        {"kind": "csv", "paths": [str(tmp_path / "b.csv")], "label": "table", "weight": WEIGHTS["table"]},
        {"kind": "parquet", "paths": [str(tmp_path / "c.parquet")], "label": "columns", "weight": WEIGHTS["columns"]},
    ]
    corpus = {"kind": "mixture", "sources": sources, "held_out_fraction": 0.2}
    sets = {"all": {"kind": "held_out"}, "of-table": {"kind": "held_out", "source": "table"}}
    return config | {"corpus": corpus, "evaluate": {"sets": sets, "gap_set": "all"}, "sample": {"prompts": []}}


def test_a_mixture_is_learned_by_its_weights_and_resumed_as_if_nothing_had_been(mixed, tmp_path):
    steps = 12
    train = mixed["train"] | {"steps": steps, "checkpoint_every": 3}
    file = written(mixed | {"train": train}, tmp_path)
    output = ctd("run", "--config", file)
    assert "of-table" in output
    assert "train: columns" in ctd("prepare", "--config", file)
    plan = plan_run(RunConfig.model_validate(mixed | {"train": train}))
    shards = ShardSet(plan.datasets["train"].location, verify=True)
    counts = shards.counts_by_source
    assert list(counts) == list(WEIGHTS)
    assert sum(found.rows for found in counts.values()) == len(shards)

    starts = np.cumsum([0, *(found.rows for found in counts.values())])
    given = np.zeros(3)
    stream = _stream(plan.config.train, shards, plan.shares)
    for _ in range(400):
        for row in next(stream):
            source = int(np.searchsorted(starts, row, side="right")) - 1
            (of_chunks,) = shards.read(schema.CHUNK_BYTES, np.array([row]))
            given[source] += of_chunks.sum()
    assert np.abs(given / given.sum() - list(WEIGHTS.values())).max() < 0.01

    training = only(tmp_path / "runs" / "tiny", "train-*")
    losses = [line["loss"] for line in read_metrics(training / "metrics.jsonl")]
    for late in training.glob("step_*"):
        if int(late.name[-8:]) > 9:
            for inside in late.iterdir():
                inside.unlink()
            late.rmdir()  # as if it had been killed after step 9
    ctd("train", "--config", file)
    assert [line["loss"] for line in read_metrics(training / "metrics.jsonl")] == losses


def test_other_weights_are_another_training_on_the_same_shards(mixed):
    first = plan_run(RunConfig.model_validate(mixed))
    sources = [source | {"weight": 1.0} for source in mixed["corpus"]["sources"]]
    second = plan_run(RunConfig.model_validate(mixed | {"corpus": mixed["corpus"] | {"sources": sources}}))
    assert first.datasets.keys() == second.datasets.keys()
    assert all(first.datasets[name].location == second.datasets[name].location for name in first.datasets)
    assert first.training != second.training


def test_duplicates_are_left_out_once_for_all_sources(mixed, tmp_path):
    unique = texts(60, seed=4)
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in [*unique, *unique[:20]]))
    with (tmp_path / "b.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows([["text"], *([text] for text in [*unique[30:], "of the table alone"])])
    corpus = mixed["corpus"] | {"deduplicate": True, "sources": mixed["corpus"]["sources"][:2]}
    evaluate = {"sets": {"all": {"kind": "held_out"}}, "gap_set": "all"}
    run = mixed | {"corpus": corpus, "evaluate": evaluate, "student": {"tokenizer": {"kind": "bytes"}}}
    prepare = mixed["prepare"] | {"slice_bytes": 1500, "targets": True}
    ctd("prepare", "--config", written(run | {"prepare": prepare}, tmp_path))
    prepared = tmp_path / "runs" / "tiny" / "prepared"
    manifests = [read_manifest(Folder(only(prepared, f"{name}-*"))) for name in ("train", "all")]
    assert len(manifests[0].shards) > 4
    assert sum(manifest.counts.documents for manifest in manifests) == len(set(unique)) + 1
    assert sum(manifest.counts.duplicate_documents for manifest in manifests) == 20 + 30
    assert manifests[0].counts_by_source["table"].documents <= 1  # the first source came first


def test_a_source_without_documents_and_one_without_a_name_are_refused(mixed, tmp_path):
    nameless = {"sets": {"x": {"kind": "held_out", "source": "tabel"}}}
    with pytest.raises(UsageError, match=r"evaluate\.sets\.x\.source is 'tabel', .*\['lines', 'table', 'columns'\]"):
        ctd("run", "--config", written(mixed | {"evaluate": nameless}, tmp_path), "--dry-run")
    (tmp_path / "a.jsonl").write_text("\n")
    refused = CliRunner().invoke(app, ["run", "--config", str(written(mixed, tmp_path)), "--dry-run"])
    assert f"corpus.paths: there is no document in {tmp_path}/a.jsonl" in str(refused.exception)
