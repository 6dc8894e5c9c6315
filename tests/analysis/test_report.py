"""The page as a browser finds it."""

import json
import os
import re
import shutil
from datetime import UTC, datetime, timedelta
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from shared.made_records import made_record, made_validation
from shared.made_runs import make_run

from arcdist.analysis import report
from arcdist.analysis.report import (
    LogEntry,
    changes,
    complaints,
    costs,
    differences,
    exact_queries,
    facts,
    hardest_tasks,
    planning_scores,
    progress,
    raised_flags,
    read_log,
    replicas,
    show_setting,
    skipped_steps,
    summary,
    write_report,
)
from arcdist.config import Config, load_config
from arcdist.config.keys import flatten
from arcdist.errors import ConfigError, DataError
from arcdist.tracking.metrics import ShownQuery, task_of

LOG = """\
2026-01-02 03:04:05,001 INFO Run folder runs/mine, recipe quickstart.
2026-01-02 03:05:05,001 WARNING Step 7 was skipped on all processes: loss = nan.
2026-01-02 03:06:05,001 WARNING Step 12 was skipped on all processes: loss = nan.
2026-01-02 03:06:06,001 INFO Resumed from runs/mine/checkpoints/step_00000010: step 10, epoch 0, batch 10 of 32.
2026-01-02 03:06:07,001 INFO

 validation    epoch 2
2026-01-02 03:07:05,001 ERROR The run ended with an unexpected error.
Traceback (most recent call last):
  File "a.py", line 1
ValueError: 7 <b>
"""


def test_warnings_that_differ_in_numbers_are_counted_together(tmp_path):
    (tmp_path / "training.log").write_text(LOG)
    log = read_log(tmp_path / "training.log")
    skipped, ended = complaints(log)
    assert skipped == [
        LogEntry("2026-01-02 03:05:05", "WARNING", "Step 7 was skipped on all processes: loss = nan."),
        LogEntry("2026-01-02 03:06:05", "WARNING", "Step 12 was skipped on all processes: loss = nan."),
    ]
    assert ended == [log[-1]]
    assert log[-1].text == "The run ended with an unexpected error. … ValueError: 7 <b>"
    assert progress(made_record(config={"train.epochs": 1}), log, NOW) == (
        f"Not complete: 0 of 1 epoch ended, 0 steps logged. It was resumed once. The log ends with: {log[-1].text}"
    )


def test_a_log_that_says_nothing_about_an_end(tmp_path):
    assert read_log(tmp_path / "training.log") == []
    (tmp_path / "training.log").write_text("no record\n" + LOG.partition("2026-01-02 03:07")[0])
    log = read_log(tmp_path / "training.log")
    assert [entry.level for entry in log] == ["INFO", "WARNING", "WARNING", "INFO", "INFO"]
    assert "The log ends" not in progress(made_record(config={"train.epochs": 1}), log, NOW)


def test_long_messages_are_cut_off(tmp_path):
    (tmp_path / "training.log").write_text(f"2026-01-02 03:04:05,001 ERROR {'x' * 5000}\n")
    (message,) = read_log(tmp_path / "training.log")
    assert message.text == "x" * 299 + "…"


NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
QUERIES = {f"{index}:test:0": 1.0 if index < 13 else 0.5 for index in range(325)}
STEPS = (
    {"step": 288, "loss": 2.0, "pairs_per_s": 90.0, "time/elapsed_s": 100.0, "time/device_hours": 100 / 3600},
    {"step": 576, "loss": 1.0, "pairs_per_s": 110.0, "time/elapsed_s": 202.0, "time/device_hours": 202 / 3600},
)


def epochs(*exact):
    return tuple(
        {"epoch": epoch, "val/exact": share, "floor/copy_exact": 0.0, "pairs_per_s": 100.0 + epoch}
        for epoch, share in enumerate(exact)
    )


