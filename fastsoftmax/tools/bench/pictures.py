"""Time against classes, against rows, against peers; maps."""

import math
from collections.abc import Callable, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter
from PIL import Image

from fastsoftmax.tools.bench import maps
from fastsoftmax.tools.bench.libraries import OURS, PEERS
from fastsoftmax.tools.bench.report import Results
from fastsoftmax.tools.bench.session import Row, classes_of, describe

INK, MUTED, FAINT = "#20242b", "#7a828e", "#c6ccd5"
_HUES = ("#2f6db5", "#7a828e", "#2a9d74", "#c9a227", "#d9622b", "#8a4fbf", "#5b4636", "#c76b98")
COLORS = dict(zip((OURS, *PEERS), _HUES, strict=True))
MARKERS = dict(zip((OURS, *PEERS), "osv^D*XP", strict=True))


SVG: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "fastsoftmax",
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
}
"""Settings with which the same numbers give the same file. Letters stay letters, which makes it small."""


def style(axes: Any, title: str, x: str, y: str) -> None:
    """Title, labels and grid of a panel."""
    axes.set_title(title, loc="left", size=11, weight="bold", color=INK)
    axes.set_xlabel(x, color=MUTED, size=9)
    axes.set_ylabel(y, color=MUTED, size=9)
    axes.tick_params(labelsize=8, labelcolor=MUTED, color=FAINT, which="both")
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(FAINT)
    axes.grid(which="major", color=FAINT, linewidth=0.5, alpha=0.6)
    axes.set_axisbelow(True)


def _lines(axes: Any, rows: Sequence[Row], x: Callable[[Row], float], y: Callable[[Row, float], float]) -> None:
    """A line for each library; ours with ``out=`` and the memory limit, which is np.copyto to the same memory."""
    axes.set(xscale="log", yscale="log")
    axes.yaxis.set_minor_formatter(NullFormatter())
    fresh = [row for row in rows if "out=" not in row.function]
    given = [row for row in rows if "out=" in row.function]

    def line(found: Sequence[tuple[Row, float]], label: str, **style: Any) -> None:
        points = [(x(row), y(row, seconds)) for row, seconds in found]
        if points:
            axes.plot(*zip(*points, strict=True), label=label, **style)

    for name in (*PEERS, OURS):
        found = [(row, row.timings[name].median) for row in fresh if name in row.timings]
        wide = {"markersize": 5, "linewidth": 2.4} if name == OURS else {"markersize": 3.5, "linewidth": 1.2}
        line(found, name, color=COLORS[name], marker=MARKERS[name], **wide)
    ours = [(row, row.ours.median) for row in given]
    line(ours, f"{OURS}, out=", color=COLORS[OURS], linestyle=":", linewidth=2.4)
    limit = [(row, row.yardstick.median) for row in given]
    line(limit, "memory limit: np.copyto", color=INK, linestyle="--", linewidth=1)


def _bars(axes: Any, rows: Sequence[Row]) -> None:
    """For each function, how many times as long as ours every peer takes."""
    names = [name for name in PEERS if any(name in row.timings for row in rows)]
    height = 0.8 / len(names)
    for row_position, row in enumerate(rows):
        for position, name in enumerate(names):
            if name not in row.timings:
                continue
            place, ratio = row_position - 0.4 + (position + 0.5) * height, row.ratio(name)
            label = name if row_position == 0 else None
            axes.barh(place, ratio - 1, height * 0.9, left=1, color=COLORS[name], label=label)
            at = max(ratio, 1.0) * 1.05
            axes.text(at, place, f"{ratio:.1f}", va="center", size=6, color=MUTED)
    axes.axvline(1, color=COLORS[OURS], linewidth=2)
    axes.set(xscale="log", yticks=range(len(rows)), ylim=(len(rows) - 0.4, -0.6))
    axes.set_yticklabels([row.function for row in rows])
    axes.minorticks_off()
    least = min([0.8, *(0.8 * row.ratio(n) for row in rows for n in names if n in row.timings)])
    axes.set_xlim(least, None)
    ticks = [t for t in (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100) if least <= t <= axes.get_xlim()[1]]
    axes.set_xticks(ticks, [f"{t:g} x" for t in ticks])


def bar_rows(results: Results) -> list[Row]:
    """The rows for the bars: one dtype and the shape with most functions, large ones before small ones."""
    groups: dict[tuple[Any, str], list[Row]] = {}
    for row in results.rows:
        if len(row.timings) > 1:
            groups.setdefault((row.shape, row.dtype), []).append(row)
    if not groups:
        return []
    best = max(groups, key=lambda key: (len(groups[key]), key[1] == "float32", -abs(math.prod(key[0]) - 1e7)))
    return groups[best]


