"""What `launch/compare.py` runs: read, compare, show, write."""

import dataclasses
import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator, PercentFormatter
from rich import box
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from arcdist.analysis.page import picture, render
from arcdist.analysis.pairwise import Puzzle, Ranking, contest_sheet, puzzle_sheet, puzzles, rankings, verdict_sentences
from arcdist.analysis.record import RunRecord, read_run_folder
from arcdist.analysis.scores import Run, cost_sheet, group_sheet, letter_runs, number, score_sheet
from arcdist.analysis.tables import Line, Sheet, Spread
from arcdist.errors import ArcdistError, ConfigError, DataError
from arcdist.files import expanded, replacing
from arcdist.tracking.plots import BLACK, BLUE, GREEN, ORANGE, PURPLE, SKY, TERM_COLORS, VERMILION
from arcdist.tracking.wandb import is_wandb_path, read_wandb_run

_NO_DIFFERENCE = ("output.dir",)
"""Every run has its own."""
_CHECKSUM_DIGITS = 10
_COMMIT_DIGITS = 7


def difference_sheet(runs: Sequence[Run]) -> Sheet:
    """A row for each property in which at least two runs differ; a dash where a run does not have it."""
    properties = [_properties(run.record) for run in runs]
    names = dict.fromkeys(name for known in properties for name in known)
    lines = []
    for name in names:
        values = tuple(known.get(name) for known in properties)
        if any(value != values[0] for value in values):
            lines.append(Line(key=name, label=name, values=values, unit="text"))
    note = "" if lines else "Configuration, data, device and versions are the same."
    columns = tuple(run.letter for run in runs)
    return Sheet(key="differences", title="What differs", columns=columns, lines=tuple(lines), note=note)


def _properties(record: RunRecord) -> Mapping[str, Any]:
    identity = record.identity
    config = {name: _plain(value) for name, value in record.config.items() if name not in _NO_DIFFERENCE}
    return {
        "recipe": _plain(identity.recipe),
        **config,
        **{f"{part} tasks": checksum[:_CHECKSUM_DIGITS] for part, checksum in identity.data.items()},
        "device": identity.device,
        "processes": identity.processes,
        "ZeRO stage": _plain(identity.zero_stage),
        "git commit": _short(identity.git_commit),
        **{f"version of {package}": version for package, version in identity.versions.items()},
    }


def _plain(value: Any) -> Any:
    """A null in words: None is for a run that has no such key."""
    return "none" if value is None else value


def _short(commit: str | None) -> str:
    if commit is None:
        return "none"
    digits, changes, _ = commit.partition("+changes")
    return digits[:_COMMIT_DIGITS] + changes


LAMBDAS = {
    "risk": "efe.lambda_risk",
    "ambiguity": "efe.lambda_amb",
    "step": "efe.lambda_step",
    "consistency": "efe.lambda_cons",
    "bidirectional": "efe.lambda_bi",
    "z_learning": "efe.lambda_z",
    "prompt": "efe.lambda_prompt",
}
"""The key of each term's weight."""


def efe_sheet(runs: Sequence[Run]) -> Sheet:
    """Share of each term in the weighted total, a column a run."""
    shares = [last_shares(run.record) for run in runs]
    lines = tuple(
        Line(
            key=term,
            label=f"{term}, %",
            values=tuple(None if known is None else known[term] for known in shares),
            unit="percent",
        )
        for term in LAMBDAS
    )
    return Sheet(
        key="efe_shares",
        title="EFE terms",
        columns=tuple(run.letter for run in runs),
        lines=lines,
        note="Share of λ · term in their sum, in the last epoch; before the first one ends, in the last logged step.",
    )


