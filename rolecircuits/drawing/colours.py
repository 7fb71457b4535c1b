"""What every colour means, in figures and in the report; nothing is drawn here.

A colour has one meaning everywhere: a category, an index (and the contrast that it is made of),
another contrast, a run of a pair, their difference, a speaker, a part of the text, an arm of a
tuning study, the length null or the controls. Those of the usual categories are Okabe and Ito's
(Color Universal Design, 2008); categories also differ in marker. Of what has a sign (a map of
differences, a head's effect) red is above 0 and blue below.
"""

from typing import NamedTuple


class Look(NamedTuple):
    """How a category is drawn everywhere."""

    colour: str
    marker: str
    label: str


CATEGORY_LOOKS = {
    "self_referent": Look("#D55E00", "o", "self-referent"),
    "confounder": Look("#0072B2", "s", "confounder"),
    "neutral": Look("#009E73", "^", "neutral"),
    "third_person": Look("#CC79A7", "D", "third person"),
}
OTHER_COLOURS = (
    *("#56B4E9", "#F0C808", "#7B3F00", "#44CCAA", "#A8B400", "#B39DDB"),
    *("#F4A582", "#EE3377", "#3D5AFE", "#C4A484", "#BDE04A", "#5B8266"),
)
OTHER_MARKERS = "vP<X>*hdp"
RFC_COLOUR, RSI_COLOUR = "#332288", "#8A6D00"
# those of the usual contrasts are the indices': RFC is self - neutral, RSI self - confounder
CONTRAST_COLOURS = ("#AA4499", "#1F8A9E", "#FF8FA3", "#6A8F1F", "#004D4D", "#9B6BFF")
BASE_COLOUR, INSTRUCT_COLOUR, DIFFERENCE_COLOUR = "#333333", "#E69F00", "#882255"
NULL_COLOUR, CONTROL_COLOUR = "#666666", "#A6A6A6"
INDEX_LOOKS = {"rfc": Look(RFC_COLOUR, "o", "RFC"), "rsi": Look(RSI_COLOUR, "s", "RSI")}
ROLE_LOOKS = {  # who speaks in a conversation
    "user": Look("#6B2D5C", "s", "user"),
    "assistant": Look("#D4A017", "o", "assistant"),
    "system": Look("#808080", "^", "system"),
    "tool": Look("#2F6F4F", "D", "tool"),
    "text": Look("#111111", "v", "text"),
}
ARM_LOOKS = {  # what a model is tuned on; apart for colour-blind eyes too, and in marker
    "role": Look("#7209B7", "o", "role"),
    "facts": Look("#008DA8", "s", "facts"),
    "shuffled": Look("#BC6C25", "^", "shuffled"),
}
# parts of the text: quiet ones, but for the words of the person
PART_COLOURS = {
    "sink": "#8E8E8E",
    "system_text": "#C9CDD2",
    "template": "#B7AE9C",
    "user_text": "#6F7F8C",
    "assistant_text": "#8FA39A",
    "slot": "#F0E442",
    "assistant_header": "#75695A",
}
DIVERGING = "RdBu_r"  # red: above 0, the category named first is the more focused
EXCESS = "PuOr_r"  # orange: more attention than uniform
ABOVE, BELOW = "#B2182B", "#2166AC"  # one value with a sign, in the colours of DIVERGING


def category_looks(names):
    """{category: Look}: the four usual ones as ever, others in the order in which they come."""
    return _with_others(CATEGORY_LOOKS, names)


def arm_looks(names):
    """{arm: Look}: the three usual ones as ever, others in the order in which they come."""
    return _with_others(ARM_LOOKS, names)


def _with_others(usual, names):
    """The usual Looks, and one of OTHER_COLOURS for every other name."""
    others = [name for name in names if name not in usual]
    looks = dict(usual)
    for i, name in enumerate(others):
        colour = OTHER_COLOURS[i % len(OTHER_COLOURS)]
        marker = OTHER_MARKERS[i % len(OTHER_MARKERS)]
        looks[name] = Look(colour, marker, name.replace("_", " "))
    return looks
