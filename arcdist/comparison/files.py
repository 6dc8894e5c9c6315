"""A comparison as files: a page, its pictures, and the same numbers for scripts."""

import dataclasses
import json
import tempfile
from pathlib import Path
from typing import Any

from arcdist.comparison.comparison import Comparison
from arcdist.comparison.figures import draw_curves, draw_efe_terms, draw_panels
from arcdist.comparison.sheet import Line, Spread
from arcdist.errors import ConfigError
from arcdist.tracking.atomic import replacing
from arcdist.tracking.page import picture, render

PAGE, CURVES, EFE_TERMS, NUMBERS = "compare.html", "curves.png", "efe_terms.png", "compare.json"


def make_folder(folder: Path) -> None:
    """Make the folder where it is missing, and prove that it can be written.

    Raises:
        ConfigError: it cannot.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as probe:
            probe.write(b"arcdist")
    except OSError as error:
        raise ConfigError(_not_writable(folder, error)) from error


def write_files(comparison: Comparison, folder: Path) -> tuple[Path, ...]:
    """Write page, pictures and numbers into a folder, in place of earlier ones, and give their paths.

    Raises:
        ConfigError: it cannot be written.
    """
    try:
        _write(folder / PAGE, page(comparison))
        for name, draw in ((CURVES, draw_curves), (EFE_TERMS, draw_efe_terms)):
            with replacing(folder / name) as partial:
                draw(comparison.runs).savefig(partial, format="png")
        _write(folder / NUMBERS, json.dumps(numbers(comparison), indent=2, ensure_ascii=False) + "\n")
    except OSError as error:
        raise ConfigError(_not_writable(folder, error)) from error
    return tuple(folder / name for name in (PAGE, CURVES, EFE_TERMS, NUMBERS))


def page(comparison: Comparison) -> str:
    """The comparison as HTML in one file."""
    sheets = {sheet.key: sheet for sheet in comparison.sheets}
    return render(
        "compare.html",
        {
            "title": f"{len(comparison.runs)} runs compared",
            "comparison": comparison,
            "sheets": sheets,
            "panels": [picture(figure, alt) for alt, figure in draw_panels(comparison.runs).items()],
        },
    )


def numbers(comparison: Comparison) -> dict[str, Any]:
    """The comparison for scripts: shares lie between 0 and 1, what is not known is null."""
    return {
        "runs": {
            run.letter: {
                "name": run.name,
                "place": run.record.place,
                "id": run.record.identity.id,
                "group": run.record.identity.group,
                "epochs": len(run.record.epochs),
            }
            for run in comparison.runs
        },
        "verdict": list(comparison.verdict),
        **{
            sheet.key: {line.key: _by_column(line, sheet.columns) for line in sheet.lines}
            for sheet in comparison.sheets
        },
        "queries": {
            puzzle.id: {
                "last": dict(zip([run.letter for run in comparison.runs], puzzle.last, strict=True)),
                "best": dict(zip([run.letter for run in comparison.runs], puzzle.best, strict=True)),
            }
            for puzzle in comparison.puzzles
        },
        "left_out": list(comparison.left_out),
    }


def _by_column(line: Line, columns: tuple[str, ...]) -> dict[str, Any]:
    values = (dataclasses.asdict(value) if isinstance(value, Spread) else value for value in line.values)
    return dict(zip(columns, values, strict=True))


def _write(path: Path, text: str) -> None:
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8")


def _not_writable(folder: Path, error: OSError) -> str:
    return f"The output folder {folder} cannot be written ({error.strerror}): choose another with --output_dir DIR."
