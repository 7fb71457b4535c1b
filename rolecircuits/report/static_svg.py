"""Line charts as plain numbers for templates/svg.html: what a reader without JavaScript sees."""

import numpy as np

WIDTH, HEIGHT, LEFT, BOTTOM, TOP = 640, 200, 52, 26, 8


def line_chart(series, label, title, names=None):
    """Where everything of a chart stands, in pixels.

    series   [(name, colour, estimate, low, high)], each [layer], NaN where undefined
    label    of the y axis        title  what the chart is, for readers who do not see it
    names    of the places along x, at equal distances; None: 0, 1, ..., the layers
    returns  {"width", "height", "title", "label", "series": [...], "x", "y": [(place, text)],
             "zero"}, or None where nothing is defined
    """
    ends = np.concatenate([np.ravel(s[i]) for s in series for i in (2, 3, 4)])
    ends = ends[np.isfinite(ends)]
    if not len(ends):
        return None
    low, high = min(ends.min(), 0.0), max(ends.max(), 0.0)
    pad = 0.05 * (high - low or 1.0)
    low, high = low - pad, high + pad
    n = len(series[0][2])
    x = LEFT + (np.arange(n) + 0.5) / n * (WIDTH - LEFT - 8)

    def y(value):
        return TOP + (high - value) / (high - low) * (HEIGHT - TOP - BOTTOM)

    step = next(s for s in (1, 2, 5, 10, 20, 50, 100, n) if n <= 16 * s)
    ticks = [(float(x[i]), names[i] if names else str(i)) for i in range(0, n, step)]
    return {
        "width": WIDTH,
        "height": HEIGHT,
        "left": LEFT,
        "bottom": HEIGHT - BOTTOM,
        "title": title,
        "label": label,
        "series": [_draw((x, y), *one) for one in series],
        "x": ticks,
        "y": [(float(y(v)), f"{v:+.3g}") for v in round_values(low, high)],
        "zero": float(y(0.0)),
    }


def round_values(low, high):
    """Four to eight round numbers between two."""
    step = 10.0 ** np.floor(np.log10((high - low) / 4))
    step *= next(m for m in (1, 2, 5, 10) if (high - low) / (step * m) <= 6)
    return np.arange(np.ceil(low / step), np.floor(high / step) + 1) * step + 0.0  # no -0


def _draw(scales, name, colour, *ends):
    """One series in pixels; scales (x [layer], y of a value)    ends (estimate, low, high)."""
    (x, y), (estimate, low, high) = scales, ends
    there = np.isfinite(estimate)
    line = _join(zip(x[there], y(estimate[there]), strict=True))
    banded = np.isfinite(low) & np.isfinite(high)
    upper = list(zip(x[banded], y(high[banded]), strict=True))
    lower = list(zip(x[banded], y(low[banded]), strict=True))
    return {"name": name, "colour": colour, "line": line, "band": _join(upper + lower[::-1])}


def _join(points):
    return " ".join(f"{a:.1f},{b:.1f}" for a, b in points)