def draw(results: Results, path: Path) -> None:
    """Save the picture (PNG): the sweeps, and the bars."""
    bars = bar_rows(results)
    panels = [bool(results.by_classes), bool(results.by_rows), bool(bars)]
    figure = Figure(figsize=(5.2 * sum(panels), 4.6), facecolor="white", layout="constrained")
    grid = iter(figure.subplots(1, sum(panels), squeeze=False)[0])
    if results.by_classes:
        axes, rows = next(grid), results.by_classes
        elements = math.prod(rows[0].shape)
        _lines(axes, rows, lambda row: classes_of(row.shape), lambda row, t: 1e9 * t / math.prod(row.shape))
        title = f"softmax of {elements / 1e6:.0f} million {rows[0].dtype}"
        style(axes, title, "classes in a row", "nanoseconds for each number")
    if results.by_rows:
        axes, rows = next(grid), results.by_rows
        _lines(axes, rows, lambda row: row.shape[0], lambda _, t: 1e6 * t)
        style(axes, f"softmax of rows of {classes_of(rows[0].shape)} {rows[0].dtype}", "rows", "microseconds")
    if bars:
        axes = next(grid)
        _bars(axes, bars)
        style(axes, f"{describe(bars[0].shape)} {bars[0].dtype}", "time relative to fastsoftmax", "")
    handles: dict[str, Any] = {}
    for axes in figure.axes:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    figure.legend(
        handles.values(),
        handles,
        loc="outside lower center",
        ncols=len(handles),
        frameon=False,
        fontsize=8.5,
        labelcolor=INK,
    )
    memory = BytesIO()
    FigureCanvasAgg(figure).print_figure(memory, dpi=110, format="png")
    with Image.open(memory) as picture:  # few colours: a fifth of the bytes
        picture.convert("RGB").quantize(96).save(path, "PNG", optimize=True)


MAP_FACTOR = 4.0
"""The colours of a map end where ours takes so many times as long as the best peer, or the best peer as ours."""


def _map_panel(axes: Any, one: maps.Table, single: bool, title: str) -> Any:
    """A cell for each shape and function: blue where ours is ahead, red where the best peer is."""
    rows = [[one.rows.get((shape, function)) for function in one.functions] for shape in one.shapes]
    ratios = [[(row.to_best(single) if row else None) or math.nan for row in line] for line in rows]
    mesh = axes.pcolormesh(
        ratios, norm=LogNorm(1 / MAP_FACTOR, MAP_FACTOR), cmap="RdBu_r", edgecolors="white", linewidth=0.8
    )
    for y, line in enumerate(rows):
        for x, row in enumerate(line):
            ratio = ratios[y][x]
            dark = not math.isnan(ratio) and abs(math.log(ratio)) > 0.6 * math.log(MAP_FACTOR)
            text = maps.cell(row, single) if row else ""
            color = "white" if dark else INK
            axes.text(x + 0.5, y + 0.5, text, ha="center", va="center", size=7, color=color)
    axes.set_title(title, loc="left", size=9.5, weight="bold", color=INK)
    axes.set_xticks([x + 0.5 for x in range(len(one.functions))], one.functions, rotation=40, ha="right")
    axes.set_yticks([y + 0.5 for y in range(len(one.shapes))], [describe(shape) for shape in one.shapes])
    axes.set_ylim(len(one.shapes), 0)
    axes.tick_params(labelsize=8, labelcolor=INK, length=0)
    axes.label_outer()
    axes.spines[:].set_visible(False)
    return mesh


def draw_map(results: Results, path: Path) -> None:
    """Save a map as SVG or PNG, as the file's name says: a panel for each dtype and number of threads."""
    count = results.machine["threads"]
    panels = [(one, single) for one in maps.tables(results.rows) for single in one.singles]
    height = 1.9 + 0.24 * max(len(one.shapes) for one, _ in panels)
    width = 1.6 + sum(0.62 * len(one.functions) for one, _ in panels)
    with rc_context(SVG):
        figure = Figure(figsize=(width, height), facecolor="white", layout="constrained")
        grid = figure.subplots(1, len(panels), squeeze=False)[0]
        for axes, (one, single) in zip(grid, panels, strict=True):
            threads = 1 if single else count
            mesh = _map_panel(axes, one, single, f"{one.dtype}, {threads} thread{'s' * (threads != 1)}")
        ticks = (0.25, 0.5, 1, 2, 4)
        bar = figure.colorbar(mesh, ax=list(grid), ticks=ticks, format="%g", extend="both", pad=0.01, aspect=30)
        bar.minorticks_off()
        bar.ax.tick_params(labelsize=8, labelcolor=MUTED, color=FAINT)
        bar.outline.set_visible(False)
        figure.suptitle(f"{maps.name(results)}: our time / best peer's", x=0.01, ha="left", size=11, color=INK)
        metadata = {"Date": None} if path.suffix == ".svg" else {}
        figure.savefig(path, dpi=110, format=path.suffix[1:], metadata=metadata)
