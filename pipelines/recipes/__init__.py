"""Packaged runs, by name."""

from importlib import resources
from pathlib import Path

from ctd_core.config.run import RunConfig
from ctd_core.config.text import PretrainedTokenizer
from ctd_core.config.yaml_files import read_config, read_text
from ctd_core.errors import UsageError


def recipe_names() -> list[str]:
    """The names of all packaged recipes."""
    files = resources.files(__name__).iterdir()
    return sorted(file.name.removesuffix(".yaml") for file in files if file.name.endswith(".yaml"))


def read_recipe(name: str) -> str:
    """The YAML of a packaged recipe; raises UsageError, with the names, where there is none."""
    if name not in recipe_names():
        raise UsageError(f"{name}: there is no such recipe; there is {', '.join(recipe_names())}.")
    return resources.files(__name__).joinpath(f"{name}.yaml").read_text(encoding="utf-8")


def check_made(name: str, config: RunConfig) -> None:
    """Raises UsageError, with the command that makes it, where what a packaged recipe is made of is not there.

    Nothing is expected of a run's own file.
    """
    if is_file(name):
        return
    recipe = read_recipe(name)
    targets = {config.teacher.model: config.teacher.model}
    if isinstance(config.student.tokenizer, PretrainedTokenizer):
        targets.setdefault(config.student.tokenizer.name, str(Path(config.student.tokenizer.name).parent))
    for path, target in targets.items():
        if path in recipe and path.startswith("runs/") and not Path(path).exists():
            raise UsageError(f"{path} is not there yet. In a checkout of the project, `make {target}` makes it.")


def read_run(name: str, source: str, overrides: list[str]) -> RunConfig:
    """A packaged recipe, or a run's YAML file, with `overrides`; raises UsageError, naming `source`."""
    text = read_text(Path(name)) if is_file(name) else read_recipe(name)
    return read_config(text, f"{source}: {name}", overrides)


def is_file(name: str) -> bool:
    """Whether `name` is of a run's own file, not of a packaged recipe."""
    return name.endswith((".yaml", ".yml"))
