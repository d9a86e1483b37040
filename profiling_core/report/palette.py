"""Colours of the figures: two scales that rise evenly in lightness, and a few fixed colours.

Both scales are told apart by lightness alone, so that they survive colour blindness and grey print.
"""

from __future__ import annotations

HEAT = ("#2a1a55", "#38417f", "#2f6a8c", "#2a917f", "#66b562", "#b9cf4e", "#f7e86a")
MAPS = ("#081d42", "#2f3d62", "#575d6d", "#7d7c76", "#a89d6f", "#d5c160", "#f8e654")

# distinguishable with the common colour blindnesses; further curves differ in dashes
CURVES = ("#1f6fb4", "#c2571a")
PLAN = {"#": "#17406d", "+": "#4f8cc4", ".": "#dbe5ee", ">": "#f3ead8"}


def channels(colour: str) -> tuple[int, int, int]:
    """Red, green and blue, 0 to 255, of "#rrggbb"."""
    red, green, blue = (int(colour[start : start + 2], 16) for start in (1, 3, 5))
    return red, green, blue


def luminance(colour: str) -> float:
    """Relative luminance of a colour (WCAG 2), 0 to 1."""
    linear = [
        c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4
        for c in (channel / 255 for channel in channels(colour))
    ]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