@pytest.fixture
def whole():
    """A run of 18 epochs that ends as its best."""
    return made_record(
        config={"train.epochs": 18},
        steps=STEPS,
        epochs=epochs(*[0.01] * 17, 13 / 325),
        validations=(made_validation(17, QUERIES),),
    )


def test_the_outcome_in_one_sentence(whole):
    assert summary(whole) == (
        "13 of 325 validation queries exact (4.00 %) after 18 epochs; copying the input solves 0.00 %; "
        "202 s on one CPU."
    )


def test_a_better_epoch_before_the_last_is_named():
    record = made_record(epochs=epochs(0.1, 0.3, 0.3, 0.2), device="NVIDIA H200", processes=4)
    assert summary(record) == (
        "20.00 % of the validation queries exact after 4 epochs (at best 30.00 %, after 2 epochs); "
        "copying the input solves 0.00 %; on 4 × NVIDIA H200."
    )


@pytest.mark.parametrize(
    ("elapsed", "told"),
    [
        (299.0, "Not complete: 5.0 of 5 minutes when the last epoch ended, 576 steps logged."),
        (299.9999, "Complete: 2 epochs, 576 steps."),
        (301.0, "Complete: 2 epochs, 576 steps."),
    ],
)
def test_a_run_with_a_budget_is_complete_when_its_time_is_used(elapsed, told):
    last = {"time/elapsed_s": elapsed}
    config = {"train.epochs": 18, "train.budget_minutes": 5.0}
    record = made_record(steps=STEPS, epochs=(epochs(0.1)[0], epochs(0.1)[0] | last | {"epoch": 1}), config=config)
    assert progress(record, [], NOW).startswith(told)
    assert summary(record).startswith("10.00 % of the validation queries exact after 2 epochs; ")


def test_a_run_without_validation_shows_its_loss():
    record = made_record(steps=STEPS, epochs=({"epoch": 0},), config={"train.epochs": 18}, processes=2)
    assert summary(record) == (
        "No validation yet: 1 epoch ended, loss 2.000 at first and 1.000 now; 202 s on 2 CPU processes."
    )
    assert summary(made_record()) == "No validation yet: 0 epochs ended; on one CPU."


def test_costs(whole):
    assert costs(whole) == {
        "elapsed": "202 s",
        "device-hours": "0.0561",
        "exact grids per device-hour": f"{13 / (202 / 3600):.1f}",
        "training queries a second, median": "100",
        "slowest and fastest epoch, queries a second": "100 and 117",
    }
    assert set(costs(made_record()).values()) == {"–"}


def test_a_complete_run(whole):
    resumed = LogEntry("", "INFO", "Resumed from x: step 1, epoch 0, batch 1 of 2.")
    assert progress(whole, [], NOW) == "Complete: 18 epochs, 576 steps."
    assert progress(whole, [resumed], NOW) == "Complete: 18 epochs, 576 steps. It was resumed once."
    assert progress(whole, [resumed] * 3, NOW).endswith(" It was resumed 3 times.")


@pytest.mark.parametrize(
    ("age", "says"),
    [
        (10, "It may be training: its last sign of life was 10 s before this page was made."),
        (600, "Its last sign of life was on 2026-01-02 02:54 UTC. It was not training when this page was made."),
    ],
)
def test_a_run_that_is_training_or_was_killed(tmp_path, age, says):
    beat = tmp_path / "heartbeats" / "rank_00000.json"
    beat.parent.mkdir()
    beat.touch()
    os.utime(beat, ((NOW - timedelta(seconds=age)).timestamp(),) * 2)
    record = made_record(place=str(tmp_path), steps=STEPS, epochs=epochs(0.1), config={"train.epochs": 18})
    assert progress(record, [], NOW) == f"Not complete: 1 of 18 epochs ended, 576 steps logged. {says}"


