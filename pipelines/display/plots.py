"""Plots as SVG."""

import io
from collections.abc import Callable
from typing import Any

from ctd_core.errors import UsageError


def svg(draw: Callable[[Any], Any]) -> str:
    """The figure that `draw` makes with matplotlib's pyplot, as an SVG document.

    Raises:
        UsageError: matplotlib is not installed.
    """
    try:
        import matplotlib
    except ImportError as error:
        raise UsageError("plots need the package matplotlib: pip install 'ctd-ray[plots]'.") from error
    matplotlib.use("svg")
    from matplotlib import pyplot

    figure = draw(pyplot)
    figure.tight_layout()
    out = io.StringIO()
    figure.savefig(out, format="svg")
    pyplot.close(figure)
    return out.getvalue()
