import io
import logging
import re

import pytest
from rich.console import Console
from rich.table import Table

from arcdist.errors import ConfigError
from arcdist.tracking import log, log_table, no_log, open_log


@pytest.fixture
def terminal(monkeypatch):
    screen = Console(file=io.StringIO(), force_terminal=True, width=80, color_system=None)
    monkeypatch.setattr(log, "console", lambda: screen)
    return screen.file


def test_lines_go_to_file_and_console(tmp_path, capsys):
    with open_log(tmp_path) as logger:
        logger.info("epoch %d", 3)
        logging.getLogger("arcdist.training.health").warning("red flag")
    assert re.fullmatch(
        r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} INFO epoch 3\n\S+ \S+ WARNING red flag\n",
        (tmp_path / "training.log").read_text(),
    )
    assert re.fullmatch(r"\d\d:\d\d:\d\d epoch 3\n\d\d:\d\d:\d\d red flag\n", capsys.readouterr().err)


def test_terminal_lines_carry_no_markup(tmp_path, terminal):
    with open_log(tmp_path) as logger:
        logger.info("loss [1/3] 0.5")
    assert re.search(r"INFO +loss \[1/3\] 0\.5", terminal.getvalue())


def test_quiet_console_shows_warnings_only(tmp_path, capsys):
    with open_log(tmp_path, quiet=True) as logger:
        logger.info("fine")
        logger.warning("not fine")
    captured = capsys.readouterr().err
    assert "not fine" in captured
    assert len(captured.splitlines()) == 1
    assert len((tmp_path / "training.log").read_text().splitlines()) == 2


def test_the_logger_is_left_as_it_was_found(tmp_path):
    logger = logging.getLogger("arcdist")
    before = (list(logger.handlers), logger.level, logger.propagate)
    with open_log(tmp_path):
        assert len(logger.handlers) == len(before[0]) + 2
    assert (logger.handlers, logger.level, logger.propagate) == before


@pytest.mark.parametrize(
    ("error", "noted"),
    [
        (ConfigError("train.epochs is 0"), "ERROR ConfigError: train.epochs is 0\n"),
        (KeyboardInterrupt(), "INFO Ended by Ctrl-C.\n"),
        (ZeroDivisionError("by zero"), "Traceback"),
    ],
)
def test_what_ends_the_run_is_noted_in_the_file_only(tmp_path, capsys, error, noted):
    with pytest.raises(type(error)), open_log(tmp_path):
        raise error
    assert noted in (tmp_path / "training.log").read_text()
    assert capsys.readouterr().err == ""


def test_table_is_shown_and_kept_as_text(tmp_path, capsys):
    table = Table("score", "value")
    table.add_row("exact", "3.47 %")
    with open_log(tmp_path):
        log_table(table)
        log_table(table, quiet=True)
    assert capsys.readouterr().err.count("3.47 %") == 1
    assert (tmp_path / "training.log").read_text().count("3.47 %") == 2


def test_without_a_log_nothing_is_said_and_all_is_as_before_afterwards(capsys, caplog):
    logger = logging.getLogger("arcdist")
    before = (logger.propagate, list(logger.handlers), logger.level)
    with no_log():
        logging.getLogger("arcdist.training.loop").warning("what process 0 says as well")
    assert (logger.propagate, list(logger.handlers), logger.level) == before
    with pytest.raises(ConfigError), no_log():
        raise ConfigError("told by whoever calls")
    assert (logger.propagate, list(logger.handlers), logger.level) == before
    assert capsys.readouterr() == ("", "")
    assert caplog.records == []
