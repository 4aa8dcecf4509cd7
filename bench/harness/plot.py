"""Small plots as SVG, readable on light and on dark pages; pure, and standard library only.

Why no plotting library: three kinds of plot, files of a few KB that diff, and colours that follow
the reader's page, which a picture drawn once cannot. Lines for what grows, bars for contenders
side by side, stacked bars for shares. Axes name their units; a scale is logarithmic where figures
span more than a factor of thirty or so (``is_log``), and bars then begin at a power of ten.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from html import escape

WIDTH, ROW, PAD = 760, 26, 16
LEFT, RIGHT, TOP, BOTTOM = 74, 24, 64, 54
CHAR = 6.9  #: width of a character of the 12 px text, on average

#: blue, orange, green, purple, grey, red: told apart by most colour-blind people, and by marks
LIGHT = ("#0b62c4", "#c2540a", "#0a7a50", "#8a3ab9", "#6a7280", "#c02942", "#8a6d00")
DARK = ("#6cb4ff", "#ff9d57", "#4ed3a2", "#d49af5", "#a4abb8", "#ff7d90", "#e3c04d")
MARKS = ("circle", "square", "triangle", "diamond", "cross", "circle", "square")
SWATCHES = ("square",) * 7

STYLE = (
    "<style>.bg{fill:#fff}"
    "text{font:12px system-ui,-apple-system,'Segoe UI',sans-serif;fill:#1f2933}"
    ".title{font-size:15px;font-weight:600}.soft{fill:#52606d}.grid{stroke:#e1e5ea}"
    ".axis{stroke:#7b8794}.goal{stroke:#52606d;stroke-dasharray:5 4}"
    + "".join(f".f{i}{{fill:{c}}}.l{i}{{stroke:{c};fill:none}}" for i, c in enumerate(LIGHT))
    + "@media(prefers-color-scheme:dark){.bg{fill:#11161d}text{fill:#e4e9ef}.soft{fill:#a9b4c0}"
    ".grid{stroke:#2a333e}.axis{stroke:#77828f}.goal{stroke:#a9b4c0}"
    + "".join(f".f{i}{{fill:{c}}}.l{i}{{stroke:{c};fill:none}}" for i, c in enumerate(DARK))
    + "}</style>"
)  # fmt: skip


def short(value: float) -> str:
    """A figure on an axis or a bar: 1,200,000 is 1.2M, 0.00042 is 0.00042."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size * 0.9995:
            return f"{value / size:.3g}{unit}"
    return f"{value:.3g}" if abs(value) < 999.5 else f"{value:.0f}"


class Scale:
    """From figures to pixels on one axis."""

    def __init__(
        self, values: Sequence[float], low_px: float, high_px: float, is_log: bool, is_bar: bool
    ) -> None:
        self.is_log = is_log
        self._px = low_px, high_px
        low, high = min(values), max(values)
        if is_log:
            floor = math.floor(math.log10(low) + 1e-9) if is_bar else math.log10(low)
            self._ends = floor, math.log10(high)
            if is_bar and low < 1.6 * 10**floor:
                self._ends = floor - 1, self._ends[1]
            if self._ends[1] - self._ends[0] < 0.3:
                self._ends = self._ends[0] - 0.2, self._ends[1] + 0.2
        else:
            self._ends = min(0.0, low), high * 1.02 or 1.0

    def at(self, value: float) -> float:
        """Pixels of a figure."""
        figure = math.log10(value) if self.is_log else value
        share = (figure - self._ends[0]) / (self._ends[1] - self._ends[0])
        return self._px[0] + share * (self._px[1] - self._px[0])

    def ticks(self) -> list[float]:
        """Round figures on the axis."""
        low, high = self._ends
        if self.is_log:
            exponents = range(math.floor(low), math.ceil(high) + 1)
            factors = (1,) if high - low > 2.2 else (1, 2, 5)
            found = [factor * 10.0**exponent for exponent in exponents for factor in factors]
            return [tick for tick in found if low - 1e-9 <= math.log10(tick) <= high + 1e-9]
        step = 10 ** math.floor(math.log10(high - low))
        step = next(step * part for part in (0.2, 0.5, 1, 2) if (high - low) / (step * part) <= 6)
        return [step * number for number in range(int(low / step), int(high / step) + 1)]


