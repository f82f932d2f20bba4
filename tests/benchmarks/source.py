"""A corpus that every machine has."""

import inspect
import pkgutil
import sys
from importlib import import_module


def standard_library_source() -> list[str]:
    """Source text of the standard library's modules in pieces of 2,000 characters."""
    texts = []
    for name in sorted(module.name for module in pkgutil.iter_modules() if module.name in sys.stdlib_module_names):
        if name in {"this", "antigravity", "idlelib", "__phello__"}:
            continue
        try:
            source = inspect.getsource(import_module(name))
        except (OSError, TypeError, ImportError):
            continue
        texts += [source[at : at + 2000] for at in range(0, len(source), 2000)]
    return texts
