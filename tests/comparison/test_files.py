"""The same numbers on the terminal, on the page and in the file for scripts."""

import dataclasses
import html
import io
import json
import re

import pytest
from matplotlib.image import imread
from rich.console import Console
from shared.made_records import answers, made_record

from arcdist.comparison import compare
from arcdist.comparison.efe_shares import LAMBDAS
from arcdist.comparison.files import make_folder, numbers, write_files
from arcdist.comparison.sheet import Spread, show_value
from arcdist.comparison.terminal import show
from arcdist.errors import ConfigError


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
