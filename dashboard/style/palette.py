"""As many colours as are asked for, no two alike: groups of a chart never share one."""

from __future__ import annotations

import colorsys
from functools import cache

import numpy as np
from numpy.typing import NDArray

BLUE = "#1F77C9"
VERMILLION = "#D55E00"
GREEN = "#009E73"
MAGENTA = "#C2609A"
OCHRE = "#B3820A"
VIOLET = "#7A6AD0"
GREY = "#7D858F"

CATEGORICAL = (BLUE, VERMILLION, GREEN, MAGENTA, OCHRE, VIOLET, GREY)
"""The first seven, chosen so that colour-blind people can tell them apart."""

# Contrast of at least 3 to 1 on white, and on the dark page.
_LUMINANCES = (0.14, 0.20, 0.28)
_SATURATIONS = (0.9, 0.45)
_HUES = 48
_TO_LMS = np.array([[0.4122214708, 0.5363325363, 0.0514459929],
                    [0.2119034982, 0.6806995451, 0.1073969566],
                    [0.0883024619, 0.2817188376, 0.6299787005]])  # fmt: skip
_TO_LAB = np.array([[0.2104542553, 0.7936177850, -0.0040720468],
                    [1.9779984951, -2.4285922050, 0.4505937099],
                    [0.0259040371, 0.7827717662, -0.8086757660]])  # fmt: skip
_WEIGHTS = np.array([0.2126, 0.7152, 0.0722])


@cache
def distinct_colours(count: int) -> tuple[str, ...]:
    """The first `count` colours: CATEGORICAL, then each as far from those before it as can be.

    A longer list begins with the shorter ones. Distance is that of Oklab (Ottosson 2020).

    Raises:
        ValueError: more than about 290 are asked for.
    """
    chosen = list(CATEGORICAL[:count])
    if count <= len(CATEGORICAL):
        return tuple(chosen)
    candidates = _candidates()
    if count > len(chosen) + len(candidates):
        raise ValueError(f"There are {len(candidates)} further colours; {count} were asked for.")
    places = np.array([_oklab(one) for one in candidates])
    known = np.array([_oklab(one) for one in chosen])
    away = np.linalg.norm(places[:, None] - known[None], axis=2).min(axis=1)
    while len(chosen) < count:
        best = int(np.argmax(away))
        chosen.append(candidates[best])
        away = np.minimum(away, np.linalg.norm(places - places[best], axis=1))
        away[best] = -1.0
    return tuple(chosen)


def _candidates() -> list[str]:
    found = []
    for luminance in _LUMINANCES:
        for saturation in _SATURATIONS:
            for hue in range(_HUES):
                found.append(_colour(hue / _HUES, saturation, luminance))
    return list(dict.fromkeys(found))


def _colour(hue: float, saturation: float, luminance: float) -> str:
    """The colour of a hue and saturation that has a luminance, by bisection on lightness."""
    low, high = 0.0, 1.0
    for _ in range(24):
        middle = (low + high) / 2
        linear = _linear(np.array(colorsys.hls_to_rgb(hue, middle, saturation)))
        low, high = (middle, high) if float(_WEIGHTS @ linear) < luminance else (low, middle)
    channels = colorsys.hls_to_rgb(hue, low, saturation)
    return "#" + "".join(f"{round(255 * one):02X}" for one in channels)


def _linear(channels: NDArray[np.float64]) -> NDArray[np.float64]:
    curved: NDArray[np.float64] = ((channels + 0.055) / 1.055) ** 2.4
    return np.where(channels <= 0.04045, channels / 12.92, curved)


def _oklab(colour: str) -> NDArray[np.float64]:
    channels = np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    lab: NDArray[np.float64] = _TO_LAB @ np.cbrt(_TO_LMS @ _linear(channels))
    return lab
