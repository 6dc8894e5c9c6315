"""The tables of a comparison, number by number."""

import dataclasses
import html
import io
import json
import math
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from arcdist.tracking.wandb_reader import is_wandb_path
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.colors import to_rgb
from matplotlib.image import imread
from rich.console import Console
from shared.made_records import answers, made_record
from shared.made_runs import make_run

from arcdist.analysis import compare as reading
from arcdist.analysis import compare as wandb_report
from arcdist.analysis.compare import (
    LAMBDAS,
    compare,
    difference_sheet,
    draw_curves,
    draw_efe_terms,
    draw_panels,
    efe_sheet,
    make_folder,
    numbers,
    read_run,
    read_runs,
    shares_of,
    show,
    smooth,
    style_of,
    write_files,
)
from arcdist.analysis.pairwise import puzzle_sheet, puzzles
from arcdist.analysis.record import read_run_folder
from arcdist.analysis.scores import cost_sheet, group_sheet, groups, letter_runs, score_sheet
from arcdist.analysis.tables import Line, Spread, show_value
from arcdist.errors import ConfigError, DataError
from arcdist.tracking.plots import BLUE, TERM_COLORS, VERMILION

WEIGHTS = dict.fromkeys(LAMBDAS.values(), 1.0)


def run_with(name, steps=3, batch_size=32):
    logged = [
        {"step": 10 * step, "epoch": 0, "loss": 1 / step, "reward/mean": 0.1, "grad_norm/qwen": 0.2, "pairs_per_s": 9.0}
        for step in range(1, steps + 1)
    ]
    return made_record(
        name,
        steps=logged,
        epochs=[{"val/exact": 0.5, **{f"efe/{term}": 1.0 for term in LAMBDAS}}],
        exact=[answers("10")],
        config={"train.batch_size": batch_size, **WEIGHTS},
    )


def lines(axes, color):
    return [line for line in axes.get_lines() if line.get_color() == color]


def test_a_running_mean_stands_at_the_middle_of_its_points():
    assert smooth([1.0, 2.0, 3.0], [5.0, 1.0, 3.0]) == ([1.0, 2.0, 3.0], [5.0, 1.0, 3.0])
    # Of 30 points three each.
    x, y = smooth([float(number) for number in range(30)], [float(number % 3) for number in range(30)])
    assert x == list(range(1, 29))
    assert y == pytest.approx([1.0] * 28)
    assert smooth([], []) == ([], [])


def test_each_run_is_drawn_in_its_colour_on_common_axes():
    runs = letter_runs([run_with("x", steps=40), run_with("y")])
    figure = draw_curves(runs)
    loss, exact, reward, norm, pace, legend = figure.axes
    assert figure.get_size_inches().tolist() == [12, 7]
    strong, pale = sorted(lines(loss, BLUE), key=lambda line: len(line.get_xdata()))
    assert (len(strong.get_xdata()), len(pale.get_xdata())) == (36, 40)
    assert pale.get_alpha() < 0.5
    (other,) = lines(loss, VERMILION)
    assert other.get_ydata() == pytest.approx([1, 1 / 2, 1 / 3])
    assert [len(axes.get_lines()) > 1 for axes in (exact, reward, norm, pace)] == [True] * 4
    # By the step after which the epoch was validated.
    assert [(line.get_xdata(), line.get_ydata()) for line in lines(exact, BLUE)] == [([10.0], [0.5])]
    assert [text.get_text() for text in legend.get_legend().get_texts()] == ["A  x", "B  y"]
    assert loss.get_xlabel() == "step"


def test_runs_with_other_batches_are_drawn_over_queries():
    loss = draw_curves(letter_runs([run_with("x"), run_with("y", batch_size=8)])).axes[0]
    assert loss.get_xlabel() == "training queries"
    assert lines(loss, BLUE)[0].get_xdata() == pytest.approx([320, 640, 960])
    assert lines(loss, VERMILION)[0].get_xdata() == pytest.approx([80, 160, 240])


def test_runs_that_logged_nothing_still_get_their_panels():
    runs = letter_runs([made_record("x"), made_record("$y$")])
    curves, terms = draw_curves(runs), draw_efe_terms(runs)
    assert [axes.texts[0].get_text() for axes in curves.axes[:5]] == ["not logged"] * 5
    assert [text.get_text() for text in terms.axes[0].texts] == ["not logged"] * 2
    for figure in (curves, terms):
        figure.draw_without_rendering()


