"""`make bench`: every figure is a ratio against a baseline measured in the same process."""

import argparse
import importlib
import os
import platform

import torch
from rich.console import Console
from rich.table import Table

FIGURES: dict[str, tuple[str, ...]] = {
    "models": ("teacher",),
    "checkpoints": ("teacher",),
    "objectives": ("teacher", "tokenizers"),
    "texts": (),
    "scheduling": ("teacher",),
    "rounds": ("teacher", "tokenizers"),
}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--teacher", default="runs/teachers/SmolLM2-135M-Instruct", help="a directory with a model")
    parser.add_argument("--tokenizers", default="runs/tokenizers", help="a directory with tokenizers of real models")
    parser.add_argument("--only", choices=FIGURES, nargs="*", default=list(FIGURES), help="some of the figures")
    arguments = parser.parse_args()
    table = Table("", "figure", "ratio", "aim", title=f"Ratios on {_machine()}")
    for name in arguments.only:
        figures = importlib.import_module(f"tests.benchmarks.{name}")  # models and objectives need no Ray
        figures.add_rows(table, *(getattr(arguments, argument) for argument in FIGURES[name]))
    Console(width=120).print(table)


def _machine() -> str:
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{os.cpu_count()} CPUs"
    return f"{device}, {platform.machine()}, Python {platform.python_version()}, torch {torch.__version__}"


if __name__ == "__main__":
    main()
