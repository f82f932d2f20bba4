"""Cross-tokenizer distillation: everything that calculates. Nothing here imports Ray.

The names below are loaded when they are first used, so that `import ctd_core` is light.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ctd_core.python_api import (
        AlignedChunk,
        align_texts,
        export,
        load_ensemble,
        load_teacher,
        make_rows,
        make_student,
        measure,
        prepare_tokenizer,
        score,
        train,
    )

__all__ = [
    "AlignedChunk", "align_texts", "export", "load_ensemble", "load_teacher", "make_rows", "make_student", "measure",
    "prepare_tokenizer", "score", "train",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name in __all__:
        return getattr(import_module("ctd_core.python_api"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*globals(), *__all__]
