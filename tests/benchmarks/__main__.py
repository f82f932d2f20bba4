"""`make bench`: every figure is a ratio against a baseline measured in the same process."""

import argparse
import platform

from rich.console import Console
from rich.table import Table

from tests.benchmarks import checkpoints, models, objectives, scheduling, texts


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--teacher", default="runs/teachers/SmolLM2-135M-Instruct", help="a directory with a model")
    parser.add_argument("--tokenizers", default="runs/tokenizers", help="a directory with tokenizers of real models")
    parser.add_argument(
        "--only", choices=["texts", "models", "checkpoints", "objectives", "scheduling"], help="some of the figures"
    )
    arguments = parser.parse_args()
    table = Table("", "figure", "ratio", "aim", title=f"Ratios on {platform.machine()}, {platform.python_version()}")
    if arguments.only in (None, "models"):
        models.add_rows(table, arguments.teacher)
    if arguments.only in (None, "checkpoints"):
        checkpoints.add_rows(table, arguments.teacher)
    if arguments.only in (None, "objectives"):
        objectives.add_rows(table, arguments.teacher, arguments.tokenizers)
    if arguments.only in (None, "texts"):
        texts.add_rows(table)
    if arguments.only in (None, "scheduling"):
        scheduling.add_rows(table, arguments.teacher)
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
