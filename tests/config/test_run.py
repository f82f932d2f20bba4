"""A run's options survive every way that they travel."""

import json
import math
import random
import textwrap
from pathlib import Path

import pytest
import yaml

from ctd_core.config.base import fingerprint
from ctd_core.config.run import RunConfig, drawn_left_out
from ctd_core.config.search_space import parse_space, settings
from ctd_core.config.yaml_files import read_config, read_options, with_values
from ctd_core.errors import UsageError
from pipelines.comparison.compare import compare
from pipelines.recipes import check_made, read_recipe, read_run, recipe_names
from pipelines.search.options import Search
from pipelines.search.search_plan import plan_search

TUNE_CONFIGS = Path(__file__).parents[2] / "tune_configs"
RUN = """
name: r
teacher: {model: t}
student: {tokenizer: {kind: bytes}}
corpus: {kind: stdlib-docs}
train: {steps: 1, learning_rate: 1e-5, objectives: [{kind: alm, temperature: .inf}]}
"""


def test_infinity_and_exponents_survive_json_and_yaml():
    config = read_config(RUN, "here", [])
    assert config.train.learning_rate == 1e-5
    assert math.isinf(config.train.objectives[0].temperature)
    assert RunConfig.model_validate_json(config.model_dump_json()) == config
    assert read_config(yaml.safe_dump(json.loads(config.model_dump_json())), "again", []) == config


def test_fingerprints_tell_options_apart():
    config = read_config(RUN, "here", [])
    changed = read_config(RUN, "here", ["train.objectives.0.temperature=5"])
    assert fingerprint(config) == fingerprint(read_config(RUN, "there", [])) != fingerprint(changed)


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_is_a_run(name):
    assert read_config(read_recipe(name), name, []).name == name


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("evaluate={gap_set: x}", "gap_set is 'x', but the sets are"),
        ("evaluate={sets: {h: {kind: held_out}}}", "held_out_fraction is 0"),
        ("prepare.targets=false", "alm, which needs prepare.targets"),
        ("evaluate={sets: {train: {kind: general}}}", "'train' cannot name a set"),
        ("student={tokenizer: {kind: bytes}, model: m, head: untied}", "made from its teacher"),
        ("student={tokenizer: {kind: bytes}, byte_expansion: {}, head: as_teacher}", "leave student.head out"),
        ("student={tokenizer: {kind: bytes}, revision: v2}", "student.revision .* are of student.model, and none"),
        ("evaluate={sets: {s: {kind: text, paths: [x], held_out_fraction: 0.1}}}", r"sets\.s\.held_out_fraction: what"),
        ("train.learning_rate=0", r"train.learning_rate: .*greater than 0 \(it is 0\)"),
        ("train.learning_rate=.inf", r"train.learning_rate: .*finite"),
        ("train.seed=-1", r"train.seed: .*greater than or equal to 0"),
        ("name=a/b", "name: "),
        ("name=..", "name: "),
        ("output=s3://key:secret@bucket/runs", "leave the key out"),
        ("prepare.storage=s3://key:secret@bucket/runs", "leave the key out"),
    ],
)
def test_options_that_do_not_fit_together_are_refused(override, message):
    with pytest.raises(UsageError, match=message):
        read_config(RUN, "here", [override])


def test_what_is_set_may_lie_in_a_default():
    without = RUN.replace(", objectives: [{kind: alm, temperature: .inf}]", "")
    (objective,) = read_config(without, "here", ["train.objectives.0.temperature=2"]).train.objectives
    assert (objective.kind, objective.temperature) == ("prefix_kl", 2.0)


