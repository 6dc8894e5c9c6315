"""What the preview shows, from a configuration to the screen and the picture."""

from pathlib import Path

from rich.console import Console

from arcdist.analysis.catalogue import read_catalogue, survey
from arcdist.analysis.preview_arguments import PreviewArguments
from arcdist.analysis.screens import heading, show_data, show_task
from arcdist.analysis.seen import Given, give, load_tokenizer
from arcdist.config import Config
from arcdist.errors import DataError


def preview(config: Config, wanted: PreviewArguments) -> None:
    """Show tasks, or the data source as a whole where none is named.

    Raises:
        ArcdistError: of the kind that says whose mistake it is; a task that is not there is told before any is shown,
            a refusal of the leak guard after all that was counted.
    """
    console = Console(highlight=False, markup=False, emoji=False)
    if wanted.task_ids:
        _preview_tasks(console, config, wanted)
    else:
        _preview_data(console, config, wanted.picture)


def _preview_tasks(console: Console, config: Config, wanted: PreviewArguments) -> None:
    tokenizer = load_tokenizer(config.qwen)
    catalogue = read_catalogue(config.data)
    task_rows = {task.id: row for row, task in enumerate(catalogue.training.used)}
    shown: list[tuple[Given, str]] = []
    for task_id in wanted.task_ids:
        task, shelf = catalogue.find(task_id, wanted.kind)
        given = give(
            config,
            task,
            kind=wanted.kind,
            index=wanted.index,
            epoch=wanted.epoch,
            task_rows=task_rows,
            tokenizer=tokenizer,
        )
        shown.append((given, str(shelf.origin)))
    for given, origin in shown:
        lines = heading(
            given, config, epoch=wanted.epoch, origin=origin, exclusion=catalogue.exclusion(given.task, wanted.kind)
        )
        show_task(console, given, config, lines)
        if (path := wanted.picture_of(given.task.id)) is not None:
            from arcdist.analysis.screens import draw_task

            draw_task(given, path, [line.plain for line in lines])
            _tell(console, path)


def _preview_data(console: Console, config: Config, picture: Path | None) -> None:
    catalogue = read_catalogue(config.data)
    overview = survey(catalogue)
    show_data(console, overview, config.data)
    if picture is not None:
        from arcdist.analysis.screens import draw_data

        draw_data(overview, picture)
        _tell(console, picture)
    if isinstance(overview.leaks, DataError):
        raise overview.leaks


def _tell(console: Console, picture: Path) -> None:
    console.print(f"Drawn to {picture}.", soft_wrap=True)