def test_a_bar_holds_the_shares_of_the_terms():
    runs = letter_runs([run_with("x"), made_record("y")])
    bars = draw_efe_terms(runs).axes[0].patches
    assert [bar.get_width() for bar in bars] == pytest.approx([1 / 7] * 7)
    assert [bar.get_x() for bar in bars] == pytest.approx(np.arange(7) / 7)
    assert [bar.get_facecolor()[:3] for bar in bars] == [to_rgb(TERM_COLORS[term]) for term in LAMBDAS]


@pytest.mark.parametrize("count", [2, 26])
def test_a_panel_alone_is_that_of_the_whole_picture(count):
    runs = letter_runs([run_with(f"name {number}", steps=40, batch_size=8 + number % 2) for number in range(count)])
    *curves, shares = draw_panels(runs).values()
    for alone, beside in zip(curves, draw_curves(runs).axes, strict=False):
        (panel,) = alone.axes
        assert (panel.get_title(), panel.get_xlabel(), panel.get_ylim()) == (
            beside.get_title(), beside.get_xlabel(), beside.get_ylim()
        )  # fmt: skip
        assert [line.get_xydata().tolist() for line in panel.get_lines()] == [
            line.get_xydata().tolist() for line in beside.get_lines()
        ]
        (legend,) = alone.legends
        assert [text.get_text() for text in legend.get_texts()] == [run.letter for run in runs]
    bars, whole_bars = shares.axes[0].patches, draw_efe_terms(runs).axes[0].patches
    assert [bar.get_bbox().bounds for bar in bars] == [bar.get_bbox().bounds for bar in whole_bars]
    assert [label.get_text() for label in shares.axes[0].get_yticklabels()] == [run.letter for run in runs]


@pytest.mark.parametrize("count", [2, 26])
def test_nothing_of_a_panel_lies_outside_it_or_in_another_s_place(count):
    runs = letter_runs([run_with(f"name {number}", steps=40) for number in range(count)])
    for figure in draw_panels(runs).values():
        assert figure.get_size_inches()[0] == 3.8
        figure.draw_without_rendering()
        (axes,), (legend,) = figure.axes, figure.legends
        panel, key = axes.get_tightbbox(), legend.get_window_extent()
        for box in (panel, key):
            assert min(box.x0, box.y0) >= 0
            assert box.x1 <= figure.bbox.x1
            assert box.y1 <= figure.bbox.y1
        assert key.y1 <= panel.y0
        assert axes.get_window_extent().height >= 160


def test_more_runs_than_colours_are_told_apart_by_dashes():
    runs = letter_runs([made_record(str(number)) for number in range(26)])
    assert len({style_of(runs, run) for run in runs}) == 26
    assert [style_of(runs, runs[place]) for place in (0, 7)] == [(BLUE, "-"), (BLUE, "--")]


def test_long_names_are_shortened_in_the_middle():
    name = "arcdist_20260102_030405_" + "x" * 40
    legend = draw_curves(letter_runs([made_record(name), made_record("y")])).axes[5].get_legend()
    assert legend.get_texts()[0].get_text() == "A  arcdist_2026010…xxxxxxxxxxxxxxx"


def made(name, pattern, seed=0, **fields):
    """A run with a number of each kind."""
    terms = {f"efe/{term}": 0.1 + place + seed for place, term in enumerate(LAMBDAS)}
    exact = answers(pattern)
    scores = {"val/exact": sum(exact.values()) / len(exact), "train/loss": 0.777 + seed, "reward/mean": -0.0123}
    times = {"time/device_hours": 0.321 + seed, "time/elapsed_s": 555.0, "pairs_per_s": 123.4 + seed}
    return made_record(
        name,
        exact=[exact],
        epochs=[{**scores, **terms, **times}],
        steps=[{"step": step, "epoch": 0, "loss": 1 / step, **times} for step in (1, 2)],
        config={"train.seed": seed, "agent.kind": "conv", **dict.fromkeys(LAMBDAS.values(), 0.5)},
        **fields,
    )


@pytest.fixture(scope="module")
def comparison():
    return compare(
        [
            made("first", "1" * 30 + "0" * 10, group="base"),
            made("second <&>", "0" * 30 + "1" * 10, seed=1, group="base"),
            made("third", "1" * 13 + "0" * 27, seed=2, git_commit=None),
        ],
        ["nowhere: there is no such folder."],
    )


