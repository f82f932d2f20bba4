"""The documentation strings of the running Python's standard library, which are there without a download."""

import ast
import sysconfig
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from ctd_core.config.text import StdlibDocs
from ctd_core.text.corpora.slices import CorpusSlice, slices_of
from ctd_core.text.documents import Document, plain_document

LEAST_DOCSTRING = 60  # characters; shorter ones are hardly documents
LEFT_OUT = {"site-packages", "dist-packages", "test", "tests", "idlelib", "lib2to3", "__pycache__", "turtledemo"}


def plan(corpus: StdlibDocs, slice_bytes: int) -> Iterator[CorpusSlice]:
    """Slices that hold their documents."""
    yield from slices_of(_documents(), slice_bytes)


def read(corpus: StdlibDocs, part: CorpusSlice) -> Iterator[Document]:
    """The documents that the slice holds."""
    yield from part.documents


@cache
def _documents() -> tuple[Document, ...]:
    root = Path(sysconfig.get_path("stdlib"))
    found: dict[str, str] = {}
    for file in sorted(root.rglob("*.py")):
        if not LEFT_OUT & set(file.relative_to(root).parts):
            name = file.relative_to(root).with_suffix("").as_posix()
            for number, text in enumerate(_docstrings(file.read_text(encoding="utf-8"))):
                found.setdefault(text, f"{name}:{number}")
    return tuple(plain_document(path, text) for text, path in found.items())


def _docstrings(source: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node)
            if text and len(text) >= LEAST_DOCSTRING:
                yield text