def _mark(kind: str, x: float, y: float, color: int) -> str:
    at = f'class="f{color}"'
    if kind == "circle":
        return f'<circle {at} cx="{x:.1f}" cy="{y:.1f}" r="4"/>'
    if kind == "square":
        return f'<rect {at} x="{x - 3.6:.1f}" y="{y - 3.6:.1f}" width="7.2" height="7.2"/>'
    points = {
        "triangle": ((0, -5), (4.8, 4), (-4.8, 4)),
        "diamond": ((0, -5.2), (5.2, 0), (0, 5.2), (-5.2, 0)),
        "cross": ((-5, -2), (5, -2), (5, 2), (-5, 2)),
    }[kind]
    return f'<polygon {at} points="{" ".join(f"{x + dx:.1f},{y + dy:.1f}" for dx, dy in points)}"/>'


def _legend(
    names: Sequence[str], y: float, marks: Sequence[str] = MARKS
) -> tuple[list[str], float]:
    """Marks and names in as many rows as they need; the parts and the room they took."""
    parts, x, rows = [], float(PAD), 1
    for number, name in enumerate(names):
        width = 20 + CHAR * len(name) + 18
        if x + width > WIDTH - PAD and x > PAD:
            x, rows = float(PAD), rows + 1
        at = y + 19 * (rows - 1)
        parts.append(_mark(marks[number % 7], x + 6, at - 4, number % 7))
        parts.append(f'<text x="{x + 17:.1f}" y="{at:.1f}">{escape(name)}</text>')
        x += width
    return parts, 19.0 * rows


def _page(title: str, height: float, parts: Sequence[str]) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:.0f}" role="img" '
        f'width="{WIDTH}" aria-label="{escape(title, quote=True)}">{STYLE}'
        f'<rect class="bg" width="{WIDTH}" height="{height:.0f}" rx="6"/>'
        f'<text class="title" x="{PAD}" y="26">{escape(title)}</text>{"".join(parts)}</svg>\n'
    )


def lines(
    title: str,
    x_label: str,
    y_label: str,
    series: Mapping[str, Sequence[tuple[float, float]]],
    *,
    is_log_x: bool = True,
    is_log_y: bool = True,
    goal: tuple[str, float] | None = None,
    x_name: Callable[[float], str] = short,
) -> str:
    """Lines with marks.

    Args:
        title: what is shown.
        x_label: with its unit.
        y_label: with its unit.
        series: points by name, in the order of their colours.
        is_log_x: the x axis is logarithmic, with a name at every point.
        is_log_y: the y axis is logarithmic.
        goal: a name and a figure for a dashed line across.
        x_name: how a figure of the x axis is written.
    """
    legend, room = _legend(list(series), 50)
    top, height = TOP + room - 6, TOP + room - 6 + 290 + BOTTOM
    xs = [x for points in series.values() for x, _ in points]
    ys = [y for points in series.values() for _, y in points] + ([goal[1]] if goal else [])
    across = Scale(xs, LEFT + 14, WIDTH - RIGHT - 14, is_log_x, False)
    up = Scale(ys, height - BOTTOM - 8, top + 8, is_log_y, False)
    parts = legend
    for tick in up.ticks():
        y = up.at(tick)
        parts.append(
            f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
            f'<text class="soft" x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">'
            f"{short(tick)}</text>"
        )
    for tick in sorted(set(xs)) if is_log_x else across.ticks():
        x = across.at(tick)
        parts.append(
            f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{top}" y2="{height - BOTTOM}"/>'
            f'<text class="soft" x="{x:.1f}" y="{height - BOTTOM + 18}" text-anchor="middle">'
            f"{x_name(tick)}</text>"
        )
    parts.append(
        f'<line class="axis" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{height - BOTTOM}" '
        f'y2="{height - BOTTOM}"/>'
        f'<text x="{(LEFT + WIDTH - RIGHT) / 2}" y="{height - 14}" text-anchor="middle">'
        f"{escape(x_label)}</text>"
        f'<text transform="translate(20 {(top + height - BOTTOM) / 2:.0f}) rotate(-90)" '
        f'text-anchor="middle">{escape(y_label)}</text>'
    )
    if goal:
        y = up.at(goal[1])
        parts.append(
            f'<line class="goal" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
            f'<text class="soft" x="{LEFT + 6}" y="{y + 14:.1f}">{escape(goal[0])}</text>'
        )
    for number, points in enumerate(series.values()):
        placed = [(across.at(x), up.at(y)) for x, y in sorted(points)]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in placed)
        parts.append(f'<polyline class="l{number % 7}" stroke-width="2" points="{path}"/>')
        parts += [_mark(MARKS[number % 7], x, y, number % 7) for x, y in placed]
    return _page(title, height, parts)


