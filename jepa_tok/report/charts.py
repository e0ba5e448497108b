"""Line charts, dots with intervals, bars, strips and heat maps as inline SVG; colours come from the page's CSS, so that dark and light themes both work."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from jepa_tok.report.rundir import Curve

WIDTH, HEIGHT = 380, 210
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 12, 12, 30


@dataclass
class Series:
    """One line of a chart. `faint` lines are thin; `dots` shows each point; `slot` is the colour's number, 1 to 5."""

    name: str
    curve: Curve
    slot: int = 1
    faint: bool = False
    dots: bool = False


@dataclass
class Level:
    """A horizontal dashed line at `y` with a word on it."""

    name: str
    y: float


def chart(
    title: str,
    series: Sequence[Series],
    *,
    note: str = "",
    levels: Sequence[Level] = (),
    zero: bool = False,
    top: float | None = None,
) -> str:
    """A titled line chart over training steps; says so where no series has points.

    :param zero: Whether the y axis starts at zero.
    :param top: Least upper end of the y axis.
    """
    shown = [s for s in series if s.curve]
    head = f"<figcaption><b>{escape(title)}</b>{_legend(shown)}</figcaption>"
    foot = f'<p class="small">{escape(note)}</p>' if note else ""
    if not shown:
        return f'<figure class="chart">{head}<p class="missing">Not among the metrics of this run.</p></figure>'
    ys = [y for s in shown for y in s.curve.y] + [level.y for level in levels]
    low, high = (min([*ys, 0.0]) if zero else min(ys)), max(ys if top is None else [*ys, top])
    low, high, ticks = _scale(low, high)
    last = max(x for s in shown for x in s.curve.x)
    span = last or 1.0

    def px(x: float) -> float:
        return _LEFT + (WIDTH - _LEFT - _RIGHT) * x / span

    def py(y: float) -> float:
        return _TOP + (HEIGHT - _TOP - _BOTTOM) * (1 - (y - low) / (high - low))

    parts = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">']
    for tick in ticks:
        parts.append(f'<path class="grid" d="M{_LEFT} {py(tick):.1f}H{WIDTH - _RIGHT}"/>')
        parts.append(
            f'<text class="tick" x="{_LEFT - 6}" y="{py(tick) + 3.5:.1f}" text-anchor="end">{_number(tick)}</text>'
        )
    _, _, steps = _scale(0.0, last, 5)
    for tick in steps:
        if tick <= last:
            parts.append(
                f'<text class="tick" x="{px(tick):.1f}" y="{HEIGHT - 12}" text-anchor="middle">{_number(tick)}</text>'
            )
    parts.append(f'<text class="tick" x="{WIDTH - _RIGHT}" y="{HEIGHT - 1}" text-anchor="end">step</text>')
    before = -math.inf
    for level in sorted(levels, key=lambda level: -level.y):
        y = py(level.y)
        # Labels that would overlap stand at the two ends.
        x, side = (WIDTH - _RIGHT - 2.0, "end") if y - before > 13 else (_LEFT + 4.0, "start")
        before = y if side == "end" else before
        label = f"{escape(level.name)} {_number(level.y)}"
        parts.append(f'<path class="level" d="M{_LEFT} {y:.1f}H{WIDTH - _RIGHT}"/>')
        parts.append(f'<text class="leveltext" x="{x}" y="{y - 4:.1f}" text-anchor="{side}">{label}</text>')
    for s in shown:
        points = " ".join(f"{px(x):.1f},{py(y):.1f}" for x, y in zip(s.curve.x, s.curve.y))
        parts.append(f'<polyline class="line s{s.slot}{" faint" if s.faint else ""}" points="{points}"/>')
        if s.dots or len(s.curve.x) == 1:
            for x, y in zip(s.curve.x, s.curve.y):
                parts.append(
                    f'<circle class="dot s{s.slot}" cx="{px(x):.1f}" cy="{py(y):.1f}" r="3"><title>{escape(s.name)}, step {x:g}: {y:.4g}</title></circle>'
                )
    return f'<figure class="chart">{head}{"".join(parts)}</svg>{foot}</figure>'


@dataclass
class Dot:
    """A row of `dots`: a value with its interval, and the hollow dot of its control; None where there is none."""

    name: str
    value: float | None
    low: float | None = None
    high: float | None = None
    control: float | None = None
    slot: int = 1
    faint: bool = False