def test_a_recipe_tells_which_command_makes_its_models(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    demo = read_recipe("demo")
    with pytest.raises(UsageError, match=r"`make runs/teachers/SmolLM2-135M-Instruct` makes it"):
        check_made("demo", read_config(demo, "demo", []))
    (tmp_path / "runs/teachers/SmolLM2-135M-Instruct").mkdir(parents=True)
    with pytest.raises(UsageError, match=r"mistral-v1 is not there yet.*`make runs/tokenizers` makes it"):
        check_made("demo", read_config(demo, "demo", []))
    check_made("demo", read_config(demo, "demo", ["student.tokenizer={kind: bytes}", "teacher.model=runs/other"]))
    teacher = read_recipe("small-teacher")
    with pytest.raises(UsageError, match=r"`make runs/teachers/small-untrained` makes it"):
        check_made("small-teacher", read_config(teacher, "small-teacher", []))


@pytest.mark.parametrize(
    ("begin", "content"),
    [
        (compare, {"variants": {"sft": {"train.objectives": [{"kind": "sft"}]}}}),
        (plan_search, {"space": {"train.learning_rate": {"grid": [1e-4, 1e-3]}}}),
    ],
)
def test_a_comparison_or_search_of_a_recipe_tells_it_too(begin, content, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "file.yaml"
    file.write_text(yaml.safe_dump({"recipe": "demo", **content}))
    with pytest.raises(UsageError, match=r"`make runs/teachers/SmolLM2-135M-Instruct` makes it"):
        begin(file, [])


@pytest.mark.parametrize(
    ("overrides", "stored", "drawn"),
    [
        (["train.objectives=[{kind: alm}]"], 0, 0),
        (["train.objectives=[{kind: alm}, {kind: prefix_kl, weight: 0.5}]"], 8, 4),
        (["train.objectives=[{kind: prefix_kl}]", "prepare.prefix_k=5"], 5, 2),
        (["train.objectives=[{kind: prefix_kl}]", "prepare.prefix_drawn=0"], 8, 0),
        (["train.objectives=[{kind: alm}]", "prepare.prefix_k=4"], 4, 2),
        (["train.objectives=[{kind: prefix_kl, direction: reverse}]"], 8, 0),
        (["train.objectives=[{kind: prefix_kl}, {kind: prefix_kl, temperature: 2}]"], 8, 0),
    ],
)
def test_tokens_are_stored_and_drawn_as_the_objectives_ask(overrides, stored, drawn):
    prepare = read_config(RUN, "here", overrides).prepare
    assert (prepare.prefix_k, prepare.prefix_drawn) == (stored, drawn)


def test_what_objectives_decide_follows_other_objectives_and_what_is_given_stays():
    default = "\n".join(line for line in RUN.splitlines() if not line.startswith("train:")) + "\ntrain: {steps: 1}"
    reverse = {"train.objectives.0.direction": "reverse"}
    prepare = read_config(default, "here", ["train.objectives.0.direction=reverse"]).prepare
    assert (prepare.prefix_k, prepare.prefix_drawn) == (8, 0)
    config = read_config(default, "here", [])
    assert with_values(config, reverse, "").prepare.prefix_drawn == 0
    assert with_values(with_values(config, reverse, ""), {"train.objectives.0.direction": "forward"}, "") == config
    assert with_values(config, {"prepare.prefix_k": 2}, "").prepare.prefix_drawn == 1
    given = read_config(default, "here", ["prepare.prefix_drawn=3"])
    assert not [*drawn_left_out(given)]
    given = with_values(given, reverse, "")
    assert given.prepare.prefix_drawn == 3
    (told,) = drawn_left_out(given)
    assert "train.objectives.0: prefix_kl in reverse, or with a temperature, learns from 5 of 8" in told


def test_an_objective_that_asks_for_likely_tokens_is_refused_where_none_are_to_be_stored():
    with pytest.raises(UsageError, match=r"prefix_kl, which needs prepare\.prefix_k above 0, such as 8"):
        read_config(RUN, "here", ["train.objectives=[{kind: prefix_kl}]", "prepare.prefix_k=0"])


def test_no_more_tokens_are_drawn_than_are_stored():
    with pytest.raises(UsageError, match=r"prefix_drawn is 9, more than prepare\.prefix_k, 8"):
        read_config(RUN, "here", ["prepare.prefix_k=8", "prepare.prefix_drawn=9"])


def test_the_run_in_the_readme_is_a_run():
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    run = readme.split("writes a commented one):")[1].split("ctd run")[0]
    assert read_config(run, "README.md", []).name == "mine"


@pytest.mark.parametrize("file", ["smoke", "loss", "chunking", "learning"])
def test_every_packaged_search_can_be_drawn_from(file):
    runs = list(runs_of_search(TUNE_CONFIGS / f"{file}.yaml"))
    assert len({run.train.steps for run in runs}) == 1


def test_the_search_in_the_readme_can_be_drawn_from(tmp_path):
    example = (TUNE_CONFIGS / "README.md").read_text().split("hold distributions in turn:\n")[1].split("\n\nTrials")[0]
    (tmp_path / "search.yaml").write_text(textwrap.dedent(example))
    runs = list(runs_of_search(tmp_path / "search.yaml"))
    assert {run.train.objectives[0].chunks.kind for run in runs} == {"finest", "debiased"}


def runs_of_search(file):
    """The run of a search, and those of trials that are drawn."""
    options = read_options(file, Search)
    run = with_values(read_run(options.recipe, str(file), []), options.changes, str(file))
    space = {name: parse_space(value, name) for name, value in options.space.items()}
    yield run
    for seed in range(20):
        for values in settings(space, False, random.Random(seed)):
            yield with_values(run, values, str(file))


def test_an_error_names_where_its_value_was_written():
    with pytest.raises(UsageError, match=r"^--set: train\.stesp: there is no such field\. Did you mean steps\?$"):
        read_config(RUN, "here", ["train.stesp=3"])
    sources = "corpus={kind: mixture, sources: [{kind: jsonl, paths: 3}, {kind: csv}]}"  # no kinds in the paths
    with pytest.raises(
        UsageError, match=r"(?s)^--set: corpus\.sources\.0\.paths: .*--set: corpus\.sources\.1\.paths: "
    ):
        read_config(RUN, "here", [sources])
    both = RUN.replace("steps: 1", "steps: 0")
    with pytest.raises(UsageError) as raised:
        read_config(both, "here", ["teacher.dtyp=float32"])
    starts = sorted(line.partition(": ")[0] + " " + line.split(": ")[1] for line in str(raised.value).splitlines())
    assert starts == ["--set teacher.dtyp", "here train.steps"]


def test_an_error_of_several_values_names_those_that_were_set():
    with pytest.raises(
        UsageError, match=r"^here with --set train\.batch_tokens: train\.batch_tokens is 8, less than one"
    ):
        read_config(RUN, "here", ["train.batch_tokens=8"])
    stages = "train.stages=[{steps: 9}]"
    with pytest.raises(UsageError, match=r"^here with --set train\.stages: train: the stages have 9 steps"):
        read_config(RUN, "here", [stages])
    with pytest.raises(UsageError, match=r"^here: train: the stages have 1 steps"):
        read_config(RUN.replace("steps: 1", "steps: 1, stages: [{steps: 1}]"), "here", ["name=other"])
    with pytest.raises(UsageError) as raised:
        read_config(RUN.replace("steps: 1", "steps: 1, batch_tokens: 8"), "here", ["prepare.targets=false"])
    starts = sorted(line.partition(":")[0] for line in str(raised.value).splitlines())
    assert starts == ["here", "here with --set prepare.targets"]
    with pytest.raises(UsageError, match=r"^--set: student\.tokenizer: .*Did you mean bytes\?"):
        read_config(RUN, "here", ["student.tokenizer.kind=byts"])


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.micro_batches=2", "this field is called gradient_accumulation"),
        ("train.objectives=[{kind: mined}]", "the kind mined is called min_ed"),
        ("student.vocab_multiple=64", "this field is called pad_to_multiple_of"),
    ],
)
def test_a_name_of_an_earlier_version_is_refused_with_the_new_one(override, message):
    with pytest.raises(UsageError, match=message):
        read_config(RUN, "here", [override])
