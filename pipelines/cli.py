"""The `ctd` command. Exit status: 0 done, 1 failed, 2 wrong usage."""

import json
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from ctd_core.errors import CtdError, UsageError
from pipelines.inspect import as_json, as_rich, inspect_text

app = typer.Typer(
    name="ctd", no_args_is_help=True, add_completion=False, help="Distil language models across tokenizers."
)

TOKENIZER_HELP = "A tokenizer: directory, hub id, tokenizer.json file, or `bytes`."


@app.callback()
def root() -> None:
    """Distil language models across tokenizers."""


@app.command()
def inspect(
    student: Annotated[str, typer.Option(help=TOKENIZER_HELP)],
    teacher: Annotated[str, typer.Option(help=TOKENIZER_HELP)],
    text: Annotated[str | None, typer.Option(help="The text to align.")] = None,
    text_file: Annotated[Path | None, typer.Option(help="A UTF-8 file that holds it.")] = None,
    as_json_lines: Annotated[bool, typer.Option("--json", help="One JSON object, and nothing else.")] = False,
) -> None:
    """Show the chunks of a text on which two tokenizers agree.

    Example: ctd inspect --student bytes --teacher ./SmolLM2-135M-Instruct --text "Hello world"
    """
    if (text is None) == (text_file is None):
        raise UsageError("give either --text or --text-file")
    document = _read_text(text_file) if text_file is not None else text
    inspection = inspect_text(student, teacher, document or "")
    if as_json_lines:
        print(json.dumps(as_json(inspection), ensure_ascii=False))
    else:
        Console().print(as_rich(inspection), soft_wrap=True)


def _read_text(path: Path) -> str:
    try:
        return path.read_bytes().decode()  # not read_text, which would change line ends
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror}).") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start}). Convert it first.") from error


def main() -> None:
    """Run the command line; errors that a user can act on are printed without a traceback."""
    try:
        app()
    except CtdError as error:
        print(f"ctd: {error}", file=sys.stderr)
        sys.exit(2 if isinstance(error, UsageError) else 1)
