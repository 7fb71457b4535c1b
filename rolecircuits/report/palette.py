"""The colours of figures for a screen: the same hues, light enough or dark enough to be seen.

    on white        at least 3:1
    on a dark page  as much as on white, but no more than 9:1

Contrast ratios are those of WCAG 2.1 (relative luminance). Each colour is a variable of the style
sheet, var(--base), so that charts in SVG follow the page, printed pages too.
"""

import colorsys
from functools import cache

from rolecircuits.drawing import colours

PAPER, DARK_PAPER = "#ffffff", "#16181b"  # --paper of style.css
LEAST, MOST = 3.0, 9.0
STEPS = 100
DIVERGING = ("#053061", "#4393c3", "#ffffff", "#d6604d", "#67001f")  # colours.DIVERGING, white at 0
EXCESS = ("#2d004b", "#8073ac", "#ffffff", "#e08214", "#7f3b08")  # colours.EXCESS, white at 0
COLOURS = {
    "base": colours.BASE_COLOUR,
    "instruct": colours.INSTRUCT_COLOUR,
    "diff": colours.DIFFERENCE_COLOUR,
    "rfc": colours.RFC_COLOUR,
    "rsi": colours.RSI_COLOUR,
    "null": colours.NULL_COLOUR,
    "control": colours.CONTROL_COLOUR,
}
COLOURS |= {f"category-{name}": look.colour for name, look in colours.CATEGORY_LOOKS.items()}
COLOURS |= {f"arm-{name}": look.colour for name, look in colours.ARM_LOOKS.items()}
COLOURS |= {f"other-{i}": colour for i, colour in enumerate(colours.OTHER_COLOURS)}


def category_looks(names):
    """{category: {"name", "colour"}} of these categories, the usual ones first."""
    looks = colours.category_looks(names)
    variable = {colour: f"var(--{name})" for name, colour in COLOURS.items()}
    return {
        name: {"name": look.label, "colour": variable[look.colour]}
        for name, look in looks.items()
        if name in set(names)
    }


def arm_looks(names):
    """{arm: {"name", "colour"}} of these arms of a tuning study, in their order."""
    looks = colours.arm_looks(names)
    variable = {colour: f"var(--{name})" for name, colour in COLOURS.items()}
    return {n: {"name": looks[n].label, "colour": variable[looks[n].colour]} for n in names}


def luminance(colour):
    """Relative luminance of "#rrggbb", 0 black to 1 white."""
    parts = (part / 255 for part in bytes.fromhex(colour[1:]))
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(colour, paper):
    """The ratio of two colours, 1 to 21."""
    low, high = sorted((luminance(colour), luminance(paper)))
    return (high + 0.05) / (low + 0.05)


def fit(colour, paper, least):
    """`colour`, or the nearest of its hue whose contrast with `paper` is at least `least`."""
    hue, light, full = colorsys.rgb_to_hls(*(part / 255 for part in bytes.fromhex(colour[1:])))
    end = 0.0 if luminance(paper) > 0.5 else 1.0
    for step in range(STEPS + 1):
        if contrast(colour, paper) >= least:
            break
        lightness = light + (end - light) * step / STEPS
        rgb = colorsys.hls_to_rgb(hue, lightness, full)
        colour = "#" + bytes(round(255 * part) for part in rgb).hex()
    return colour


@cache
def style_sheet():
    """The variables of all colours, for a light and a dark page."""
    light = {name: fit(colour, PAPER, LEAST) for name, colour in COLOURS.items()}
    dark = {}
    for name, colour in COLOURS.items():
        least = min(MOST, max(LEAST, contrast(colour, PAPER)))
        dark[name] = fit(colour, DARK_PAPER, least)
    parts = {f"part-{name}": colour for name, colour in colours.PART_COLOURS.items()}
    return (
        f":root {{ {_declare(light | parts)} }}\n"
        f"@media screen and (prefers-color-scheme: dark) {{ :root {{ {_declare(dark)} }} }}\n"
    )


def _declare(variables):
    return " ".join(f"--{name}: {colour};" for name, colour in variables.items())
