"""A run folder as a page: everything that it shows, put together and written."""

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from markupsafe import Markup

from arcdist.errors import ConfigError
from arcdist.report.condition import raised_flags, replicas, skipped_steps
from arcdist.report.facts import differences, facts
from arcdist.report.log_lines import complaints, read_log
from arcdist.report.planning import planning_scores
from arcdist.report.summary import costs, standing, summary
from arcdist.report.tasks import Change, change, once_solved, task_results
from arcdist.tracking import plots
from arcdist.tracking.atomic import replacing
from arcdist.tracking.grids import DIFFERENCE, query_figure, verdict_of
from arcdist.tracking.page import picture, render
from arcdist.tracking.run_record import RunRecord, read_run_folder
from arcdist.tracking.validation import Validation
from arcdist.tracking.wording import duration, number, percent

REPORT = "report.html"

_PANELS = (
    (plots.draw_loss, "Training loss by step"),
    (plots.draw_accuracy, "Right cells, sizes and grids of each validation"),
    (plots.draw_exact, "Exact grids in training and validation by epoch"),
    (plots.draw_terms, "The seven terms of the EFE loss by step"),
    (plots.draw_reward, "Mean reward of the refiner by step"),
    (plots.draw_gradient, "Qwen's gradient norm by step"),
    (plots.draw_pace, "Training queries a second by step"),
    (plots.draw_learning_rates, "Learning rates by step"),
)
_MOST_PICTURES = 32
_MOST_HARD = 12


def write_report(folder: Path, output: Path | None = None) -> Path:
    """Write the page of a run folder, `report.html` in there without an `output`, and return its path.

    Raises:
        ConfigError: it is no run folder, or the page cannot be written.
        DataError: the run has no logged step yet, or a file of it is broken.
    """
    path = folder / REPORT if output is None else output
    page = report_page(read_run_folder(folder))
    try:
        with replacing(path) as partial:
            partial.write_text(page, encoding="utf-8")
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise ConfigError(f"{path} cannot be written ({reason}): choose another with --output FILE.") from error
    return path


def report_page(record: RunRecord) -> str:
    """The page of a run as HTML that needs no other file."""
    folder, now = Path(record.place), datetime.now(UTC)
    log = read_log(folder / "training.log")
    last = record.validations[-1] if record.validations else None
    tasks = task_results(record.validations) if last else []
    curves = plots.Curves(epochs=record.epochs, best=record.best, steps=record.steps)
    against, differing = differences(record)
    return render(
        "report.html",
        {
            "title": f"{record.identity.name}: report of a run",
            "name": record.identity.name,
            "summary": summary(record),
            "standing": standing(record, log, now),
            "made": f"{now:%Y-%m-%d %H:%M} UTC",
            "facts": facts(record),
            "against": against,
            "differences": differing,
            "config": (folder / "config.yaml").read_text(encoding="utf-8"),
            "flags": raised_flags(record.steps),
            "logged": len(record.steps),
            "skipped": skipped_steps(record.steps),
            "replicas": replicas(record),
            "complaints": complaints(log),
            "has_log": bool(log),
            "panels": [picture(plots.panel_figure(panel, curves), alt) for panel, alt in _PANELS],
            "last": last,
            "queries": _pictures(last) if last else [],
            "difference": DIFFERENCE,
            "planning": planning_scores(last.shown) if last else [],
            "tasks": tasks,
            "hardest": tasks[:_MOST_HARD],
            "never": sum(not task.ever_exact for task in tasks),
            "changes": _changes(record.validations),
            "once": once_solved(record.validations) if last else (),
            "costs": costs(record),
            "epochs": record.epochs,
            "best": record.best.get("epoch"),
            **{function.__name__: function for function in (duration, number, percent)},
        },
    )


def _pictures(validation: Validation) -> list[tuple[str, str, Markup]]:
    """Id, verdict and picture of the shown queries."""
    return [
        (query.id, verdict_of(query), picture(query_figure(query), f"Grids of {query.id}: {verdict_of(query)}"))
        for query in validation.shown[:_MOST_PICTURES]
    ]


def _changes(validations: Sequence[Validation]) -> list[tuple[str, Change]]:
    """How the last validation differs from the one before it and from the first, and what each is called."""
    if len(validations) < 2:
        return []
    against = {"the one before it": validations[-2], "the first": validations[0]}
    if len(validations) == 2:
        against.pop("the one before it")
    return [(f"{name}, epoch {before.epoch}", change(before, validations[-1])) for name, before in against.items()]
