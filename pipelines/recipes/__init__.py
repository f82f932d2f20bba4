"""Packaged runs, by name."""

from importlib import resources

from ctd_core.errors import UsageError


def recipe_names() -> list[str]:
    """The names of all packaged recipes."""
    files = resources.files(__name__).iterdir()
    return sorted(file.name.removesuffix(".yaml") for file in files if file.name.endswith(".yaml"))


def read_recipe(name: str) -> str:
    """The YAML of a packaged recipe; raises UsageError, with the names, where there is none."""
    if name not in recipe_names():
        raise UsageError(f"--recipe {name}: there is no such recipe; there is {', '.join(recipe_names())}.")
    return resources.files(__name__).joinpath(f"{name}.yaml").read_text(encoding="utf-8")
