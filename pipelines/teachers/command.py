"""The command line of the modules here: one directory to make."""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from ctd_core.errors import CtdError
from pipelines.display.progress import show_log


def make_from_command_line(make: Callable[[Path], None], about: str | None) -> None:
    """Call `make` with the directory that the command line names; an error that a user can act on ends it in a line."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", metavar="DIR", type=Path, help="where to put it")
    directory = parser.parse_args().directory
    show_log()
    try:
        make(directory)
    except CtdError as error:
        sys.exit(f"{parser.prog}: {error}")
