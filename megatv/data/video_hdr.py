"""HDR to SDR: PQ and HLG in BT.2020 become 8-bit BT.709, as a good SDR screen would show them.

Code values become light in cd/m2 (ITU-R BT.2100-2, tables 4 and 5), highlights between diffuse white and
1,000 cd/m2 are rolled off by the curve of ITU-R BT.2390-8 (section 5.4.1) applied to the brightest channel,
which keeps hues; then BT.2020's primaries become BT.709's (BT.2087-0) and light becomes BT.1886's gamma.
"""

from __future__ import annotations

from functools import cache

import numpy as np

PQ, HLG = 16, 18
"""FFmpeg's numbers of the two transfer functions (ISO/IEC 23091-2)."""
PEAK_NITS = 1000.0
"""cd/m2. What HLG is graded for and most PQ too; light above it is clipped."""
WHITE_NITS = 203.0
"""cd/m2. Diffuse white of HDR (ITU-R BT.2408), which is SDR's white."""

_TO_BT709 = np.array(
    [[1.6605, -0.5876, -0.0728], [-0.1246, 1.1329, -0.0083], [-0.0182, -0.1006, 1.1187]], np.float32
)
_LUMINANCE = np.array([0.2627, 0.6780, 0.0593], np.float32)
_M1, _M2, _C1, _C2, _C3 = 2610 / 16384, 2523 / 32, 3424 / 4096, 2413 / 128, 2392 / 128


def tone_map(coded: np.ndarray, transfer: int) -> np.ndarray:
    """uint8 [H, W, 3] BT.709 for the eye, from uint16 [H, W, 3] full-range BT.2020 coded by `transfer`."""
    light = _light_table(transfer)[coded]
    if transfer == HLG:  # the system gamma of a 1,000 cd/m2 display works on luminance
        light = light * np.power(np.maximum(light @ _LUMINANCE, 1e-9), 0.2)[..., None] * PEAK_NITS
    brightest = np.clip(light.max(-1, keepdims=True), 1e-4, None)
    light = light * (_roll_off(brightest) / brightest)
    shown = np.clip(light @ _TO_BT709.T / WHITE_NITS, 0, 1)
    return np.rint(255 * np.power(shown, 1 / 2.4)).astype(np.uint8)


@cache
def _light_table(transfer: int) -> np.ndarray:
    """float32 [65536]: cd/m2 of every PQ code, or scene light in 0..1 of every HLG code."""
    code = np.arange(1 << 16, dtype=np.float64) / ((1 << 16) - 1)
    if transfer == PQ:
        root = np.power(code, 1 / _M2)
        light = 10000 * np.power(np.maximum(root - _C1, 0) / (_C2 - _C3 * root), 1 / _M1)
        return np.minimum(light, PEAK_NITS).astype(np.float32)
    a, b, c = 0.17883277, 0.28466892, 0.55991073
    return np.where(code <= 0.5, code**2 / 3, (np.exp((code - c) / a) + b) / 12).astype(np.float32)


def _pq(nits: np.ndarray | float) -> np.ndarray:
    """PQ code 0..1 of light."""
    power = np.power(np.asarray(nits) / 10000, _M1)
    return np.power((_C1 + _C2 * power) / (1 + _C3 * power), _M2)


def _roll_off(nits: np.ndarray) -> np.ndarray:
    """Light squeezed into 0..WHITE_NITS: untouched up to a knee, then a Hermite spline in PQ's scale."""
    top = _pq(PEAK_NITS)
    code, goal = _pq(np.minimum(nits, PEAK_NITS)) / top, float(_pq(WHITE_NITS) / top)
    knee = 1.5 * goal - 0.5
    t = np.clip((code - knee) / (1 - knee), 0, 1)
    spline = (2 * t**3 - 3 * t**2 + 1) * knee + (t**3 - 2 * t**2 + t) * (1 - knee)
    spline = spline + (-2 * t**3 + 3 * t**2) * goal
    root = np.power(np.where(code < knee, code, spline) * top, 1 / _M2)
    return 10000 * np.power(np.maximum(root - _C1, 0) / (_C2 - _C3 * root), 1 / _M1)
