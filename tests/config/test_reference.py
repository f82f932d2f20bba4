"""The reference of a run's fields, and the file to begin with."""

from pathlib import Path

from ctd_core.config.reference import NEW_RUN, reference
from ctd_core.config.run import RunConfig
from ctd_core.config.yaml_files import read_config

ROOT = Path(__file__).parents[2]


def test_the_reference_that_is_checked_in_is_up_to_date():
    assert (ROOT / "ctd_core" / "config" / "README.md").read_text() == reference()  # ctd config --reference writes it


def test_every_field_has_a_meaning_in_the_reference():
    rows = [line for line in reference().splitlines() if line.startswith("| `")]
    assert len(rows) > 100
    assert [row for row in rows if row.endswith("|  |") and not row.startswith("| `kind`")] == []


def test_the_file_to_begin_with_is_a_run():
    run = read_config(NEW_RUN, "the new run", [])
    assert isinstance(run, RunConfig)
    assert run.train.objectives[0].kind == "prefix_kl"
