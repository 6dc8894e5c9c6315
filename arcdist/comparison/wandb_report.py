"""The comparison as a W&B report, with the panels that the page has."""

from collections.abc import Sequence
from typing import Any

from arcdist.comparison.comparison import Comparison
from arcdist.comparison.efe_shares import LAMBDAS
from arcdist.comparison.panels import CURVES, style_of
from arcdist.comparison.runs import Run
from arcdist.errors import ConfigError, DataError
from arcdist.tracking.wandb_files import is_wandb_path

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
