"""The page as a browser finds it."""

import json
import re
import shutil
from html.parser import HTMLParser

import pytest
from shared.made_runs import make_run

from arcdist.errors import ConfigError, DataError
from arcdist.report import write, write_report

EVIL = "<script>alert('x')</script>"


class Reader(HTMLParser):
    """What a page refers to, and its text."""

    def __init__(self, page):
        super().__init__()
        self.references, self.tags, self.alts, self.said = [], [], [], []
        self.feed(page)
        self.text = " ".join(" ".join(self.said).split())

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        for name, value in attributes:
            if name in ("src", "href", "srcset", "action", "data", "poster"):
                self.references.append(value)
            if name == "alt":
                self.alts.append(value)

    def handle_data(self, data):
        self.said.append(data)


def read(path):
    return Reader(path.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("runs") / "made", epochs=3, queries=40, shown=3)


@pytest.fixture(scope="module")
def page(made):
    return read(write_report(made))


@pytest.fixture
def run(made, tmp_path, monkeypatch):
    """A copy of the run, to be harmed; its page has one panel, which takes less time than eight."""
    monkeypatch.setattr(write, "_PANELS", write._PANELS[:1])
    return shutil.copytree(made, tmp_path / "run")


def test_everything_is_in_the_page(page):
    assert page.references != []
    assert all(reference.startswith("data:image/png;base64,") for reference in page.references)
    assert len(page.references) == page.tags.count("img") == 8 + 3
    assert not {"script", "link", "iframe", "object", "embed"} & set(page.tags)


def test_styles_refer_to_nothing(made):
    assert re.findall(r"url\(|@import", (made / "report.html").read_text()) == []


def test_the_page_says_what_the_files_say(made, page):
    last = json.loads((made / "validation" / "epoch_00002.json").read_text())["results"]
    before = json.loads((made / "validation" / "epoch_00001.json").read_text())["results"]
    exact, earlier = ({query for query, result in found.items() if result["exact"]} for found in (last, before))
    share = len(exact) / len(last)
    assert f"{len(exact)} of 40 validation queries exact ({share * 100:.2f} %) after 3 epochs" in page.text
    assert f"epoch 1: {len(exact - earlier)} newly solved, {len(earlier - exact)} lost again." in page.text
    assert len(exact - earlier) > 0
    for query in exact - earlier:
        assert query in page.text
    hardest = min(last, key=lambda query: last[query]["cell"])
    assert hardest.partition(":")[0] in page.text.partition("The hardest")[2].partition("Predictions")[0]
    assert [alt for alt in page.alts if alt.startswith("Grids of")] == [
        f"Grids of {query}: {'solved' if query in exact else '1 of 6 cells wrong'}" for query in list(last)[:3]
    ]


def test_names_from_outside_are_text(run):
    folder = run.rename(run.with_name("<b>mine"))
    identity = json.loads((folder / "run.json").read_text())
    names = {"name": EVIL, "source": EVIL, "device": EVIL, "versions": {EVIL: EVIL}}
    (folder / "run.json").write_text(json.dumps(identity | names))
    (folder / "config.yaml").write_text(f'data: {{source: "{EVIL}"}}\n')
    (folder / "training.log").write_text(f"2026-01-02 03:04:05,001 WARNING {EVIL} $x$\n")
    validation = folder / "validation" / "epoch_00002.json"
    validation.write_text(validation.read_text().replace("00000000:test:0", '\\"><img src=x>$a$:test:0'))
    found = read(write_report(folder))
    assert "script" not in found.tags
    assert found.tags.count("img") == len(found.references) == 1 + 3
    assert found.tags.count("b") == 3
    assert found.text.count(EVIL) >= 5
    assert '"><img src=x>$a$:test:0' in found.text


def test_a_run_before_its_first_epoch(run):
    for name in ("validation", "metrics.json", "metrics_plot.png"):
        (shutil.rmtree if name == "validation" else type(run).unlink)(run / name)
    found = read(write_report(run))
    assert "No validation yet: 0 epochs ended, loss" in found.text
    assert "in this folder yet: nothing is known of its tasks." in found.text
    assert "No validation has kept grids to show." in found.text
    assert "There is no training.log." in found.text


def test_a_run_of_an_older_version(run):
    shutil.rmtree(run / "validation")
    steps = [json.loads(line) for line in (run / "steps.jsonl").read_text().splitlines()]
    kept = ("step", "epoch", "loss")
    lines = [json.dumps({name: step[name] for name in kept}) + "\n" for step in steps]
    (run / "steps.jsonl").write_text("".join(lines))
    (run / "metrics.json").write_text(json.dumps({"epochs": [{"epoch": 0, "val/exact": 0.1}]}))
    found = read(write_report(run))
    assert "10.00 % of the validation queries exact after 1 of 3 epochs; on one CPU." in found.text
    assert "Whether steps were skipped is not known." in found.text
    assert "device-hours –" in found.text


def test_one_validation_is_compared_with_nothing(run):
    for epoch in (0, 1):
        (run / "validation" / f"epoch_0000{epoch}.json").unlink()
    assert "There has been one validation: nothing to compare it with." in read(write_report(run)).text


def test_only_so_many_pictures(run, monkeypatch):
    monkeypatch.setattr(write, "_MOST_PICTURES", 2)
    found = read(write_report(run))
    assert len(found.references) == 1 + 2
    assert "mean over the 3 shown queries" in found.text
    assert "Here are the first 2." in found.text


def test_the_page_goes_where_it_is_sent(run, tmp_path):
    assert write_report(run, tmp_path / "page.html") == tmp_path / "page.html"
    assert read(tmp_path / "page.html").tags[0] == "html"
    assert not any(path.name.endswith(".partial") for path in tmp_path.iterdir())


@pytest.mark.parametrize("place", ["nowhere/page.html", "", "."])
def test_where_it_cannot_be_written(run, monkeypatch, place):
    monkeypatch.chdir(run)
    before = sorted(run.iterdir())
    with pytest.raises(ConfigError, match=r"cannot be written \(.*choose another with --output FILE"):
        write_report(run, type(run)(place))
    assert sorted(run.iterdir()) == before


def test_what_is_no_run(tmp_path):
    with pytest.raises(ConfigError, match="there is no such folder"):
        write_report(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match="is no run folder"):
        write_report(tmp_path)
    with pytest.raises(DataError, match="holds no logged step yet"):
        write_report(make_run(tmp_path / "fresh", epochs=0))