def dots(title: str, rows: Sequence[Dot], *, level: Level | None = None, note: str = "") -> str:
    """A titled plot of a row a name: filled dots on their intervals, hollow controls, a dashed line at `level`."""
    shown = [x for r in rows for x in (r.value, r.low, r.high, r.control) if x is not None]
    head = f"<figcaption><b>{escape(title)}</b></figcaption>"
    foot = f'<p class="small">{escape(note)}</p>' if note else ""
    if not shown:
        return f'<figure class="chart">{head}<p class="missing">Nothing was measured.</p></figure>'
    ends = [*shown, *([level.y] if level else [])]
    low, high, ticks = _scale(min(ends), max(ends), 6)
    left, width, step, top = 250, 640, 24, 22
    bottom = top + step * len(rows)

    def px(x: float) -> float:
        return left + width * (x - low) / (high - low)

    parts = [
        f'<svg class="wide" viewBox="0 0 {left + width + 30} {bottom + 20}" role="img" aria-label="{escape(title)}">'
    ]
    for tick in ticks:
        parts.append(f'<path class="grid" d="M{px(tick):.1f} {top}V{bottom}"/>')
        parts.append(
            f'<text class="tick" x="{px(tick):.1f}" y="{bottom + 15}" text-anchor="middle">{_number(tick)}</text>'
        )
    if level is not None:
        parts.append(f'<path class="level" d="M{px(level.y):.1f} {top - 4}V{bottom}"/>')
        label = f"{escape(level.name)} {_number(level.y)}"
        parts.append(f'<text class="leveltext" x="{px(level.y):.1f}" y="{top - 9}" text-anchor="middle">{label}</text>')
    for k, row in enumerate(rows):
        y = top + step * (k + 0.5)
        name = row.name if len(row.name) < 40 else "\u2026" + row.name[-38:]
        parts.append(f'<text class="tick" x="{left - 12}" y="{y + 4:.1f}" text-anchor="end">{escape(name)}</text>')
        faint = " faint" if row.faint else ""
        if row.low is not None and row.high is not None:
            parts.append(f'<path class="line s{row.slot}{faint}" d="M{px(row.low):.1f} {y:.1f}H{px(row.high):.1f}"/>')
        if row.control is not None:
            parts.append(
                f'<circle class="hollow" cx="{px(row.control):.1f}" cy="{y:.1f}" r="4"><title>{escape(row.name)}, control: {row.control:.4g}</title></circle>'
            )
        if row.value is not None:
            parts.append(
                f'<circle class="dot s{row.slot}" cx="{px(row.value):.1f}" cy="{y:.1f}" r="5"><title>{escape(row.name)}: {row.value:.4g}</title></circle>'
            )
    return f'<figure class="chart broad">{head}{"".join(parts)}</svg>{foot}</figure>'


def _legend(series: Sequence[Series]) -> str:
    """Name and last value of each line."""
    items = "".join(
        f'<span class="key"><i class="s{s.slot}{" faint" if s.faint else ""}"></i>{escape(s.name)} <span class="num">{s.curve.y[-1]:.3g}</span></span>'
        for s in series
    )
    return f'<span class="keys">{items}</span>' if items else ""


def usage_map(shares: Sequence[Sequence[float]]) -> str:
    """Share of each level (rows, highest on top) in each dimension (columns): [D][levels]."""
    count, levels = len(shares), max(len(column) for column in shares)
    left, width, cell = 46, 920, 16
    step = width / count
    parts = [
        f'<svg class="wide" viewBox="0 0 {left + width + 6} {levels * cell + 22}" role="img" aria-label="share of each level in each dimension">'
    ]
    for d, column in enumerate(shares):
        for k, share in enumerate(column):
            y = (levels - 1 - k) * cell
            parts.append(
                f'<rect class="heat" x="{left + d * step:.2f}" y="{y}" width="{step - 0.6:.2f}" height="{cell - 1}" style="fill-opacity:{0.06 + 0.94 * share:.3f}">'
                f"<title>dimension {d}, level {k}: {100 * share:.1f} %</title></rect>"
            )
    for k in range(levels):
        parts.append(
            f'<text class="tick" x="{left - 6}" y="{(levels - 1 - k) * cell + 12}" text-anchor="end">level {k}</text>'
        )
    return "".join(parts) + _dimensions(count, left, step, levels * cell) + "</svg>"