def test_a_run_whose_log_says_how_it_ended():
    record = made_record(steps=STEPS, config={"train.epochs": 1})
    log = [LogEntry("", "ERROR", "ReplicaError: rank 1 differs.")]
    assert progress(record, log, NOW) == (
        "Not complete: 0 of 1 epoch ended, 576 steps logged. The log ends with: ReplicaError: rank 1 differs."
    )


def read_back(*flags):
    """A configuration as it is read from a run folder."""
    return json.loads(json.dumps(flatten(load_config([*flags]).config)))


def test_a_run_of_a_recipe_differs_nowhere():
    assert differences(made_record(config=read_back("--recipe", "quickstart"))) == ("the recipe quickstart", [])


def test_what_the_flags_changed():
    config = read_back("--seed", "7", "--qwen.lora_targets", "q_proj,v_proj", "--output_dir", "runs/x")
    assert differences(made_record(config=config)) == (
        "the recipe quickstart",
        [
            ("qwen.lora_targets", "[q_proj, v_proj]", "[all-linear]"),
            ("train.seed", "7", "0"),
        ],
    )


def test_without_a_recipe_the_defaults_count():
    config = json.loads(json.dumps(flatten(Config()))) | {"train.epochs": 3, "train.no_longer": 1}
    default = show_setting(Config().train.epochs)
    assert differences(made_record(config=config, recipe=None)) == (
        "the defaults", [("train.epochs", "3", default), ("train.no_longer", "1", "–")]
    )  # fmt: skip
    assert differences(made_record(config=config, recipe="of_another_version"))[0] == "the defaults"


def test_facts_of_an_older_run_have_dashes():
    found = facts(made_record(zero_stage=2, git_commit=None))
    assert found["Qwen"] == "–, LoRA rank –"
    assert (found["commit"], found["seed"], found["validation queries"]) == ("–", "–", "–")
    assert (found["DeepSpeed"], found["started"]) == ("ZeRO-2", "2026-01-02 03:04:05 UTC")


def test_settings_as_one_would_write_them():
    assert [show_setting(value) for value in (True, 1, 1.0, None, ["a", "b"], "no")] == [
        "true", "1", "1.0", "null", "[a, b]", "no"
    ]  # fmt: skip


HEALTH_STEPS = [
    {"step": 10, "flags": [], "skipped_steps": 0},
    {"step": 20, "flags": ["loss_flat"], "skipped_steps": 1},
    {"step": 30, "flags": ["loss_flat", "qwen_gradient_zero"], "skipped_steps": 2},
    {"step": 40, "flags": ["qwen_gradient_zero"]},
]


def test_flags_with_when_they_were_up_and_what_they_mean():
    (flat, flat_at), (gradient, gradient_at) = raised_flags(HEALTH_STEPS)
    assert (flat.name, flat_at, gradient_at) == ("loss_flat", [20, 30], [30, 40])
    assert flat.sentence == "The loss has not fallen since the start of the run."
    assert gradient.sentence.startswith("The gradient of qwen has been zero")


def test_a_flag_of_another_version_is_named_without_a_meaning():
    ((flag, at),) = raised_flags([{"step": 1, "flags": ["unheard_of"]}])
    assert (flag.name, flag.sentence, at) == ("unheard_of", "", [1])


def test_skipped_steps_are_those_of_the_last_object_that_counts_them():
    assert skipped_steps(HEALTH_STEPS) == 2
    assert skipped_steps([{"step": 1}]) is None


@pytest.mark.parametrize(
    ("processes", "every", "says"),
    [(1, 20, "no replicas"), (2, 0, "were not compared"), (2, 50, "not been compared yet"), (2, 20, "after step 20")],
)
def test_replicas(processes, every, says):
    # At step 40 the log comes before the comparison.
    record = made_record(
        processes=processes, steps=tuple(HEALTH_STEPS), config={"distributed.replica_check_every": every}
    )
    assert says in replicas(record)