def printed(comparison, width):
    screen = io.StringIO()
    show(comparison, Console(file=screen, width=width))
    return screen.getvalue()


def rows_of_page(page, title):
    """The cells of each row below a heading, by the row's own."""
    section = page.partition(f"<h2>{title}</h2>")[2].partition("<h2>")[0]
    rows = (re.findall(r"<t[hd].*?>(.*?)</t[hd]>", row) for row in re.findall(r"<tr>(.*?)</tr>", section, re.DOTALL))
    plain = ([html.unescape(re.sub("<.*?>", "", cell)) for cell in row] for row in rows)
    return {first: others for first, *others in plain}


def test_terminal_page_and_file_say_the_same(comparison, tmp_path):
    for path in write_files(comparison, tmp_path):
        assert path.stat().st_size > 0
    page = (tmp_path / "compare.html").read_text(encoding="utf-8")
    stored = json.loads((tmp_path / "compare.json").read_text(encoding="utf-8"))
    screen = printed(comparison, 120)
    checked = 0
    for sheet in comparison.sheets:
        rows = rows_of_page(page, sheet.title)
        for line in sheet.lines:
            values = [stored[sheet.key][line.key][column] for column in sheet.columns]
            texts = [show_value(Spread(**value) if isinstance(value, dict) else value, line.unit) for value in values]
            assert rows[line.label] == texts
            # Of a single rival the sentence says all.
            if not sheet.key.startswith("contests"):
                assert re.search(rf"^{re.escape(line.label)} +{' +'.join(map(re.escape, texts))} *$", screen, re.M)
            checked += len(texts)
    assert checked > 80
    assert stored["verdict"] == list(comparison.verdict)
    unwrapped = " ".join(screen.split())
    for sentence in comparison.verdict:
        assert sentence in unwrapped
        assert html.escape(sentence, quote=False) in page


def test_numbers_for_scripts_are_not_rounded(comparison):
    stored = numbers(comparison)
    assert stored["scores"]["val/exact last"] == {"A": 0.75, "B": 0.25, "C": 0.325}
    assert stored["groups"]["val/exact last"]["A B"] == {
        "mean": 0.5, "deviation": pytest.approx(0.125**0.5), "runs": 2, "of": 2
    }  # fmt: skip
    assert stored["cost"]["device_hours"]["A"] == 0.321
    assert stored["contests_last"]["difference"] == {"C": pytest.approx(0.5 - 0.325)}
    assert stored["contests_last"]["clear"] == {"C": comparison.last.contests[0].clear}
    assert stored["contests_last"]["clear"]["C"] is False
    assert stored["runs"]["B"] == {
        "name": "second <&>", "place": "second <&>", "id": "second <&>", "group": "base", "epochs": 1
    }  # fmt: skip
    assert stored["queries"]["00000000:test:0"] == {
        "last": {"A": True, "B": False, "C": True}, "best": {"A": True, "B": False, "C": True}
    }  # fmt: skip
    assert stored["left_out"] == ["nowhere: there is no such folder."]


def test_the_page_holds_its_pictures_and_escapes_names(comparison, tmp_path):
    write_files(comparison, tmp_path)
    page = (tmp_path / "compare.html").read_text(encoding="utf-8")
    assert page.count('src="data:image/png;base64,') == len(re.findall('<div><img alt="[^"]+" width="380"', page)) == 6
    assert len(page) < 200_000
    assert not re.search(r'(src|href)="(?!data:)', page)
    assert "second <&>" not in page
    assert "second &lt;&amp;&gt;" in page
    assert "nowhere: there is no such folder." in page
    assert imread(tmp_path / "curves.png").shape[:2] == (700, 1200)
    assert imread(tmp_path / "efe_terms.png").shape[1] == 1200
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "compare.html", "compare.json", "curves.png", "efe_terms.png"
    ]  # fmt: skip


@pytest.mark.parametrize("width", [80, 120])
@pytest.mark.parametrize("runs", [2, 3, 6])
def test_the_terminal_s_width_is_kept(runs, width):
    records = [made(f"a_name_that_is_rather_long_for_a_run_{seed}", "1" * seed + "0" * 8, seed) for seed in range(runs)]
    comparison = compare(records)
    screen = printed(comparison, width)
    assert max(map(len, screen.splitlines())) <= width
    assert "…" not in screen
    shown = [sheet for sheet in comparison.sheets if not sheet.key.startswith("contests") or len(sheet.columns) > 1]
    for line in (line for sheet in shown if sheet.key != "contests_best" for line in sheet.lines):
        # No number is broken in two.
        assert re.search(rf"^{re.escape(line.label)} +{' +'.join(map(re.escape, line.texts))} *$", screen, re.M)


