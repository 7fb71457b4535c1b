"""Vega-Lite specifications, as dicts. A section's script puts values and titles in.

Every chart names what its y axis is in `title`, draws a line at exactly 0 where values are signed,
and has a diverging scale whose middle is 0: red is positive, the first-named more focused.
"""

from rolecircuits.report.palette import DIVERGING

SCHEMA = "https://vega.github.io/schema/vega-lite/v6.json"  # a name; nothing is fetched
RUN_LOOKS = {"base": ("var(--base)", "circle"), "instruct": ("var(--instruct)", "square")}


def layer_lines():
    """A line with its 95 % band for each run, by layer; diamonds on top where max-T is passed.

    values  layer, run, estimate, low, high, passed (bool), text of the tooltip
    """
    y = {"field": "estimate", "type": "quantitative"}
    look = {
        "field": "run",
        "type": "nominal",
        "scale": {"domain": list(RUN_LOOKS), "range": [c for c, _ in RUN_LOOKS.values()]},
        "legend": {"orient": "top", "title": None, "symbolType": "circle", "symbolOpacity": 1},
    }
    shape = {
        "field": "run",
        "type": "nominal",
        "scale": {"domain": list(RUN_LOOKS), "range": [s for _, s in RUN_LOOKS.values()]},
        "legend": None,
    }
    ends = {"y": {"field": "low", "type": "quantitative"}, "y2": {"field": "high"}}
    brush = {"name": "brush", "select": {"type": "interval", "encodings": ["x"]}}
    return {
        "$schema": SCHEMA,
        "width": "container",
        "height": 210,
        "data": {"values": []},
        "encoding": {"x": layer_axis(), "color": look},
        "layer": [
            zero_line(),
            {
                "mark": {"type": "area", "opacity": 0.2, "clip": True},
                "params": [brush],
                "transform": [{"filter": "isValid(datum.low)"}],
                "encoding": ends,
            },
            {
                "mark": {"type": "rule", "opacity": 0.35},
                "transform": [{"filter": "isValid(datum.low)"}],
                "encoding": ends,
            },
            {"mark": {"type": "line", "strokeWidth": 1.6}, "encoding": {"y": y}},
            {
                "mark": {"type": "point", "filled": True, "size": 34, "opacity": 1},
                "encoding": {"y": y, "shape": shape, "tooltip": tooltip()},
            },
            {
                "transform": [{"filter": "datum.passed"}],
                "mark": {
                    "type": "point",
                    "filled": True,
                    "shape": "diamond",
                    "size": 44,
                    "opacity": 1,
                },
                "encoding": {"y": {"value": 5}, "yOffset": run_offset(), "tooltip": tooltip()},
            },
        ],
    }


def difference_line():
    """instruct - base by layer with its band, below the two runs; values as in `layer_lines`."""
    spec = layer_lines()
    spec["encoding"]["color"] = {"value": "var(--diff)"}
    spec["height"] = 150
    for layer in spec["layer"]:
        layer.pop("params", None)
        layer["encoding"].pop("shape", None)
        layer["encoding"].pop("yOffset", None)
    return spec


def layer_axis():
    """x: the layer, whole numbers; the script sets its domain."""
    return {
        "field": "layer",
        "type": "quantitative",
        "title": "layer",
        "scale": {"nice": False, "zero": False},
        "axis": {"format": "d", "tickMinStep": 1, "grid": False},
    }


def run_offset():
    """The marks of base and instruct stand above one another."""
    return {
        "field": "run",
        "type": "nominal",
        "scale": {"domain": list(RUN_LOOKS), "range": [0, 8]},
    }


def zero_line():
    """The line at exactly 0."""
    return {
        "data": {"values": [{}]},
        "mark": {"type": "rule", "strokeWidth": 1, "opacity": 0.7},
        "encoding": {"x": None, "color": None, "y": {"datum": 0}},
    }


def tooltip():
    """The text of a mark, made by the section's script."""
    return {"field": "text", "type": "nominal"}


def head_map():
    """A cell for each head: x layer, y head; the script sets scale, title and domains.

    values  layer, head, value, chosen (bool), text
    """
    axis = {"labelOverlap": True, "ticks": False, "domain": False}
    return {
        "$schema": SCHEMA,
        "width": "container",
        "height": {"step": 16},
        "data": {"values": []},
        "encoding": {
            "x": {"field": "layer", "type": "ordinal", "title": "layer", "axis": axis},
            "y": {"field": "head", "type": "ordinal", "title": "head", "axis": axis},
        },
        "layer": [
            {
                "mark": {"type": "rect", "cursor": "pointer", "invalid": None},
                "encoding": {
                    "color": {
                        "condition": {"test": "!isValid(datum.value)", "value": "#9a9a9a"},
                        "field": "value",
                        "type": "quantitative",
                        "scale": {"range": list(DIVERGING), "interpolate": "rgb"},
                        "legend": {
                            "orient": "top",
                            "gradientLength": 220,
                            "title": "",
                            "titleLimit": 420,
                        },
                    },
                    "tooltip": tooltip(),
                },
            },
            {
                "transform": [{"filter": "datum.passed"}],
                "mark": {"type": "circle", "size": 9, "color": "#000000", "opacity": 1},
            },
            {
                "transform": [{"filter": "datum.chosen"}],
                "mark": {"type": "rect", "filled": False, "stroke": "#000000", "strokeWidth": 2.5},
            },
        ],
    }


def head_points(names, colours):
    """The values of one head, a column a category, their mean as a bar.

    names, colours  of the categories
    values          category, value, shift (-0.5 to 0.5), text
    """
    look = {
        "field": "category",
        "type": "nominal",
        "scale": {"domain": names, "range": colours},
        "legend": None,
    }
    y = {"type": "quantitative", "scale": {"zero": False}, "title": "entropy"}
    axis = {"labelAngle": 0, "labelLimit": 160}
    return {
        "$schema": SCHEMA,
        "width": "container",
        "height": 240,
        "data": {"values": []},
        "encoding": {
            "x": {
                "field": "category",
                "type": "nominal",
                "sort": names,
                "title": None,
                "axis": axis,
            },
            "color": look,
        },
        "layer": [
            {
                "mark": {"type": "circle", "size": 30, "opacity": 0.65},
                "encoding": {
                    "y": y | {"field": "value"},
                    "xOffset": {
                        "field": "shift",
                        "type": "quantitative",
                        "scale": {"domain": [-1, 1]},
                    },
                    "tooltip": tooltip(),
                },
            },
            {
                "mark": {"type": "tick", "thickness": 3, "size": 46},
                "encoding": {"y": y | {"field": "value", "aggregate": "mean"}},
            },
        ],
    }


def share_bars():
    """The design audit: share of the variance between prompts, a bar a factor and run.

    values  factor, estimate (the share), run, text
    """
    return {
        "$schema": SCHEMA,
        "width": "container",
        "height": {"step": 20},
        "data": {"values": []},
        "mark": {"type": "bar", "color": "var(--null)"},
        "encoding": {
            "y": {"field": "factor", "type": "nominal", "title": None, "sort": None},
            "x": {
                "field": "estimate",
                "type": "quantitative",
                "scale": {"domain": [0, 1]},
                "title": "share of the variance between prompts (median over layers)",
            },
            "tooltip": tooltip(),
        },
    }
