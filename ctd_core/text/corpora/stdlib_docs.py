"""The documentation strings of the running Python's standard library, which are there without a download."""

import ast
import sysconfig
from collections import deque
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from ctd_core.config.text import StdlibDocs
from ctd_core.text.corpora.slices import CorpusSlice, slices_of
from ctd_core.text.documents import Document, plain_document

LEAST_DOCSTRING = 60  # characters; shorter ones are hardly documents
LEFT_OUT = {"site-packages", "dist-packages", "test", "tests", "idlelib", "lib2to3", "__pycache__", "turtledemo"}
BLOCKS = {"body", "handlers", "orelse", "finalbody", "cases"}  # the fields of nodes that hold statements


def plan(corpus: StdlibDocs, slice_bytes: int) -> Iterator[CorpusSlice]:
    """Slices that hold their documents."""
    yield from slices_of(_documents(), slice_bytes)


def read(corpus: StdlibDocs, part: CorpusSlice) -> Iterator[Document]:
    """The documents that the slice holds."""
    yield from part.documents


def _documents() -> Iterator[Document]:
    root = Path(sysconfig.get_path("stdlib"))
    seen: set[str] = set()
    for file in sorted(root.rglob("*.py")):
        if not LEFT_OUT & set(file.relative_to(root).parts):
            name = file.relative_to(root).with_suffix("").as_posix()
            for number, text in enumerate(_docstrings(file)):
                if text not in seen:
                    seen.add(text)
                    yield plain_document(f"{name}:{number}", text)


@cache
def _docstrings(file: Path) -> tuple[str, ...]:
    """The docstrings of a file, breadth first; expressions, which hold none, are not looked into."""
    nodes: deque[ast.AST] = deque([ast.parse(file.read_text(encoding="utf-8"))])
    found = []
    while nodes:
        node = nodes.popleft()
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node)
            if text and len(text) >= LEAST_DOCSTRING:
                found.append(text)
        for field in node._fields:
            if field in BLOCKS:
                nodes += getattr(node, field)
    return tuple(found)