def test_a_mean_over_some_of_a_group_says_so_everywhere(tmp_path):
    without = made("c", "110", 2, group="base")
    unknown = dataclasses.replace(without, epochs=tuple({"epoch": epoch["epoch"]} for epoch in without.epochs))
    pair = [made("a", "100", group="base"), made("b", "110", 1, group="base"), unknown]
    comparison = compare([*pair, made("d", "111", 3)])
    write_files(comparison, tmp_path)
    text = "50.00 ± 23.57 (2 of 3)"  # of 1/3 and 2/3: sqrt(2 · (1/6)²) = 0.2357
    page = (tmp_path / "compare.html").read_text(encoding="utf-8")
    assert rows_of_page(page, "Means over seeds")["exact grids, %, last"] == [text, "100.00"]
    assert re.search(rf"^exact grids, %, last +{re.escape(text)} +100\.00 *$", printed(comparison, 80), re.M)
    stored = json.loads((tmp_path / "compare.json").read_text(encoding="utf-8"))["groups"]["val/exact last"]
    assert [(group["runs"], group["of"]) for group in stored.values()] == [(2, 3), (1, 1)]


def test_with_one_rival_the_sentence_stands_for_the_table():
    comparison = compare([made("x", "10"), made("y", "01", 1)])
    assert "against B, last validation" in {sheet.title[2:] for sheet in comparison.sheets}
    assert "against B, last validation" not in printed(comparison, 80)


def test_a_folder_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"file/below cannot be written \(Not a directory\): choose another with"):
        make_folder(tmp_path / "file" / "below")
    make_folder(tmp_path / "a" / "b")
    assert list((tmp_path / "a" / "b").iterdir()) == []


def test_files_that_cannot_be_replaced_are_told(comparison, tmp_path):
    (tmp_path / "compare.json").mkdir()
    with pytest.raises(ConfigError, match=r"cannot be written \(Is a directory\): choose another with --output_dir"):
        write_files(comparison, tmp_path)


pytestmark = pytest.mark.filterwarnings("ignore:.*Pydantic V1 style.*:DeprecationWarning")


@pytest.fixture
def server(monkeypatch, capsys):
    """W&B's server, as far as the library asks it; it keeps the view that it is sent."""
    pytest.importorskip("wandb_workspaces")
    from wandb_workspaces.reports.v2 import interface

    sent = {}

    def execute(api, query, variables):
        if "upsertView" in query:
            sent.update(variables)
            project = {"name": variables["projectName"], "entityName": variables["entityName"]}
            view = {"id": "Vm1", "name": "v", "displayName": variables["displayName"], "project": project}
            return {"upsertView": {"view": {**view, "description": "", "spec": variables["spec"]}}}
        return {"project": {"internalId": f"id of {variables['projectName']}"}}

    api = SimpleNamespace(
        projects=lambda entity: [SimpleNamespace(name="arcdist")], client=SimpleNamespace(app_url="https://wandb.test")
    )
    monkeypatch.setattr(interface, "execute_graphql", execute)
    monkeypatch.setattr(interface, "_get_api", lambda: api)
    return sent


def compared():
    return compare(
        [
            made_record("team/arcdist/aaaa", exact=[answers("11")]),
            made_record("team/other/bbbb", exact=[answers("10")]),
        ]
    )


def test_the_report_holds_verdict_runs_and_panels(server):
    address = wandb_report.write(compared())
    assert address == "https://wandb.test/team/arcdist/reports/2-runs-compared--Vm1"
    assert (server["entityName"], server["projectName"]) == ("team", "arcdist")
    blocks = json.loads(server["spec"])["blocks"]
    text = json.dumps(blocks)
    assert compared().verdict[0] in text
    grid = next(block for block in blocks if block["type"] == "panel-grid")["metadata"]
    assert [run_set["project"]["name"] for run_set in grid["runSets"]] == ["arcdist", "other"]
    for run_set, run_id in zip(grid["runSets"], ("aaaa", "bbbb"), strict=True):
        assert run_id in json.dumps(run_set["filters"])
    panels = grid["panelBankSectionConfig"]["panels"]
    assert [panel["viewType"] for panel in panels] == ["Run History Line Plot"] * 5 + ["Bar Chart", "Run Comparer"]
    assert [panel["config"]["metrics"] for panel in panels[:5]] == [
        ["loss"], ["val/exact"], ["reward/mean"], ["grad_norm/qwen"], ["pairs_per_s"]
    ]  # fmt: skip


