"""Benchmarks and goldens, which no other test runs, can be imported."""

import pkgutil
from importlib import import_module

import pytest

import tests.benchmarks


@pytest.mark.parametrize(
    "module",
    [*(f"tests.benchmarks.{found.name}" for found in pkgutil.iter_modules(tests.benchmarks.__path__)), "tests.goldens"],
)
def test_a_script_can_be_imported(module):
    if not module.endswith("__main__"):
        import_module(module)
