"""A comparison as a whole: terminal, page and file, its W&B report, and which runs are compared."""

import dataclasses
import html
import io
import json
import re
import shutil
import sys
from types import SimpleNamespace

import pytest
from matplotlib.image import imread
from rich.console import Console
from shared.made_records import answers, made_record
from shared.made_runs import make_run

from arcdist.analysis.compare import (
    check_wandb_report,
    compare,
    numbers,
    read_runs,
    show,
    write_files,
    write_wandb_report,
)
from arcdist.analysis.tables import Spread, show_value
from arcdist.config.schema import EFE_TERMS
from arcdist.errors import ConfigError, DataError

pytestmark = pytest.mark.filterwarnings("ignore:.*Pydantic V1 style.*:DeprecationWarning")


def made(name, pattern, seed=0, **fields):
    """A run with a number of each kind."""
    terms = {f"efe/{term}": 0.1 + place + seed for place, term in enumerate(EFE_TERMS)}
    exact = answers(pattern)
    scores = {"val/exact": sum(exact.values()) / len(exact), "train/loss": 0.777 + seed, "reward/mean": -0.0123}
    times = {"time/device_hours": 0.321 + seed, "time/elapsed_s": 555.0, "pairs_per_s": 123.4 + seed}
    return made_record(
        name,
        exact=[exact],
        epochs=[{**scores, **terms, **times}],
        steps=[{"step": step, "epoch": 0, "loss": 1 / step, **times} for step in (1, 2)],
        config={
            "train.seed": seed,
            "agent.kind": "conv",
            **dict.fromkeys((f"efe.{key.name}" for key in EFE_TERMS.values()), 0.5),
        },
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
    for table in comparison.tables:
        rows = rows_of_page(page, table.title)
        for row in table.rows:
            values = [stored[table.key][row.key][column] for column in table.columns]
            texts = [show_value(Spread(**value) if isinstance(value, dict) else value, row.unit) for value in values]
            assert rows[row.label] == texts
            # Of a single rival the sentence says all.
            if not table.key.startswith("pairwise"):
                assert re.search(rf"^{re.escape(row.label)} +{' +'.join(map(re.escape, texts))} *$", screen, re.M)
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
    assert stored["pairwise_last"]["difference"] == {"C": pytest.approx(0.5 - 0.325)}
    assert stored["pairwise_last"]["clear"] == {"C": False}
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
    shown = [table for table in comparison.tables if not table.key.startswith("pairwise") or len(table.columns) > 1]
    for row in (row for table in shown if table.key != "pairwise_best" for row in table.rows):
        # No number is broken in two.
        assert re.search(rf"^{re.escape(row.label)} +{' +'.join(map(re.escape, row.texts))} *$", screen, re.M)


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


def test_with_one_rival_the_sentence_replaces_the_table():
    comparison = compare([made("x", "10"), made("y", "01", 1)])
    assert "against B, last validation" in {table.title[2:] for table in comparison.tables}
    assert "against B, last validation" not in printed(comparison, 80)


def test_a_folder_that_cannot_be_written_is_refused(comparison, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"file/below cannot be written \(Not a directory\): choose another with"):
        write_files(comparison, tmp_path / "file" / "below")
    assert list(tmp_path.iterdir()) == [tmp_path / "file"]


def test_files_that_cannot_be_replaced_are_reported(comparison, tmp_path):
    (tmp_path / "compare.json").mkdir()
    with pytest.raises(ConfigError, match=r"cannot be written \(Is a directory\): choose another with --output_dir"):
        write_files(comparison, tmp_path)


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
    address = write_wandb_report(compared())
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


def test_a_server_that_does_not_answer_is_reported(server, monkeypatch):
    from wandb_workspaces.reports.v2 import interface

    def unreachable(*_):
        raise ConnectionError("no route")

    monkeypatch.setattr(interface, "execute_graphql", unreachable)
    with pytest.raises(DataError, match=r"The W&B report cannot be written \(no route\): see `wandb login`"):
        write_wandb_report(compared())


def test_runs_that_are_not_on_the_server_are_refused(tmp_path, monkeypatch):
    pytest.importorskip("wandb_workspaces")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run").mkdir()
    check_wandb_report(["team/arcdist/aaaa", "team/arcdist/bbbb"])
    with pytest.raises(ConfigError, match=r"not so run, run/x: send offline runs there with `wandb sync`"):
        check_wandb_report(["team/arcdist/aaaa", "run", "run/x"])


def test_without_the_library_it_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb_workspaces.reports.v2", None)
    with pytest.raises(ConfigError, match="pip install wandb-workspaces"):
        check_wandb_report(["team/arcdist/aaaa"])


def test_what_can_be_read_is_and_the_rest_is_reported(tmp_path, monkeypatch):
    def no_network(path):
        raise DataError(f"{path} cannot be read: there is no network.")

    monkeypatch.setattr("arcdist.analysis.record.read_wandb_run", no_network)
    monkeypatch.chdir(tmp_path)
    run = make_run(tmp_path / "run", epochs=1)
    make_run(tmp_path / "empty", flags=("--seed", "1"), epochs=0)
    make_run(tmp_path / "other", flags=("--seed", "2"), epochs=1)
    shutil.copytree(run, tmp_path / "copy")
    records, refused = read_runs(["run", "empty", "team/project/abcdefgh", "other", "./run", "copy"])
    assert [record.place for record in records] == ["run", "other"]
    run_id = json.loads((run / "run.json").read_text())["id"]
    assert refused == [
        "empty holds no logged step yet: wait until the run has made --output.log_every steps.",
        "team/project/abcdefgh cannot be read: there is no network.",
        f"./run is the same run as run ({run_id}): name each run once.",
        f"copy is the same run as run ({run_id}): name each run once.",
    ]