def last_shares(record: RunRecord) -> dict[str, float] | None:
    """The shares in the last epoch, or in the last logged step of a run without one; none where no term is known."""
    weights = {term: record.config.get(name) for term, name in LAMBDAS.items()}
    for entry in (*reversed(record.epochs), *reversed(record.steps)):
        terms = {term: value for term in LAMBDAS if (value := number(entry, f"efe/{term}")) is not None}
        if len(terms) == len(LAMBDAS):
            return shares_of(terms, weights)
    return None


def shares_of(terms: Mapping[str, float], weights: Mapping[str, Any]) -> dict[str, float] | None:
    """|λ · term| over the sum of these, which is 1 over all terms; none where that is 0 or a weight is not known."""
    if any(weights.get(term) is None for term in terms):
        return None
    parts = {term: abs(float(weights[term]) * value) for term, value in terms.items()}
    total = sum(parts.values())
    return {term: part / total for term, part in parts.items()} if total > 0 else None


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """Two runs or more, compared."""

    runs: tuple[Run, ...]
    verdict: tuple[str, ...]
    """In sentences, the first of which says it."""
    last: Ranking
    """By the last validation of each run: what the verdict goes by."""
    best: Ranking
    sheets: tuple[Sheet, ...]
    """In the order in which they are read."""
    puzzles: tuple[Puzzle, ...]
    left_out: tuple[str, ...]
    """Why each further run that was named is not among them."""


def compare(records: Sequence[RunRecord], left_out: Sequence[str] = ()) -> Comparison:
    """Compare runs; `left_out` says why others could not be.

    Raises:
        ConfigError: there are too many to tell apart.
    """
    runs = letter_runs(records)
    last, best = rankings(runs)
    sheets = (
        score_sheet(runs),
        group_sheet(runs),
        contest_sheet(last),
        contest_sheet(best),
        cost_sheet(runs),
        puzzle_sheet(runs),
        efe_sheet(runs),
        difference_sheet(runs),
    )
    return Comparison(
        runs=runs,
        verdict=verdict_sentences(last, best),
        last=last,
        best=best,
        sheets=tuple(sheet for sheet in sheets if sheet is not None),
        puzzles=puzzles(runs),
        left_out=tuple(left_out),
    )


Dash: TypeAlias = Literal["-", "--", "-.", ":"]
Series: TypeAlias = tuple[list[float], list[float]]

_EXACT = "val/exact"
CURVES = {
    "loss": "Training loss",
    _EXACT: "Exact grids in validation",
    "reward/mean": "Mean reward",
    "grad_norm/qwen": "Gradient norm of Qwen",
    "pairs_per_s": "Queries a second",
}
"""The title of each key that is drawn as a curve a run."""

_FROM_ZERO = (_EXACT, "grad_norm/qwen", "pairs_per_s")
_COLORS = (BLUE, VERMILION, GREEN, ORANGE, PURPLE, SKY, BLACK)
_DASHES: tuple[Dash, ...] = ("-", "--", "-.", ":")
_MOST_MARKED_POINTS = 25
_DARK = 0.45
"""Luminance below which white is easier to read than black."""