def test_a_server_that_does_not_answer_is_told(server, monkeypatch):
    from wandb_workspaces.reports.v2 import interface

    def unreachable(*_):
        raise ConnectionError("no route")

    monkeypatch.setattr(interface, "execute_graphql", unreachable)
    with pytest.raises(DataError, match=r"The W&B report cannot be written \(no route\): see `wandb login`"):
        wandb_report.write(compared())


def test_runs_that_are_not_on_the_server_are_refused(tmp_path, monkeypatch):
    pytest.importorskip("wandb_workspaces")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run").mkdir()
    wandb_report.check(["team/arcdist/aaaa", "team/arcdist/bbbb"])
    with pytest.raises(ConfigError, match=r"not so run, run/x: send offline runs there with `wandb sync`"):
        wandb_report.check(["team/arcdist/aaaa", "run", "run/x"])


def test_without_the_library_it_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb_workspaces.reports.v2", None)
    with pytest.raises(ConfigError, match="pip install wandb-workspaces"):
        wandb_report.check(["team/arcdist/aaaa"])


@pytest.fixture
def wandb(monkeypatch):
    """Stand-ins for the readers of what W&B keeps."""
    monkeypatch.setattr(reading, "read_wandb_folder", lambda folder: made_record(f"from {folder.name}"))
    monkeypatch.setattr(reading, "read_wandb_run", made_record)


def test_each_name_goes_to_its_reader(tmp_path, monkeypatch, wandb):
    monkeypatch.chdir(tmp_path)
    make_run(tmp_path / "run", epochs=1)
    offline = tmp_path / "offline-run-20260102_030405-abcdefgh"
    offline.mkdir()
    (offline / "run-abcdefgh.wandb").write_bytes(b"")
    assert read_run("run").identity.name == "run"
    assert read_run(str(offline)).identity.name == f"from {offline.name}"
    assert read_run("team/project/abcdefgh").place == "team/project/abcdefgh"


def test_a_run_folder_is_read_without_w_and_b(tmp_path):
    run = make_run(tmp_path / "run", epochs=1)
    program = """\
import sys
sys.modules["wandb"] = None  # cannot be imported
from arcdist.analysis.compare import read_run
print(read_run(sys.argv[1]).identity.name)
"""
    printed = subprocess.run(
        [sys.executable, "-c", program, str(run)], capture_output=True, text=True, timeout=60, check=True
    ).stdout
    assert printed == "run\n"


def test_a_path_on_disk_is_none_of_the_server_nor_is_a_mistyped_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "old" / "wandb").mkdir(parents=True)
    assert is_wandb_path("team/project/abcdefgh")
    assert not is_wandb_path("runs/old/wandb")
    assert not is_wandb_path("runs/old/mistyped")
    for other in ("runs/old", "team/project", "team/project/abcdefgh/", "team/my project/abcdefgh"):
        assert not is_wandb_path(other)
    for here in ("/team/project/abcdefgh", "./project/abcdefgh", "../project/abcdefgh", "~/project/abcdefgh"):
        assert not is_wandb_path(here)


def test_a_mistyped_folder_is_not_looked_for_on_the_server(tmp_path, monkeypatch, wandb):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "old").mkdir(parents=True)
    with pytest.raises(ConfigError, match="runs/old/mistyped: there is no such folder"):
        read_run("runs/old/mistyped")
    with pytest.raises(ConfigError, match="runs/old is no run folder"):
        read_run("runs/old")