def heat(
    title: str,
    rows: Sequence[str],
    columns: Sequence[str],
    shades: Sequence[Sequence[float | None]],
    texts: Sequence[Sequence[str]],
    note: str = "",
    *,
    labels: bool = True,
) -> str:
    """A titled map of cells: `shades` [rows][columns] from 0 (empty) to 1, cut there; None leaves a cell out.

    `texts` are what a cell tells when pointed at; its first word stands in it where there are `labels`.
    """
    left, width = (250, 690) if labels else (62, 400)
    tall = 24 if labels else 16
    step = width / len(columns)
    bottom = tall * len(rows)
    parts = [
        f'<svg {"class=wide " if labels else ""}viewBox="0 0 {left + width + 6} {bottom + 20}" role="img" aria-label="{escape(title)}">'
    ]
    for r, (name, own, said) in enumerate(zip(rows, shades, texts)):
        short = name if len(name) < 40 else "\u2026" + name[-38:]
        parts.append(
            f'<text class="tick" x="{left - 8}" y="{tall * (r + 0.5) + 4:.1f}" text-anchor="end">{escape(short)}</text>'
        )
        for c, (shade, text) in enumerate(zip(own, said)):
            if shade is None:
                continue
            x = left + c * step
            opacity = 0.05 + 0.75 * min(max(shade, 0.0), 1.0)
            parts.append(
                f'<rect class="heat" x="{x:.2f}" y="{r * tall}" width="{step - 1:.2f}" height="{tall - 1}" style="fill-opacity:{opacity:.3f}">'
                f"<title>{escape(name)}, {escape(columns[c])}: {escape(text)}</title></rect>"
            )
            if labels:
                word = text.partition(" ")[0].removeprefix("0")[:3] if text.startswith("0.") else text.partition(" ")[0]
                parts.append(
                    f'<text class="cell" x="{x + step / 2:.1f}" y="{tall * (r + 0.5) + 4:.1f}" text-anchor="middle">{escape(word)}</text>'
                )
    for c, name in enumerate(columns):
        parts.append(
            f'<text class="tick" x="{left + (c + 0.5) * step:.1f}" y="{bottom + 14}" text-anchor="middle">{escape(name)}</text>'
        )
    foot = f'<p class="small">{escape(note)}</p>' if note else ""
    kind = "chart broad" if labels else "chart"
    return (
        f'<figure class="{kind}"><figcaption><b>{escape(title)}</b></figcaption>{"".join(parts)}</svg>{foot}</figure>'
    )


def bars(values: Sequence[float], label: str) -> str:
    """One bar a dimension, values in 0..1."""
    left, width, height = 46, 920, 64
    step = width / len(values)
    parts = [
        f'<svg class="wide" viewBox="0 0 {left + width + 6} {height + 24}" role="img" aria-label="{escape(label)}">'
    ]
    for tick in (0.0, 0.5, 1.0):
        y = 4 + height * (1 - tick)
        parts.append(
            f'<path class="grid" d="M{left} {y:.1f}h{width}"/><text class="tick" x="{left - 6}" y="{y + 3.5:.1f}" text-anchor="end">{tick:g}</text>'
        )
    for d, value in enumerate(values):
        tall = max(height * value, 0.8)
        parts.append(
            f'<rect class="bar" x="{left + d * step:.2f}" y="{4 + height - tall:.2f}" width="{step - 1.2:.2f}" height="{tall:.2f}"><title>dimension {d}: {value:.3f}</title></rect>'
        )
    return "".join(parts) + _dimensions(len(values), left, step, height + 4) + "</svg>"


def _dimensions(count: int, left: float, step: float, y: float) -> str:
    every = max(1, 16 * round(count / 128)) if count > 32 else 4
    return "".join(
        f'<text class="tick" x="{left + (d + 0.5) * step:.1f}" y="{y + 14}" text-anchor="middle">{d}</text>'
        for d in range(0, count, every)
    )


def _scale(low: float, high: float, count: int = 4) -> tuple[float, float, list[float]]:
    """Ends of an axis that holds low..high, and its round ticks."""
    if high - low < 1e-12 * max(abs(high), abs(low), 1e-6):
        pad = 0.5 * abs(high) or 0.5
        low, high = low - pad, high + pad
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= rough * 0.999)
    start = math.floor(low / step + 1e-9)
    stop = math.ceil(high / step - 1e-9)
    ticks = [k * step for k in range(start, stop + 1)]
    return ticks[0], ticks[-1], ticks


def _number(value: float) -> str:
    if value == 0:
        return "0"
    if abs(value) >= 10_000:
        return f"{value / 1000:g}k"
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"
