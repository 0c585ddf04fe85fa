"""What a page in a browser gets wrong for eyes and fingers: faint text and edges, small targets.

WCAG 2.2 (https://www.w3.org/TR/WCAG22/): 1.4.3 text has a contrast of 4.5, 1.4.11 edges of controls one of 3,
and 2.5.5 targets are 44 CSS px wide and high. Disabled controls are exempt from the first two.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

SCRIPT = Path(__file__).with_name("audit.js").read_text()
PHONE = {"width": 360, "height": 640, "deviceScaleFactor": 2, "mobile": True}


def luminance(colour: str) -> float:
    """Relative luminance of `#rrggbb`, as WCAG 2.2 defines it."""
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    red, green, blue = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one: str, other: str) -> float:
    """Contrast of two colours, 1 to 21."""
    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)


def variables(css: str) -> dict[str, str]:
    """The colours that a style sheet's `:root` names, {name: #rrggbb}."""
    return dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})\b", css))


def as_phone(browser: Any) -> None:
    """Make the window a phone's: small, and touched with fingers."""
    browser.call("Emulation.setDeviceMetricsOverride", **PHONE)
    browser.call("Emulation.setTouchEmulationEnabled", enabled=True, maxTouchPoints=5)
    assert browser.evaluate("matchMedia('(pointer: coarse)').matches")


def faults(browser: Any) -> list[str]:
    """A line for each text and each edge that is too faint."""
    return browser.evaluate(f"(() => {{ {SCRIPT}; return faint(); }})()")


def small_targets(browser: Any) -> list[str]:
    """A line for each control that is less than 44 px wide or high."""
    return browser.evaluate(f"(() => {{ {SCRIPT}; return small(); }})()")
