"""Tables, for terminals and for Markdown."""

import sys
from dataclasses import dataclass
from typing import TextIO

from rich.console import Console
from rich.table import Table
from rich.text import Text

WIDTH_OF_FILES = 240  # characters, where nobody's window limits it


@dataclass(frozen=True)
class TextTable:
    """A table of text. text_columns: how many of the first columns are words, which are aligned left."""

    columns: list[str]
    rows: list[list[str]]
    title: str = ""
    caption: str = ""
    text_columns: int = 1


def wide_console(stream: TextIO) -> Console:
    """A console as wide as the terminal that `stream` is, or wide enough for any table where it is none."""
    return Console(file=stream, width=None if stream.isatty() else WIDTH_OF_FILES)


def print_table(table: TextTable, stream: TextIO | None = None) -> None:
    """Print a table, as its text is, to `stream`, standard output by default."""
    title, caption = (Text(line) if line else None for line in (table.title, table.caption))
    shown = Table(title=title, caption=caption, show_header=any(table.columns))
    for number, column in enumerate(table.columns):
        shown.add_column(Text(column), justify="left" if number < table.text_columns else "right")
    for row in table.rows:
        shown.add_row(*map(Text, row))
    wide_console(stream or sys.stdout).print(shown)


def as_markdown(table: TextTable) -> str:
    """The table for a document."""
    lines = [table.columns, ["---"] * len(table.columns), *table.rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)
