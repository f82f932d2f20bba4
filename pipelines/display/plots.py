"""Plots as SVG, which take the colour of the text around them, so that a page may be light or dark."""

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any

from ctd_core.errors import UsageError

# Okabe and Ito's, which a colour-blind reader tells apart.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
DASHES = ("-", "--", ":", "-.")
REFERENCE_COLOR = "#888888"
TEXT_COLOR = "#000000"  # matplotlib's own, which becomes that of the page
DECADE = 5  # a range of values with such a ratio is drawn on a logarithmic axis

Points = tuple[Sequence[float], Sequence[float]]


@dataclass(frozen=True)
class Dots:
    """A panel with a dot a row.

    values: by row, each with its standard error or None. references: values of all rows, as vertical lines by name.
    colors: of rows that have one of their own.
    """

    title: str
    values: Mapping[str, tuple[float, float | None]]
    references: Mapping[str, float] = field(default_factory=dict)
    colors: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Curves:
    """A panel with lines over steps. lines: by name. references: constant values, by name."""

    title: str
    lines: Mapping[str, Points]
    references: Mapping[str, float] = field(default_factory=dict)
    has_dots: bool = False


def require_matplotlib() -> None:
    """Raises UsageError where matplotlib is not installed: before hours of work rather than after."""
    if not has_matplotlib():
        raise UsageError("plots need the package matplotlib: pip install 'ctd-ray[plots]'.")


def has_matplotlib() -> bool:
    """Whether plots can be drawn."""
    return find_spec("matplotlib") is not None


def svg(draw: Callable[[Any], Any]) -> str:
    """The figure that `draw` makes with matplotlib's pyplot, as an SVG document."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    style: Any = {"svg.fonttype": "none", "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True}
    with pyplot.rc_context(
        style | {"text.parse_math": False, "grid.alpha": 0.3, "grid.color": REFERENCE_COLOR, "legend.framealpha": 0}
    ):
        figure = draw(pyplot)
        figure.tight_layout()
        out = io.StringIO()
        figure.savefig(out, format="svg", transparent=True)
        pyplot.close(figure)
    return out.getvalue().replace(TEXT_COLOR, "currentColor")


def dots(panels: Sequence[Dots]) -> str:
    """Panels side by side with the same rows, the first on top; axes show what there is, and do not begin at 0."""
    rows = list(dict.fromkeys(name for panel in panels for name in panel.values))

    def draw(pyplot: Any) -> Any:
        size = (3.2 * len(panels) + 1.5, 0.32 * len(rows) + 1.6)
        figure, axes = pyplot.subplots(1, len(panels), figsize=size, sharey=True, squeeze=False)
        for axis, panel in zip(axes[0], panels, strict=True):
            for height, name in enumerate(rows):
                value, error = panel.values.get(name, (None, None))
                if value is not None:
                    color = panel.colors.get(name, COLORS[0])
                    axis.errorbar(value, height, xerr=error, fmt="o", color=color, capsize=2, markersize=5)
            for number, (name, value) in enumerate(panel.references.items()):
                axis.axvline(value, color=REFERENCE_COLOR, linestyle=DASHES[1 + number % 3], label=name)
            if panel.references:
                axis.legend(fontsize="x-small", loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=2)
            axis.set_title(panel.title, fontsize="medium")
            axis.margins(x=0.08)
        axes[0][0].set_yticks(range(len(rows)), rows)
        axes[0][0].set_ylim(len(rows) - 0.5, -0.5)
        return figure

    return svg(draw)


def curves(panels: Sequence[Curves], columns: int = 3) -> str:
    """Panels in rows, each with lines over steps in colours and dashes that differ."""
    columns = min(columns, len(panels))
    rows = -(-len(panels) // columns)

    def draw(pyplot: Any) -> Any:
        figure, axes = pyplot.subplots(rows, columns, figsize=(4 * columns + 0.5, 3 * rows), squeeze=False)
        for axis in axes.flat[len(panels) :]:
            axis.remove()
        for axis, panel in zip(axes.flat, panels, strict=False):
            for number, (name, (steps, values)) in enumerate(panel.lines.items()):
                look = {"color": COLORS[number % len(COLORS)], "linestyle": DASHES[number // len(COLORS) % len(DASHES)]}
                axis.plot(steps, values, marker="." if panel.has_dots else None, label=name, **look)
            for number, (name, value) in enumerate(panel.references.items()):
                axis.axhline(value, color=REFERENCE_COLOR, linestyle=DASHES[1 + number % 3], label=name)
            if len(panel.lines) + len(panel.references) > 1:
                axis.legend(fontsize="x-small")
            axis.set_title(panel.title, fontsize="medium")
            axis.set_xlabel("step", fontsize="small")
        return figure

    return svg(draw)


def fit_scale(axis: Any, values: Sequence[float]) -> None:
    """A logarithmic horizontal axis where values are spread over factors, with few labels, which do not overlap."""
    from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, StrMethodFormatter

    if min(values) > 0 and max(values) >= DECADE * min(values):
        axis.set_xscale("log")
        few = max(values) < 100 * min(values)
        axis.xaxis.set_major_locator(LogLocator(subs=(1.0, 3.0) if few else (1.0,), numticks=6))
        axis.xaxis.set_minor_formatter(NullFormatter())
        axis.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    else:
        axis.xaxis.set_major_locator(MaxNLocator(5))
