"""The picture of a comparison: what each arm gains over the first one, seed by seed."""

import math
from collections.abc import Mapping

import matplotlib
from matplotlib.figure import Figure as Canvas

from benchmark.pictures import OTHERS, OURS, STYLE, as_svg
from studies.comparison import PairedDifference

Gains = Mapping[str, PairedDifference]
"""By arm."""


def gains_svg(baseline: str, gains: Gains) -> str:
    """A line for each arm, with a dot for each seed and a bar over the 95 % interval of their mean."""
    with matplotlib.rc_context(STYLE):
        canvas = Canvas(figsize=(7, 0.8 + 0.3 * len(gains)), layout="constrained")
        axes = canvas.subplots()
        axes.axvline(0, color=OTHERS, linewidth=1)
        for place, gain in enumerate(gains.values()):
            if math.isfinite(gain.half_width):
                axes.errorbar(100 * gain.mean, place, xerr=100 * gain.half_width, color=OTHERS, capsize=4)
            axes.plot([100 * each for each in gain.differences], [place] * len(gain.differences), "o", color=OURS)
        axes.set_yticks(range(len(gains)), gains)
        axes.set_ylim(len(gains) - 0.5, -0.5)
        axes.set_xlabel(f"points of top-1 above {baseline}")
        return as_svg(canvas)
