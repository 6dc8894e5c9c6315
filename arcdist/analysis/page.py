"""Pages that contain all they show: HTML in one file, which opens without a network."""

import base64
import io
from collections.abc import Mapping
from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from matplotlib.figure import Figure
from PIL import Image

from arcdist.tracking.grids import CELL_PIXELS, png

_PIXELS_PER_INCH = 100
_SHARPNESS = 2
"""Pixels of a picture for each pixel of the page: screens have two."""
_COLORS = 256
_ROOM = 200
"""Pixels of the page for a grid."""


def render(template: str, values: Mapping[str, Any]) -> str:
    """A page from a file in `templates/`, such as `report.html`, which extends `base.html`.

    The values are escaped, except pictures from `picture`. A name that the template needs and `values` lacks is an
    error.
    """
    return _environment().get_template(template).render(values)


def picture(figure: Figure, alt: str) -> Markup:
    """An `<img>` that contains the figure, at most as wide as the page; `alt` says in words what it shows."""
    drawn, content = io.BytesIO(), io.BytesIO()
    figure.savefig(drawn, format="png", dpi=_SHARPNESS * _PIXELS_PER_INCH, pil_kwargs={"compress_level": 1})
    # A palette takes a third of the space and changes only the blurred edges of lines and letters, invisibly.
    pixels = Image.open(drawn).convert("RGB").quantize(_COLORS, dither=Image.Dither.NONE)
    pixels.save(content, format="png", optimize=True)
    width, height = (round(_PIXELS_PER_INCH * inches) for inches in figure.get_size_inches())
    return _img(content.getvalue(), alt, width, height)


def image(grid: Image.Image, alt: str, longest: int) -> Markup:
    """An `<img>` that contains a small picture of a grid, enlarged as far as one with so long a side has room."""
    times = max(1, min(3, _ROOM // (longest * CELL_PIXELS)))
    return _img(png(grid), alt, times * grid.width, times * grid.height)


def _img(content: bytes, alt: str, width: int, height: int) -> Markup:
    data = base64.b64encode(content).decode()
    return Markup('<img alt="{}" width="{}" height="{}" src="data:image/png;base64,{}">').format(
        alt, width, height, data
    )


@cache
def _environment() -> Environment:
    return Environment(
        loader=PackageLoader("arcdist.analysis"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