def draw_curve(axes: Axes, runs: Sequence[Run], key: str) -> None:
    """One of `CURVES` over the steps; over the training queries where the runs have other batch sizes.

    Pale lines are logged values, strong ones a running mean over a tenth of them.
    """
    axes.set_title(CURVES[key])
    sizes = {run.record.config.get("train.batch_size") for run in runs}
    by_query = len(sizes) > 1 and None not in sizes
    for run in runs:
        if key == _EXACT:
            _draw_validated(axes, _over(run.record, _validated(run.record), by_query), *style_of(runs, run))
        else:
            _draw_smoothed(axes, _over(run.record, _logged(run.record, key), by_query), *style_of(runs, run))
    if key == _EXACT:
        axes.yaxis.set_major_formatter(PercentFormatter(xmax=1.0, decimals=None))
    axes.set_xlabel("training queries" if by_query else "step")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
    axes.grid(color="#DDDDDD", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    if not any(np.size(line.get_xdata()) for line in axes.get_lines()):
        axes.text(0.5, 0.5, "not logged", transform=axes.transAxes, ha="center", color="#555555")
    if key in _FROM_ZERO:
        axes.set_ylim(bottom=0.0)


def draw_shares(axes: Axes, runs: Sequence[Run], labels: Sequence[str], *, least: float) -> None:
    """A bar a run: the share of each weighted term in the energy of its last epoch.

    `labels` name the bars; shares below `least` have no room for their number.
    """
    for place, run in enumerate(runs):
        left = 0.0
        for term, share in (last_shares(run.record) or {}).items():
            color = TERM_COLORS[term]
            axes.barh(place, share, left=left, color=color, edgecolor="white", linewidth=1.0)
            if share >= least:
                text = "white" if _luminance(color) < _DARK else "black"
                axes.text(left + share / 2, place, f"{share:.0%}", color=text, ha="center", va="center")
            left += share
        if left == 0.0:
            axes.text(0.01, place, "not logged", color="#555555", va="center")
    axes.set_yticks(range(len(runs)), labels)
    axes.set(xlim=(0.0, 1.0), ylim=(len(runs) - 0.5, -0.5))
    axes.xaxis.set_major_formatter(PercentFormatter(xmax=1.0))
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(left=False)


def style_of(runs: Sequence[Run], run: Run) -> tuple[str, Dash]:
    """Colour and dash of a run's line: seven colours, then the same ones dashed."""
    times, place = divmod(runs.index(run), len(_COLORS))
    return _COLORS[place], _DASHES[times]


def smooth(x: Sequence[float], y: Sequence[float]) -> Series:
    """The running mean over an odd number of points, about a tenth of all, each at the middle of its points."""
    width = len(y) // 10 | 1
    mean = np.convolve(y, np.full(width, 1 / width), mode="valid") if y else np.empty(0)
    start = (width - 1) // 2
    return list(x[start : start + len(mean)]), mean.tolist()


def _draw_smoothed(axes: Axes, series: Series, color: str, dash: Dash) -> None:
    x, y = series
    mean_x, mean = smooth(x, y)
    if len(mean) < len(y):
        axes.plot(x, y, color=color, linewidth=0.7, alpha=0.3)
    marker = "o" if len(mean) == 1 else ""
    axes.plot(mean_x, mean, color=color, linestyle=dash, linewidth=1.8, marker=marker)


def _draw_validated(axes: Axes, series: Series, color: str, dash: Dash) -> None:
    x, y = series
    marker = "o" if len(x) <= _MOST_MARKED_POINTS else ""
    axes.plot(x, y, marker=marker, markersize=4, color=color, linestyle=dash)


def _logged(record: RunRecord, key: str) -> Iterator[tuple[float, float]]:
    return ((float(step["step"]), value) for step in record.steps if (value := number(step, key)) is not None)


def _validated(record: RunRecord) -> Iterator[tuple[float, float]]:
    """By the step after which each epoch ended; those whose step is not known are left out."""
    ends = {step["epoch"]: step["step"] for step in record.steps if step.get("epoch") is not None}
    ends |= {validation.epoch: validation.step for validation in record.validations}
    for epoch in record.epochs:
        exact = number(epoch, _EXACT)
        if exact is not None and epoch["epoch"] in ends:
            yield float(ends[epoch["epoch"]]), exact


def _over(record: RunRecord, points: Iterator[tuple[float, float]], by_query: bool) -> Series:
    scale = float(record.config["train.batch_size"]) if by_query else 1.0
    pairs = list(points)
    return [scale * x for x, _ in pairs], [y for _, y in pairs]


def _luminance(color: str) -> float:
    return float(np.dot(to_rgb(color), (0.2126, 0.7152, 0.0722)))


_LONGEST_NAME = 31
_WIDTH = 3.8
"""Inches of a panel that stands alone: no more than a phone shows at its full size."""
_HEIGHT = 3.0
_LEGEND_ROW = 0.22
_BAR = 0.26
_LETTERS_IN_A_ROW = 6
_TERMS_IN_A_ROW = 3


def draw_curves(runs: Sequence[Run]) -> Figure:
    """Loss, exact grids, reward, Qwen's gradient norm and pace over the steps, with the legend in the sixth place."""
    figure = Figure(figsize=(12, 7), dpi=100, layout="constrained")
    *panels, legend = figure.subplots(2, 3).flat
    for axes, key in zip(panels, CURVES, strict=True):
        draw_curve(axes, runs, key)
    legend.set_axis_off()
    legend.legend(_lines(runs), [_label(run) for run in runs], loc="upper left", frameon=False, borderaxespad=0.0)
    return figure


def draw_efe_terms(runs: Sequence[Run]) -> Figure:
    """A bar a run: the share of each weighted term in the energy of its last epoch."""
    figure = Figure(figsize=(12, 1.6 + 0.55 * len(runs)), dpi=100, layout="constrained")
    axes = figure.subplots()
    axes.set_title("EFE terms in the last epoch: share of λ · term", loc="left")
    draw_shares(axes, runs, [_label(run) for run in runs], least=0.05)
    figure.legend(_squares(), list(LAMBDAS), loc="outside lower center", ncols=len(LAMBDAS), frameon=False)
    return figure


def draw_panels(runs: Sequence[Run]) -> Mapping[str, Figure]:
    """Each panel as a figure of its own, by what it shows in words; runs go by their letters."""
    curves = {f"{title}, a line a run": _curve_figure(runs, key) for key, title in CURVES.items()}
    return {**curves, "Share of each EFE term in each run's last epoch": _shares_figure(runs)}


def _curve_figure(runs: Sequence[Run], key: str) -> Figure:
    columns = min(len(runs), _LETTERS_IN_A_ROW)
    figure = _panel_figure(_HEIGHT, -(-len(runs) // columns))
    draw_curve(figure.subplots(), runs, key)
    letters = [run.letter for run in runs]
    figure.legend(
        _lines(runs), letters, loc="outside lower center", ncols=columns, frameon=False, handlelength=1.6,
        columnspacing=1.4, borderaxespad=0.2,
    )  # fmt: skip
    return figure


def _shares_figure(runs: Sequence[Run]) -> Figure:
    rows = -(-len(LAMBDAS) // _TERMS_IN_A_ROW)
    figure = _panel_figure(max(_HEIGHT - (rows - 1) * _LEGEND_ROW, 0.8 + _BAR * len(runs)), rows)
    axes = figure.subplots()
    axes.set_title("EFE terms: share of λ · term")
    draw_shares(axes, runs, [run.letter for run in runs], least=0.1)
    figure.legend(
        _squares(), list(LAMBDAS), loc="outside lower center", ncols=_TERMS_IN_A_ROW, frameon=False, handlelength=1.0,
        handletextpad=0.4, columnspacing=1.0, borderaxespad=0.2,
    )  # fmt: skip
    return figure


def _panel_figure(height: float, legend_rows: int) -> Figure:
    return Figure(figsize=(_WIDTH, height + _LEGEND_ROW * legend_rows), dpi=100, layout="constrained")


def _lines(runs: Sequence[Run]) -> list[Line2D]:
    styles = (style_of(runs, run) for run in runs)
    return [Line2D([], [], color=color, linestyle=dash, linewidth=2.5) for color, dash in styles]


def _squares() -> list[Line2D]:
    return [Line2D([], [], color=TERM_COLORS[term], marker="s", linestyle="", markersize=9) for term in LAMBDAS]


def _label(run: Run) -> str:
    half = _LONGEST_NAME // 2
    name = run.name if len(run.name) <= _LONGEST_NAME else f"{run.name[:half]}…{run.name[-half:]}"
    return f"{run.letter}  {name}".replace("$", r"\$")


_PAGE_ONLY = ("contests_best",)


def show(comparison: Comparison, console: Console) -> None:
    """Print a comparison."""
    console.print(_legend(comparison))
    for sheet in comparison.sheets:
        # Of a single rival the verdict says all.
        if sheet.key in _PAGE_ONLY or (sheet.key == "contests_last" and len(sheet.columns) == 1):
            continue
        console.print(_table(sheet))
    console.print()
    console.print(Text(comparison.verdict[0], style="bold"))
    for sentence in comparison.verdict[1:]:
        console.print(Text(sentence))


def _legend(comparison: Comparison) -> RenderableType:
    lines = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    lines.add_column(style="bold", no_wrap=True)
    lines.add_column(overflow="fold")
    for _ in range(2):
        lines.add_column(justify="right", style="dim", no_wrap=True)
    for run in comparison.runs:
        steps = run.record.steps[-1]["step"] if run.record.steps else 0
        lines.add_row(run.letter, Text(run.name), _count(len(run.record.epochs), "epoch"), _count(steps, "step"))
    return lines


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _table(sheet: Sheet) -> RenderableType:
    lines = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0), show_edge=False)
    lines.add_column(Text(sheet.title), no_wrap=True)
    for column in sheet.columns:
        lines.add_column(column, justify="right", overflow="fold")
    for line in sheet.lines:
        cells = (
            Text(text, style="bold green" if marked else "")
            for text, marked in zip(line.texts, line.marks, strict=True)
        )
        lines.add_row(Text(line.label), *cells)
    return Group("", *_parts(sheet, lines))


def _parts(sheet: Sheet, lines: Table) -> Iterator[RenderableType]:
    if sheet.lines:
        yield lines
        if sheet.note:
            yield Text(sheet.note, style="dim")
    else:
        yield Text(f"{sheet.title}: {sheet.note}")


PAGE, CURVES_of_files, EFE_TERMS, NUMBERS = "compare.html", "curves.png", "efe_terms.png", "compare.json"


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
        for name, draw in ((CURVES_of_files, draw_curves), (EFE_TERMS, draw_efe_terms)):
            with replacing(folder / name) as partial:
                draw(comparison.runs).savefig(partial, format="png")
        _write(folder / NUMBERS, json.dumps(numbers(comparison), indent=2, ensure_ascii=False) + "\n")
    except OSError as error:
        raise ConfigError(_not_writable(folder, error)) from error
    return tuple(folder / name for name in (PAGE, CURVES_of_files, EFE_TERMS, NUMBERS))


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


_SMOOTHING = 0.9


def check(names: Sequence[str]) -> None:
    """See whether a report can be written, before anything is read.

    Raises:
        ConfigError: its library is not installed, or a run is not on W&B's server.
    """
    try:
        import wandb_workspaces.reports.v2  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            f"--wandb needs the package wandb-workspaces ({error}): install it with `pip install wandb-workspaces`."
        ) from error
    local = [name for name in names if not is_wandb_path(name)]
    if local:
        raise ConfigError(
            f"--wandb compares runs that are on W&B, named as entity/project/run_id; not so {', '.join(local)}: "
            f"send offline runs there with `wandb sync`, or leave out --wandb."
        )


def write(comparison: Comparison) -> str:
    """Write the report into the project of the first run and give its address.

    Raises:
        DataError: W&B cannot be reached, or refuses it.
    """
    report = _report(comparison)
    try:
        report.save()
    except Exception as error:
        # Of the library's many errors none has a class of its own.
        raise DataError(f"The W&B report cannot be written ({error}): see `wandb login` and the network.") from error
    return str(report.url)


def _report(comparison: Comparison) -> Any:
    import wandb_workspaces.reports.v2 as reports

    entity, project, _ = _address(comparison.runs[0])
    curves = [
        reports.LinePlot(title=title, y=[key], smoothing_factor=_SMOOTHING, smoothing_show_original=True)
        for key, title in CURVES.items()
    ]
    terms = reports.BarPlot(title="EFE terms, unweighted", metrics=[f"efe/{term}" for term in LAMBDAS])
    differences = reports.RunComparer(diff_only="split")
    return reports.Report(
        entity=entity,
        project=project,
        title=f"{len(comparison.runs)} runs compared",
        blocks=[
            *(reports.P(sentence) for sentence in comparison.verdict),
            reports.UnorderedList(items=[f"{run.called}: {run.record.place}" for run in comparison.runs]),
            reports.PanelGrid(runsets=_run_sets(comparison.runs), panels=[*curves, terms, differences]),
        ],
    )


def _run_sets(runs: Sequence[Run]) -> list[Any]:
    """One for each project, which shows these runs only, in the colours of the page."""
    import wandb_workspaces.reports.v2 as reports
    from wandb_workspaces import expr

    projects: dict[tuple[str, str], dict[str, str]] = {}
    for run in runs:
        entity, project, run_id = _address(run)
        projects.setdefault((entity, project), {})[run_id] = style_of(runs, run)[0]
    return [
        reports.Runset(
            entity=entity,
            project=project,
            name=f"{entity}/{project}",
            filters=expr.And(expr.Metric("ID").isin(list(colors))),
            run_settings={run_id: reports.RunSettings(color=color) for run_id, color in colors.items()},
        )
        for (entity, project), colors in projects.items()
    ]


def _address(run: Run) -> tuple[str, str, str]:
    entity, project, run_id = run.record.place.split("/")
    return entity, project, run_id


def read_runs(names: Sequence[str]) -> tuple[list[RunRecord], list[str]]:
    """The runs that can be read, in their order, and a message for each that cannot, or is named twice."""
    records: list[RunRecord] = []
    refused = []
    for name in names:
        try:
            record = read_run(name)
            same = [other.place for other in records if other.identity.id == record.identity.id]
            if same:
                raise DataError(f"{name} is the same run as {same[0]} ({record.identity.id}): name each run once.")
            records.append(record)
        except ArcdistError as error:
            refused.append(str(error))
    return records, refused


def read_run(name: str) -> RunRecord:
    """The run of that name, wherever its numbers are kept.

    Raises:
        ConfigError, DataError, PlatformError: there is no such run, or it cannot be read.
    """
    if is_wandb_path(name):
        run = read_wandb_run(name)
        return RunRecord(place=name, **{field.name: getattr(run, field.name) for field in fields(run)})
    return read_run_folder(expanded(name))


def compare_runs(names: Sequence[str], folder: Path | None, *, report: bool) -> None:
    """Print the comparison of the runs of these names.

    Args:
        names: run folders, W&B folders, or runs on W&B's server.
        folder: where page, pictures and numbers go, where given.
        report: whether a W&B report is written as well.

    Raises:
        ConfigError: a single run is named, the folder cannot be written, or a report is not possible.
        DataError: runs cannot be read; where at least two can, these have been compared before.
    """
    if len(names) < 2:
        raise ConfigError("One run is no comparison: name at least two.")
    if folder is not None and folder == Path():
        raise ConfigError("--output_dir is empty, or the folder that you are in: name a folder of its own.")
    if report:
        check(names)
    records, refused = read_runs(names)
    if len(records) < 2:
        raise DataError("\n".join(refused))
    comparison = compare(records, refused)
    written = []
    if folder is not None:
        make_folder(folder)
        written += [str(path) for path in write_files(comparison, folder)]
    if report:
        try:
            written.append(write(comparison))
        except DataError as error:
            refused.append(str(error))
    # Last: whoever reads it may have seen enough, and end the program.
    console = Console()
    show(comparison, console)
    if written:
        console.print()
    for place in written:
        console.print(f"Written: {place}", soft_wrap=True, highlight=False, markup=False)
    if refused:
        raise DataError("\n".join(refused))
