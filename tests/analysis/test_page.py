"""Pictures in a page: as they were drawn, in less room."""

import base64
import io
import re

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from arcdist.analysis.page import picture
from arcdist.config.schema import EFE_TERMS

COLORS = [key.metadata["color"] for key in EFE_TERMS.values()]


def test_a_picture_is_as_it_was_drawn_in_half_the_room():
    figure = Figure(figsize=(4, 3), layout="constrained")
    axes = figure.subplots()
    for place, color in enumerate(COLORS):
        axes.plot([0, 1, 2], [place, place + 1, place], color=color)
        axes.plot([0, 1, 2], [0, place, 1], color=color, alpha=0.3)
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png", dpi=200)
    tag = picture(figure, 'a "curve"')
    assert tag.startswith('<img alt="a &#34;curve&#34;" width="400" height="300" src="data:image/png;base64,')
    content = base64.b64decode(re.search('base64,(.*)">', tag)[1])
    assert len(content) < len(drawn.getvalue()) / 2
    shown = Image.open(io.BytesIO(content)).convert("RGB")
    assert shown.size == (800, 600)
    error = np.abs(np.asarray(shown, dtype=int) - np.asarray(Image.open(drawn).convert("RGB"), dtype=int)).max(-1)
    assert (error > 20).mean() < 0.005
    # Lines and paper keep their very colours.
    assert {tuple(bytes.fromhex(color[1:])) for color in (*COLORS, "#FFFFFF")} <= {
        color for _, color in shown.getcolors(800 * 600)
    }