def test_what_can_be_read_is_and_the_rest_is_told(tmp_path, monkeypatch, wandb):
    def no_network(path):
        raise DataError(f"{path} cannot be read: there is no network.")

    monkeypatch.setattr(reading, "read_wandb_run", no_network)
    monkeypatch.chdir(tmp_path)
    make_run(tmp_path / "run", epochs=1)
    make_run(tmp_path / "empty", flags=("--seed", "1"), epochs=0)
    make_run(tmp_path / "other", flags=("--seed", "2"), epochs=1)
    records, refused = read_runs(["run", "empty", "team/project/abcdefgh", "other", "./run"])
    assert [record.place for record in records] == ["run", "other"]
    run_id = json.loads((tmp_path / "run" / "run.json").read_text())["id"]
    assert refused == [
        "empty holds no logged step yet: wait until the run has made --output.log_every steps.",
        "team/project/abcdefgh cannot be read: there is no network.",
        f"./run is the same run as run ({run_id}): name each run once.",
    ]


def test_the_folders_that_w_and_b_wrote_of_one_run_stand_for_it_once_a_copied_run_folder_is_told(tmp_path, monkeypatch):
    run = make_run(tmp_path / "run", epochs=1)
    copy = shutil.copytree(run, tmp_path / "copy")
    records, (told,) = read_runs([str(run), str(copy)])
    assert [record.place for record in records] == [str(run)]
    assert told.startswith(f"{copy} is the same run as {run} (")
    folders = [tmp_path / "wandb" / f"offline-run-20260102_03040{second}-abcdefgh" for second in (5, 6)]
    for folder in folders:
        folder.mkdir(parents=True)
        (folder / "run-abcdefgh.wandb").touch()
    record = read_run_folder(run)
    monkeypatch.setattr(reading, "read_wandb_folder", lambda folder: replace(record, place=str(folder)))
    records, refused = read_runs([str(folder) for folder in folders])
    assert ([record.place for record in records], refused) == ([str(folders[0])], [])
    _, (told,) = read_runs([str(tmp_path / "wandb"), str(shutil.copytree(tmp_path / "wandb", tmp_path / "again"))])
    assert told.startswith(f"{tmp_path / 'again'} is the same run as ")


def lines_of_sheets(sheet):
    return {line.key: line for line in sheet.lines}


def test_runs_have_letters_and_names_that_tell_them_apart():
    records = [made_record("runs/a"), made_record("runs/b")]
    runs = letter_runs(records)
    assert [(run.letter, run.called) for run in runs] == [("A", "A (runs/a)"), ("B", "B (runs/b)")]
    with pytest.raises(ConfigError, match="27 runs are too many to tell apart: name at most 26"):
        letter_runs([made_record(str(number)) for number in range(27)])


def test_best_and_last_are_found_by_measure():
    first = made_record(
        "x",
        epochs=[
            {"val/exact": 0.1, "train/loss": 2.0, "pairs_per_s": 100.0},
            {"val/exact": 0.3, "train/loss": 1.0, "pairs_per_s": 90.0},
            {"val/exact": 0.2, "train/loss": 1.5, "pairs_per_s": 80.0, "floor/copy_exact": 0.01},
            {"train/loss": math.nan},
        ],
    )
    found = lines_of_sheets(score_sheet(letter_runs([first, made_record("y", epochs=[{"val/exact": 0.25}])])))
    assert found["val/exact best"].values == (0.3, 0.25)
    assert found["val/exact best"].texts == ("30.00", "25.00")
    assert found["val/exact best"].marks == (True, False)
    assert found["val/exact last"].values == (0.2, 0.25)
    assert found["val/exact last"].marks == (False, True)
    assert (found["train/loss best"].values, found["train/loss last"].values) == ((1.0, None), (1.5, None))
    assert found["train/loss best"].texts == ("1.000", "–")
    assert found["pairs_per_s best"].values == (100.0, None)
    assert found["floor/copy_exact"].values == (0.01, None)
    assert not any("val/cell" in key for key in found)


def test_scores_on_other_tasks_are_shown_but_none_is_marked_as_better():
    runs = letter_runs(
        [
            made_record("x", epochs=[{"val/exact": 0.3, "train/exact": 0.1}]),
            made_record("y", epochs=[{"val/exact": 0.2, "train/exact": 0.2}], data={"validation": "2" * 32}),
        ]
    )
    sheet = score_sheet(runs)
    assert lines_of_sheets(sheet)["val/exact best"].marks == (False, False)
    assert lines_of_sheets(sheet)["train/exact best"].marks == (False, True)
    assert "different validation tasks" in sheet.note