def bars(
    title: str,
    x_label: str,
    groups: Mapping[str, Mapping[str, float]],
    *,
    is_log: bool = False,
    goal: tuple[str, float] | None = None,
) -> str:
    """Horizontal bars, grouped by label, each with its figure.

    Args:
        title: what is shown.
        x_label: with its unit.
        groups: by label, figures by series; a missing one leaves no bar.
        is_log: the axis is logarithmic.
        goal: a name and a figure for a dashed line from top to bottom.
    """
    names = list(dict.fromkeys(name for figures in groups.values() for name in figures))
    legend, room = _legend(names, 50, SWATCHES) if len(names) > 1 else ([], 0.0)
    left = PAD + min(290.0, CHAR * max(map(len, groups)) + 10)
    thick = 18 if len(names) == 1 else 14
    row = thick * len(names) + (9 if len(names) == 1 else 12)
    top = TOP + room - 12
    height = top + row * len(groups) + BOTTOM
    values = [value for figures in groups.values() for value in figures.values() if value > 0]
    values += [goal[1]] if goal else []
    across = Scale(values, left, WIDTH - RIGHT - 48, is_log, True)
    parts = legend + _across(across, left, top, height, x_label)
    for number, (label, figures) in enumerate(groups.items()):
        y = top + row * number + 6
        middle = y + thick * len(names) / 2 + 4
        parts.append(
            f'<text x="{left - 8}" y="{middle:.1f}" text-anchor="end">{escape(label)}</text>'
        )
        for at, name in enumerate(names):
            if figures.get(name, 0) <= 0:
                continue
            end = across.at(figures[name])
            color = at % 7 if len(names) > 1 else 0
            parts.append(
                f'<rect class="f{color}" x="{left:.1f}" y="{y + thick * at:.1f}" rx="2" '
                f'width="{max(1.0, end - left):.1f}" height="{thick - 3}"/>'
                f'<text class="soft" x="{end + 6:.1f}" y="{y + thick * at + thick / 2 + 3:.1f}">'
                f"{short(figures[name])}</text>"
            )
    return _page(title, height, parts + _goal_down(goal, across, top, height))


def stacked(title: str, x_label: str, groups: Mapping[str, Mapping[str, float]]) -> str:
    """Horizontal bars made of parts; the sum stands at the end."""
    names = list(dict.fromkeys(name for figures in groups.values() for name in figures))
    legend, room = _legend(names, 50, SWATCHES)
    left = PAD + min(290.0, CHAR * max(map(len, groups)) + 10)
    top = TOP + room - 12
    height = top + (ROW + 4) * len(groups) + BOTTOM
    sums = {label: sum(figures.values()) for label, figures in groups.items()}
    across = Scale(list(sums.values()), left, WIDTH - RIGHT - 48, False, True)
    parts = legend + _across(across, left, top, height, x_label)
    for number, (label, figures) in enumerate(groups.items()):
        y, done = top + (ROW + 4) * number + 6, 0.0
        parts.append(f'<text x="{left - 8}" y="{y + 14}" text-anchor="end">{escape(label)}</text>')
        for at, name in enumerate(names):
            part = figures.get(name, 0.0)
            start, end = across.at(done), across.at(done + part)
            done += part
            if end - start > 0.3:
                parts.append(
                    f'<rect class="f{at % 7}" x="{start:.1f}" y="{y}" '
                    f'width="{max(0.3, end - start - 1):.1f}" height="{ROW - 6}"/>'
                )
        parts.append(
            f'<text class="soft" x="{across.at(done) + 6:.1f}" y="{y + 14}">{short(done)}</text>'
        )
    return _page(title, height, parts)


def _across(scale: Scale, left: float, top: float, height: float, label: str) -> list[str]:
    """Grid, ticks and name of a horizontal axis of bars."""
    parts, last = [], -1e9
    for tick in scale.ticks():
        x = scale.at(tick)
        parts.append(
            f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{top}" y2="{height - BOTTOM}"/>'
        )
        if x - last > 34:
            parts.append(
                f'<text class="soft" x="{x:.1f}" y="{height - BOTTOM + 18}" text-anchor="middle">'
                f"{short(tick)}</text>"
            )
            last = x
    parts.append(
        f'<line class="axis" x1="{left:.1f}" x2="{left:.1f}" y1="{top}" y2="{height - BOTTOM}"/>'
        f'<text x="{(left + WIDTH - RIGHT) / 2:.0f}" y="{height - 14}" text-anchor="middle">'
        f"{escape(label)}</text>"
    )
    return parts


def _goal_down(
    goal: tuple[str, float] | None, scale: Scale, top: float, height: float
) -> list[str]:
    if goal is None:
        return []
    x = scale.at(goal[1])
    return [
        f'<line class="goal" x1="{x:.1f}" x2="{x:.1f}" y1="{top}" y2="{height - BOTTOM}"/>'
        f'<text class="soft" x="{x + 5:.1f}" y="{top + 2}">{escape(goal[0])}</text>'
    ]
