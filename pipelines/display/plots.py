"""Plots as SVG."""

import io
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

from ctd_core.errors import UsageError


def require_matplotlib() -> None:
    """Raises UsageError where matplotlib is not installed: before hours of work rather than after."""
    if find_spec("matplotlib") is None:
        raise UsageError("plots need the package matplotlib: pip install 'ctd-ray[plots]'.")


def svg(draw: Callable[[Any], Any]) -> str:
    """The figure that `draw` makes with matplotlib's pyplot, as an SVG document."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    figure = draw(pyplot)
    figure.tight_layout()
    out = io.StringIO()
    figure.savefig(out, format="svg")
    pyplot.close(figure)
    return out.getvalue()