def test_seeds_are_told_by_mean_and_sample_deviation():
    runs = letter_runs(
        [
            made_record("s0", group="base", epochs=[{"val/exact": 0.10, "pairs_per_s": 100.0}]),
            made_record("other", epochs=[{"val/exact": 0.5}]),
            made_record("s1", group="base", epochs=[{"val/exact": 0.20, "pairs_per_s": 104.0}]),
            made_record("s2", group="base", epochs=[{"val/exact": 0.30}]),
        ]
    )
    sheet = group_sheet(runs)
    assert sheet.columns == ("A C D", "B")
    exact = lines_of_sheets(sheet)["val/exact best"]
    mean, other = exact.values
    assert (mean.mean, mean.runs) == (pytest.approx(0.2), 3)
    assert mean.deviation == pytest.approx(0.1)  # sqrt((0.01 + 0 + 0.01) / 2)
    assert other == Spread(mean=0.5, deviation=None, runs=1, of=1)
    assert exact.texts == ("20.00 ± 10.00", "50.00")
    pace = lines_of_sheets(sheet)["pairs_per_s last"]
    assert pace.values[0].of == 3
    assert pace.texts == ("102.0 ± 2.8 (2 of 3)", "–")  # sqrt((4 + 4) / 1) = 2.83
    assert [len(side.runs) for side in groups(runs)] == [3, 1]


def test_without_repeated_runs_there_are_no_means():
    assert group_sheet(letter_runs([made_record("x"), made_record("y")])) is None


def test_only_what_differs_is_told():
    runs = letter_runs(
        [
            made_record("x", config={"train.seed": 0, "output.dir": "x", "data.max_side": 10, "train.epochs": None}),
            made_record(
                "y",
                config={
                    "train.seed": 1,
                    "output.dir": "y",
                    "data.max_side": 10,
                    "train.epochs": 3,
                    "agent.kind": "conv",
                },
                git_commit="abcdef0123456789+changes",
                zero_stage=2,
                data={"training": "5" * 32, "validation": "1" * 32},
                versions={"arcdist": "0.1.0", "deepspeed": "0.19.8"},
            ),
        ]
    )
    found = lines_of_sheets(difference_sheet(runs))
    assert {key: line.texts for key, line in found.items()} == {
        "train.seed": ("0", "1"),
        "train.epochs": ("none", "3"),
        "agent.kind": ("–", "conv"),
        "training tasks": ("0000000000", "5555555555"),
        "ZeRO stage": ("none", "2"),
        "git commit": ("0123456", "abcdef0+changes"),
        "version of deepspeed": ("–", "0.19.8"),
    }


def test_runs_that_are_alike_are_said_to_be():
    sheet = difference_sheet(letter_runs([made_record("x"), made_record("y")]))
    assert (sheet.lines, sheet.note) == ((), "Configuration, data, device and versions are the same.")


def test_cost_is_told_by_the_device_hour():
    times = {"time/device_hours": 0.5, "time/elapsed_s": 900.0}
    runs = letter_runs(
        [
            made_record(
                "x",
                exact=[answers("1111"), answers("1110")],
                best=0,
                steps=[{"step": 1, "pairs_per_s": 10.0}, {"step": 2, "pairs_per_s": 30.0, **times}],
                device="NVIDIA H200",
                processes=2,
            ),
            made_record("old", exact=[answers("1100")], steps=[{"step": 1, "pairs_per_s": 5.0}], device="NVIDIA H200"),
        ]
    )
    found = lines_of_sheets(cost_sheet(runs))
    assert found["device_hours"].label == "GPU-hours"
    assert found["device_hours"].values == (0.5, None)
    assert found["hours"].values == (0.25, None)
    assert found["pairs_per_s"].values == (20.0, 5.0)
    assert found["exact_grids"].values == (3, 2)
    assert found["exact_per_device_hour"].values == (6.0, None)
    assert found["exact_per_device_hour"].texts == ("6.000", "–")


def test_hours_of_mixed_devices_are_device_hours():
    runs = letter_runs([made_record("x", device="cpu"), made_record("y", device="NVIDIA H200")])
    assert lines_of_sheets(cost_sheet(runs))["exact_per_device_hour"].label == "exact per device-hour"


