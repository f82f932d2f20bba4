"""Keys in URIs are refused in every field, and never shown."""

import re
from pathlib import Path

import pytest

from ctd_core.config.evaluation import Evaluate
from ctd_core.config.secrets import has_secret, redact
from ctd_core.config.yaml_files import parse_yaml, read_config, read_group
from ctd_core.errors import UsageError
from pipelines.recipes import read_recipe

SECRETS = [
    "s3://AKIA123:hunter2@bucket/x",
    "s3://AKIA123@bucket/x",
    "https://user:hunter2@host/x.parquet",
    "s3://bucket/x?secret_key=hunter2&region=eu",
    "s3://bucket/x?access_key=hunter2",
    "https://host/x.jsonl?X-Amz-Signature=hunter2",
    "https://account.blob.core.windows.net/c/x?sv=1&sig=hunter2",
    "gs://hunter2@bucket/x",
    "s3://AKIA123:hun/ter2/hunter2@bucket/x",
    "s3://bucket/x?region=eu;secret_key=hunter2",
    "wasbs://container/x?x=y;AccountKey=hunter2",
    "hdfs://user:hunter2@host/x",
    "https://user:hun/ter2/hunter2@host/x",
    "https://hunter2@huggingface.co/org/model",
    "s3://b/x?region=us-east-1&sessionToken=hunter2",
    "s3://b/x?clientSecret=hunter2",
    "https://host/x?key=hunter2",
    "https://host/x?%74oken=hunter2",
    "https://host/x#access_token=hunter2",
    "https://host/x?sas=hunter2&auth=hunter2",
    "https://host/x?pass=hunter2&pw=hunter2&bearer=hunter2",
    "https://host/x?tok=hunter2",
]
HARMLESS = [
    "abfs://container@account/x",
    "hdfs://user@host:9000/x",
    "s3://bucket/x?endpoint_override=http://127.0.0.1:9000&scheme=http",
    "s3://bucket/design/tokens.jsonl",
    "https://huggingface.co/org/model",
    "./a:b@c",
    "http://127.0.0.1:9000/folder/a@b.parquet",
    "https://host/monkey.parquet?keyboard=de&author=me",
    "hf://datasets/org/name@revision/x.parquet",
    "hf://gpt2@main/x.parquet",
    "org/hf_model_of_mine",
    "runs/task-of-a-name-that-is-longer-than-a-key-would-be-here",
    "sha256:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
]
FIELDS = ["output", "prepare.storage", "teacher.model", "corpus.paths.0", "evaluate.sets.held.paths.0"]


@pytest.mark.parametrize("uri", SECRETS)
def test_secrets_are_found_and_left_out_of_what_is_shown(uri):
    assert has_secret(uri)
    assert "hunter2" not in redact(f"could not read {uri}: no such host")
    assert "AKIA" not in redact(uri)
    assert not {"hunter2", "AKIA123"} & set(re.split(r"\W+", redact(str(Path(uri)))))  # of its two slashes one is left


KEYS = [
    "hf_" + "aB3" * 11, "ghp_" + "x" * 36, "github_pat_" + "y" * 40, "AKIA" + "Q7" * 8, "glpat-" + "z-9_" * 5,
    "sk-proj-" + "Z_9" * 14,
]  # fmt: skip


@pytest.mark.parametrize("key", KEYS)
def test_keys_of_well_known_forms_are_found_in_any_text(key):
    for text in (key, f"/home/me/{key}/model", f"https://host/{key}/x.jsonl", f"hf://{key}@org/x", f"run_{key}_x"):
        assert has_secret(text)
        assert key not in redact(text)


@pytest.mark.parametrize("uri", HARMLESS)
def test_what_is_no_secret_passes(uri):
    assert not has_secret(uri)
    assert redact(uri) == uri
    assert redact(str(Path(uri))) == str(Path(uri))


def test_what_is_not_yaml_is_told_without_the_text_around_it():
    with pytest.raises(UsageError, match=r"a file: not YAML .*line 2, column 49") as error:
        parse_yaml("name: x\noutput: s3://AKIAEXAMPLE:hunter2hunter2@bucket/x: x: y\n", "a file")
    assert "hunter2" not in str(error.value)


def test_a_secret_is_refused_where_a_command_has_no_run():
    with pytest.raises(UsageError, match=r"^evaluate\.problems\.x\.corpus\.paths\.0: a key, or a URI with one in it,"):
        read_group(Evaluate, "evaluate", ["evaluate.problems={x: {corpus: {paths: ['s3://AKIA:hunter2@b/x.jsonl']}}}"])


@pytest.mark.parametrize("field", FIELDS)
def test_a_secret_is_refused_in_every_field_and_not_repeated(field):
    corpus = "{kind: jsonl, paths: [x.jsonl], held_out_fraction: 0.1}"
    sets = "{held: {kind: jsonl, paths: [y.jsonl]}}"
    overrides = [f"corpus={corpus}", f"evaluate={{gap_set: held, sets: {sets}}}"]
    read_config(read_recipe("small"), "small", overrides)
    with pytest.raises(UsageError, match=field.replace(".", r"\.")) as error:
        read_config(read_recipe("small"), "small", [*overrides, f"{field}=s3://key:hunter2@bucket/x"])
    assert "hunter2" not in str(error.value)
