"""What `launch/compare.py` runs: read runs, compare them, print and write the result."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import rich.table
from matplotlib.figure import Figure
from rich import box
from rich.console import Console, Group, RenderableType
from rich.text import Text

from arcdist.analysis.page import picture, render
from arcdist.analysis.pairwise import (
    QueryOutcome,
    pairwise_table,
    puzzle_table,
    query_outcomes,
    rank,
    verdict_sentences,
)
from arcdist.analysis.plots import CURVES, draw_curves, draw_efe_terms, draw_panels, style_of
from arcdist.analysis.record import RunRecord, read_run
from arcdist.analysis.scores import (
    Run,
    cost_table,
    difference_table,
    efe_table,
    group_table,
    letter_runs,
    score_table,
)
from arcdist.analysis.tables import Row, Spread, Table
from arcdist.config.schema import EFE_TERMS
from arcdist.errors import ArcdistError, ConfigError, DataError, reason
from arcdist.files import replacing
from arcdist.formatting import counted
from arcdist.tracking.wandb import is_wandb_path


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """Two runs or more, compared."""

    runs: tuple[Run, ...]
    verdict: tuple[str, ...]
    """By the last validation of each run; in sentences, the most important first."""
    tables: tuple[Table, ...]
    """In the order in which they are read."""
    outcomes: tuple[QueryOutcome, ...]
    left_out: tuple[str, ...]
    """Why each further run that was named is not among them."""


def compare_runs(names: Sequence[str], folder: Path | None, *, report: bool) -> None:
    """Print the comparison of the runs of these names.

    Args:
        names: run folders, or `entity/project/run_id` of runs on W&B's server.
        folder: for page, pictures and numbers; None to write no files.
        report: whether a W&B report is written as well.

    Raises:
        ConfigError: a single run is named, the folder cannot be written, or a report is not possible.
        DataError: runs cannot be read; if at least two can, these have been compared before.
    """
    if len(names) < 2:
        raise ConfigError("One run is no comparison: name at least two.")
    if folder is not None and folder == Path():
        raise ConfigError("--output_dir is empty, or the folder that you are in: name a new folder.")
    if report:
        check_wandb_report(names)
    records, refused = read_runs(names)
    if len(records) < 2:
        raise DataError("\n".join(refused))
    comparison = compare(records, refused)
    written = [str(path) for path in write_files(comparison, folder)] if folder is not None else []
    if report:
        try:
            written.append(write_wandb_report(comparison))
        except DataError as error:
            refused.append(str(error))
    # Last: a reader who has seen enough may close the output, which ends the program.
    console = Console()
    show(comparison, console)
    if written:
        console.print()
    for place in written:
        console.print(f"Written: {place}", soft_wrap=True, highlight=False, markup=False)
    if refused:
        raise DataError("\n".join(refused))


def read_runs(names: Sequence[str]) -> tuple[list[RunRecord], list[str]]:
    """The runs that can be read, in their order, and a message for each that cannot, or is named twice."""
    records: dict[str, RunRecord] = {}
    refused = []
    for name in names:
        try:
            record = read_run(name)
            run_id = record.identity.id
            if run_id in records:
                raise DataError(f"{name} is the same run as {records[run_id].place} ({run_id}): name each run once.")
            records[run_id] = record
        except ArcdistError as error:
            refused.append(str(error))
    return list(records.values()), refused


def compare(records: Sequence[RunRecord], left_out: Sequence[str] = ()) -> Comparison:
    """Compare runs; `left_out` says why others could not be.

    Raises:
        ConfigError: there are too many to tell apart.
    """
    runs = letter_runs(records)
    last, best = rank(runs, "last"), rank(runs, "best")
    tables = (
        score_table(runs),
        group_table(runs),
        pairwise_table(last),
        pairwise_table(best),
        cost_table(runs),
        puzzle_table(runs),
        efe_table(runs),
        difference_table(runs),
    )
    return Comparison(
        runs=runs,
        verdict=verdict_sentences(last, best),
        tables=tuple(table for table in tables if table is not None),
        outcomes=query_outcomes(runs),
        left_out=tuple(left_out),
    )


def show(comparison: Comparison, console: Console) -> None:
    """Print a comparison."""
    legend = rich.table.Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    legend.add_column(style="bold", no_wrap=True)
    legend.add_column(overflow="fold")
    for _ in range(2):
        legend.add_column(justify="right", style="dim", no_wrap=True)
    for run in comparison.runs:
        steps = run.record.steps[-1]["step"] if run.record.steps else 0
        legend.add_row(run.letter, Text(run.name), counted(len(run.record.epochs), "epoch"), counted(steps, "step"))
    console.print(legend)
    for table in comparison.tables:
        # If there is a single rival, the verdict says all.
        if table.key != "pairwise_best" and (table.key != "pairwise_last" or len(table.columns) > 1):
            console.print(Group("", *_printed(table)))
    console.print()
    console.print(Text(comparison.verdict[0], style="bold"))
    for sentence in comparison.verdict[1:]:
        console.print(Text(sentence))


def _printed(table: Table) -> Iterator[RenderableType]:
    if not table.rows:
        yield Text(f"{table.title}: {table.note}")
        return
    printed = rich.table.Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0), show_edge=False)
    printed.add_column(Text(table.title), no_wrap=True)
    for column in table.columns:
        printed.add_column(column, justify="right", overflow="fold")
    for row in table.rows:
        cells = zip(row.texts, row.marks, strict=True)
        printed.add_row(Text(row.label), *(Text(text, style="bold green" if marked else "") for text, marked in cells))
    yield printed
    if table.note:
        yield Text(table.note, style="dim")


def write_files(comparison: Comparison, folder: Path) -> tuple[Path, ...]:
    """Write page, pictures and numbers into a folder, in place of earlier ones, and return their paths.

    Raises:
        ConfigError: it cannot be written.
    """
    contents: dict[str, str | Figure] = {
        "compare.html": page(comparison),
        "curves.png": draw_curves(comparison.runs),
        "efe_terms.png": draw_efe_terms(comparison.runs),
        "compare.json": json.dumps(numbers(comparison), indent=2, ensure_ascii=False) + "\n",
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in contents.items():
            with replacing(folder / name) as partial:
                if isinstance(content, str):
                    partial.write_text(content, encoding="utf-8")
                else:
                    content.savefig(partial, format="png")
    except OSError as error:
        raise ConfigError(
            f"The output folder {folder} cannot be written ({reason(error)}): choose another with --output_dir DIR."
        ) from error
    return tuple(folder / name for name in contents)


def page(comparison: Comparison) -> str:
    """The comparison as HTML in one file."""
    return render(
        "compare.html",
        {
            "title": f"{len(comparison.runs)} runs compared",
            "comparison": comparison,
            "tables": {table.key: table for table in comparison.tables},
            "panels": [picture(figure, alt) for alt, figure in draw_panels(comparison.runs).items()],
        },
    )


def numbers(comparison: Comparison) -> dict[str, Any]:
    """The comparison for scripts: shares lie between 0 and 1, unknown numbers are null."""

    def by_run(values: Sequence[bool | None]) -> dict[str, bool | None]:
        return {run.letter: value for run, value in zip(comparison.runs, values, strict=True)}

    def by_column(row: Row, columns: Sequence[str]) -> dict[str, Any]:
        values = (asdict(value) if isinstance(value, Spread) else value for value in row.values)
        return dict(zip(columns, values, strict=True))

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
        **{table.key: {row.key: by_column(row, table.columns) for row in table.rows} for table in comparison.tables},
        "queries": {
            outcome.id: {"last": by_run(outcome.last), "best": by_run(outcome.best)} for outcome in comparison.outcomes
        },
        "left_out": list(comparison.left_out),
    }


def check_wandb_report(names: Sequence[str]) -> None:
    """Check that a W&B report can be written, before anything is read.

    Raises:
        ConfigError: its library is not installed, or a run is not on W&B's server.
    """
    try:
        import wandb_workspaces.reports.v2  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            f"--wandb needs the package wandb-workspaces ({reason(error)}): install it with "
            f"`pip install wandb-workspaces`."
        ) from error
    local = [name for name in names if not is_wandb_path(name)]
    if local:
        raise ConfigError(
            f"--wandb needs runs that are on W&B, named as entity/project/run_id; not so {', '.join(local)}: "
            f"send offline runs there with `wandb sync`, or leave out --wandb."
        )


def write_wandb_report(comparison: Comparison) -> str:
    """Write a report into the W&B project of the first run and return its address.

    Raises:
        DataError: W&B cannot be reached, or refuses it.
    """
    import wandb_workspaces.reports.v2 as reports
    from wandb_workspaces import expr

    runs = comparison.runs
    projects: dict[tuple[str, str], dict[str, Any]] = {}
    for run in runs:
        entity, project, run_id = run.record.place.split("/")
        # In the colours of the page.
        projects.setdefault((entity, project), {})[run_id] = reports.RunSettings(color=style_of(runs, run)[0])
    run_sets = [
        reports.Runset(
            entity=entity,
            project=project,
            name=f"{entity}/{project}",
            filters=expr.And(expr.Metric("ID").isin(list(settings))),
            run_settings=settings,
        )
        for (entity, project), settings in projects.items()
    ]
    panels = [
        *(
            reports.LinePlot(title=title, y=[key], smoothing_factor=0.9, smoothing_show_original=True)
            for key, title in CURVES.items()
        ),
        reports.BarPlot(title="EFE terms, unweighted", metrics=[f"efe/{term}" for term in EFE_TERMS]),
        reports.RunComparer(diff_only="split"),
    ]
    entity, project = next(iter(projects))
    report = reports.Report(
        entity=entity,
        project=project,
        title=f"{len(runs)} runs compared",
        blocks=[
            *(reports.P(sentence) for sentence in comparison.verdict),
            reports.UnorderedList(items=[f"{run.called}: {run.record.place}" for run in runs]),
            reports.PanelGrid(runsets=run_sets, panels=panels),
        ],
    )
    try:
        report.save()
    except Exception as error:
        # The library has no common class for its many errors.
        raise DataError(
            f"The W&B report cannot be written ({reason(error)}): see `wandb login` and the network."
        ) from error
    return str(report.url)