def test_puzzles_in_which_runs_differ_come_first():
    first = made_record("x", exact=[answers("11010"), answers("11000")], best=0)
    second = made_record("y", exact=[answers("10100")])
    runs = letter_runs([first, second, made_record("z")])
    assert [(puzzle.id[:8], puzzle.marks) for puzzle in puzzles(runs)] == [
        ("00000001", ("●", "·", "–")),
        ("00000002", ("·", "●", "–")),
        ("00000000", ("●", "●", "–")),
        ("00000003", ("○", "·", "–")),
    ]
    sheet = puzzle_sheet(runs)
    assert lines_of_sheets(sheet)["solved"].values == (2, 2, None)
    assert lines_of_sheets(sheet)["only"].values == (1, 1, None)
    assert "all_but" not in lines_of_sheets(sheet)
    assert sheet.note == ("Of 5 queries asked of all at their last validations: 1 solved by all, 2 by some, 2 by none.")


def test_of_three_runs_the_puzzles_that_one_alone_missed_are_counted():
    runs = letter_runs([made_record(name, exact=[answers(name)]) for name in ("1100", "1010", "1011")])
    found = lines_of_sheets(puzzle_sheet(runs))
    assert found["solved"].values == (2, 2, 3)
    assert found["only"].values == (1, 0, 1)
    assert found["all_but"].values == (1, 0, 0)


def test_shares_are_weighted_by_the_lambdas():
    config = {"efe.lambda_risk": 2.0, "efe.lambda_amb": 0.0, "efe.lambda_step": 1.0, "efe.lambda_cons": 1.0}
    config |= {"efe.lambda_bi": 0.5, "efe.lambda_z": 0.0, "efe.lambda_prompt": 0.0}
    terms = {f"efe/{term}": 1.0 for term in LAMBDAS} | {"efe/bidirectional": 2.0}
    # 2 · 1 + 0 + 1 + 1 + 0.5 · 2 + 0 + 0 = 5
    runs = letter_runs(
        [
            made_record("epoch", config=config, epochs=[terms, terms], steps=[{"step": 1, **terms, "efe/risk": 9.0}]),
            made_record("step", config=config, epochs=[{}], steps=[{"step": 1, **terms, "efe/risk": 3.5}, {"step": 2}]),
            made_record("none", epochs=[terms]),
        ]
    )
    found = lines_of_sheets(efe_sheet(runs))
    assert found["risk"].values == (0.4, 0.7, None)
    assert found["ambiguity"].values == (0.0, 0.0, None)
    assert found["bidirectional"].values == (0.2, 0.1, None)
    assert found["risk"].texts == ("40.00", "70.00", "–")


@given(
    st.fixed_dictionaries({term: st.floats(0, 1e6) for term in LAMBDAS}),
    st.fixed_dictionaries({term: st.floats(0, 100) for term in LAMBDAS}),
)
def test_shares_add_up_to_one(terms, weights):
    shares = shares_of(terms, weights)
    if shares is None:
        assert sum(weights[term] * terms[term] for term in terms) == 0
    else:
        assert math.isclose(sum(shares.values()), 1.0)
        assert all(0 <= share <= 1 for share in shares.values())


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (0.12345, "percent", "12.35"),
        (1234.5, "number", "1234"),
        (102.0, "number", "102.0"),
        (0.5238, "number", "0.5238"),
        (999.96, "number", "1000"),
        (3, "number", "3"),
        (True, "text", "true"),
        (0.0001, "text", "0.0001"),
        (("a", "b"), "text", '["a", "b"]'),
        (None, "number", "–"),
        (Spread(mean=0.5, deviation=0.123, runs=2, of=2), "number", "0.5000 ± 0.12"),
        (Spread(mean=1500.0, deviation=23.4, runs=2, of=2), "number", "1500 ± 23"),
        (Spread(mean=100.0, deviation=2.0, runs=2, of=2), "number", "100.0 ± 2.0"),
        (Spread(mean=0.04, deviation=0.0031, runs=2, of=3), "percent", "4.00 ± 0.31 (2 of 3)"),
        (Spread(mean=0.04, deviation=None, runs=1, of=3), "percent", "4.00 (1 of 3)"),
        (True, "yes or no", "yes"),
        (False, "yes or no", "no"),
    ],
)
def test_values_as_they_are_shown(value, unit, text):
    assert show_value(value, unit) == text


def test_a_value_that_all_share_is_not_the_best():
    assert Line(key="k", label="k", values=(1.0, 1.0, None), better="higher").marks == (False, False, False)
    assert Line(key="k", label="k", values=(1.0, 2.0, None), better="lower").marks == (True, False, False)