@pytest.fixture
def validations():
    return (
        made_validation(0, {"a:test:0": 1.0, "a:test:1": 0.5, "b:test:0": 1.0, "c:test:0": 0.2}),
        made_validation(1, {"a:test:0": 0.9, "a:test:1": 1.0, "b:test:0": 1.0, "c:test:0": 0.3}),
        made_validation(2, {"a:test:0": 0.5, "a:test:1": 1.0, "b:test:0": 0.25, "c:test:0": 0.75}),
    )


def test_tasks_with_the_fewest_right_cells_come_first(validations):
    tasks = hardest_tasks(validations[-1])
    assert [(task, [result.cell for result in results]) for task, results in tasks] == [
        ("b", [0.25]), ("a", [0.5, 1.0]), ("c", [0.75])
    ]  # fmt: skip


def test_what_the_last_validation_solves_and_what_it_lost(validations):
    first, _, last = validations
    against_before, against_first = ([], ["b:test:0"]), (["a:test:1"], ["a:test:0", "b:test:0"])
    assert changes(validations) == {
        "the one before it, epoch 1": against_before, "the first, epoch 0": against_first
    }  # fmt: skip
    assert changes((first, last)) == {"the first, epoch 0": against_first}
    assert changes((last,)) == changes(()) == {}


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=8))
def test_a_change_there_and_back_is_none(outcomes):
    before, after = (
        made_validation(epoch, {f"{index}:test:0": float(pair[epoch]) for index, pair in enumerate(outcomes)})
        for epoch in (0, 1)
    )
    ((solved, lost),) = changes((before, after)).values()
    assert list(changes((after, before)).values()) == [(lost, solved)]
    assert len(solved) - len(lost) == sum(new - old for old, new in outcomes)
    assert set(exact_queries(before)) - set(exact_queries(after)) == set(lost)


def test_a_task_may_have_any_name():
    assert task_of("a:test:b:test:12") == "a:test:b"


TARGET = ((1, 2), (3, 4))


def query(*steps, prediction):
    return ShownQuery(id="a:test:0", input=((0,),), target=TARGET, steps=steps, prediction=prediction)


def test_shares_are_means_over_queries():
    scores = planning_scores(
        [query(((0, 2), (0, 0)), ((1, 2), (3, 0)), prediction=TARGET), query(((1, 2),), TARGET, prediction=((1, 0),))]
    )
    assert [(after, exact, queries) for after, _, exact, queries in scores] == [
        ("step 1", 0, 2), ("step 2", 1, 2), ("the last step, with the solver's memory", 1, 2)
    ]  # fmt: skip
    assert [cell for _, cell, *_ in scores] == pytest.approx([(1 / 4 + 2 / 4) / 2, (3 / 4 + 1) / 2, (1 + 1 / 4) / 2])


def test_nothing_shown_nothing_scored():
    assert planning_scores([]) == []


EVIL = "<script>alert('x')</script>"


class Reader(HTMLParser):
    """What a page refers to, and its text."""

    def __init__(self, page):
        super().__init__()
        self.references, self.tags, self.alts, self.texts = [], [], [], []
        self.feed(page)
        self.text = " ".join(" ".join(self.texts).split())

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        for name, value in attributes:
            if name in ("src", "href", "srcset", "action", "data", "poster"):
                self.references.append(value)
            if name == "alt":
                self.alts.append(value)

    def handle_data(self, data):
        self.texts.append(data)


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
    monkeypatch.setattr(report, "PANELS", dict([*report.PANELS.items()][:1]))
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
        (shutil.rmtree if name == "validation" else Path.unlink)(run / name)
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
    monkeypatch.setattr(report, "MOST_PICTURES", 2)
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
        write_report(run, Path(place))
    assert sorted(run.iterdir()) == before


def test_what_is_no_run(tmp_path):
    with pytest.raises(ConfigError, match="there is no such folder"):
        write_report(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match="is not a run folder"):
        write_report(tmp_path)
    with pytest.raises(DataError, match="holds no logged step yet"):
        write_report(make_run(tmp_path / "fresh", epochs=0))
