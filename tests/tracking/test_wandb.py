"""W&B's server that works, is out of reach or refuses the key: training notices nothing, and no row is lost."""

import json
import logging
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from shared.made_runs import make_run
from shared.mirrored import catch_up, children, log_steps, wait_until, without_accounts
from shared.wandb_files import inspect, read_wandb_files, wandb_files
from shared.wandb_server import KEY, wandb_server

from arcdist.analysis.record import read_run_folder
from arcdist.config import load_config
from arcdist.errors import ConfigError, DataError, PlatformError
from arcdist.tracking import check_mirrors, open_mirrors, wandb, wandb_variables
from arcdist.tracking.mirror import make_row, make_rows
from arcdist.tracking.wandb import WandbMirror, parse_wandb_run, read_wandb_run, wandb_mode
from arcdist.tracking.wandb_process import query_table, shown_table, steps_in

ALL = range(10, 81, 10)


@pytest.fixture(scope="module")
def record(tmp_path_factory):
    """A run without validations, whose tables a server would have to take."""
    folder = make_run(tmp_path_factory.mktemp("made") / "source", epochs=2)
    for path in (folder / "validation").iterdir():
        path.unlink()
    return read_run_folder(folder)


@pytest.fixture
def server(monkeypatch, tmp_path):
    without_accounts(monkeypatch, tmp_path / "home")
    with wandb_server() as server:
        monkeypatch.setenv("WANDB_BASE_URL", server.url)
        monkeypatch.setenv("WANDB_API_KEY", KEY)
        yield server


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    return folder


def opened(folder, record):
    config = load_config(["--recipe", "quickstart"]).config
    return open_mirrors(folder, record.identity, config, best_metric="val/exact")


def closed(mirrors, seconds=60.0):
    """The seconds that the end of a run took; nothing is left of W&B then."""
    start = time.monotonic()
    mirrors.close(0, seconds=seconds)
    passed = time.monotonic() - start
    psutil.wait_procs(children(), timeout=5)
    assert children() == []
    return passed


def only_warning(caplog):
    (warning,) = [entry.getMessage() for entry in caplog.records if entry.levelno >= logging.WARNING]
    return warning


@pytest.mark.slow
def test_a_resumed_run_continues_in_w_and_b_and_can_be_read_from_there(server, folder, record, caplog):
    caplog.set_level(logging.INFO, "arcdist")
    first = opened(folder, record)
    log_steps(first, record, range(10, 51, 10))
    closed(first)
    assert [row["_step"] for row in server.rows.values()] == [10, 20, 30, 40, 50]
    # The last row did not arrive, and training passes over steps 50 and 60 once more.
    del server.rows[4]
    second = opened(folder, record)
    catch_up(second, record, 60)
    log_steps(second, record, range(50, 81, 10))
    closed(second)
    assert [row["_step"] for row in server.rows.values()] == list(ALL)
    assert f"The run is kept in W&B: {server.url}/me/arcdist/runs/{record.identity.id}" in caplog.text
    assert "WARNING" not in caplog.text
    read = read_wandb_run(f"me/arcdist/{record.identity.id}")
    assert (read.steps, read.epochs, read.best) == (record.steps, record.epochs, record.best)
    assert read.identity == record.identity
    assert read.config["optim.qwen_lr"] == record.config["optim.qwen_lr"]


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["refuses", "hangs"])
def test_a_run_that_cannot_begin_in_w_and_b_is_kept_offline(server, folder, record, mode, monkeypatch, caplog):
    monkeypatch.setattr(wandb, "INIT_SECONDS", 1.0)
    server.mode = mode
    mirrors = opened(folder, record)
    log_steps(mirrors, record, ALL)
    assert closed(mirrors) < 40
    warning = only_warning(caplog)
    assert warning.startswith("W&B failed (CommError: Failed to get resume status")
    assert warning.endswith(f"then `wandb sync {folder}/wandb/*run-*-{record.identity.id}` uploads it.")
    assert [path.parent.name.startswith("offline-run-") for path in wandb_files(folder)][-1]
    assert read_wandb_files(folder).steps == record.steps
    if mode == "refuses":
        server.mode = "works"
        advice = warning.split("`")[-2].removeprefix("wandb")
        subprocess.run(
            f"{sys.executable} -m wandb {advice}", shell=True, cwd=folder, timeout=60, check=True, capture_output=True
        )
        assert [row["_step"] for row in server.rows.values()] == list(ALL)


@pytest.mark.slow
def test_an_interrupt_ends_no_process_that_keeps_the_run_offline_already(server, folder, record):
    server.mode = "refuses"
    config = load_config(["--recipe", "quickstart"]).config
    mirror = WandbMirror(folder, record.identity, config, "online", best_metric="val/exact")
    mirror.open()
    mirror.interrupt()
    for row in make_rows(record.steps, record.epochs, ()):
        mirror.log(row)
    mirror.close(0)
    assert read_wandb_files(folder).steps == record.steps


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["fails", "hangs"])
def test_rows_that_do_not_arrive_are_in_the_folder_at_the_end(server, folder, record, mode, monkeypatch, caplog):
    monkeypatch.setattr(wandb, "FINISH_SECONDS", 1.0 if mode == "fails" else 60.0)
    mirrors = opened(folder, record)
    log_steps(mirrors, record, ALL)
    wait_until(lambda: 80 in steps_in(folder / "wandb", record.identity.id))
    server.mode = mode
    assert closed(mirrors, 5.0) < 9
    warning = only_warning(caplog)
    assert warning.startswith("W&B lacks the rest of this run (")
    assert f"`wandb sync {folder}/wandb/*run-*-{record.identity.id}` uploads it" in warning
    assert read_wandb_files(folder).steps == record.steps


@pytest.mark.slow
def test_a_revoked_key_is_reported_and_loses_no_row(server, folder, record, caplog):
    mirrors = opened(folder, record)
    log_steps(mirrors, record, range(10, 71, 10))
    wait_until(lambda: server.config != {})
    server.mode = "refuses"
    log_steps(mirrors, record, [80])
    closed(mirrors)
    assert "it has stopped sending; filestream: fatal error" in caplog.text
    assert f"`wandb sync {folder}/wandb/*run-*-{record.identity.id}` uploads it" in caplog.text
    assert read_wandb_files(folder).steps == record.steps


@pytest.mark.slow
def test_what_w_and_b_s_process_loses_is_taken_from_the_run_folder(folder, record, monkeypatch, tmp_path, caplog):
    without_accounts(monkeypatch, tmp_path / "home")
    for name in ("steps.jsonl", "metrics.json"):
        (folder / name).symlink_to(f"{record.place}/{name}")
    mirrors = opened(folder, record)
    log_steps(mirrors, record, range(10, 51, 10))
    wait_until(lambda: any((folder / "wandb").glob("*/logs/debug-internal.log")))
    for child in children():
        child.kill()
    log_steps(mirrors, record, range(60, 81, 10))
    closed(mirrors)
    assert caplog.text.count("W&B failed (its process died") == 1
    read = read_wandb_files(folder)
    assert (read.steps, read.epochs) == (record.steps, record.epochs)


@pytest.mark.slow
def test_a_folder_that_cannot_be_written_is_one_warning(folder, record, monkeypatch, tmp_path, caplog):
    without_accounts(monkeypatch, tmp_path / "home")
    (folder / "wandb").write_text("")
    mirrors = opened(folder, record)
    log_steps(mirrors, record, ALL)
    closed(mirrors)
    assert only_warning(caplog).startswith("W&B lacks the rest of this run (FileExistsError: ")


@pytest.mark.slow
def test_handing_over_takes_no_time_even_if_w_and_b_hangs(server, folder, record):
    server.mode = "hangs"
    mirrors = opened(folder, record)
    start = time.monotonic()
    for _ in range(100):
        log_steps(mirrors, record, ALL)
    assert (time.monotonic() - start) / 1000 < 0.002
    assert closed(mirrors, 0.2) < 5


@pytest.mark.slow
def test_a_run_is_read_from_the_server_with_its_validations(server, tmp_path):
    record = read_run_folder(make_run(tmp_path / "run"))
    for index, row in enumerate(make_rows(record.steps, record.epochs, record.validations)):
        server.rows[index] = {**row.numbers, "_step": row.step, "_runtime": 1.5}
        if row.validation is not None:
            content = asdict(row.validation)
            for name, table in (("queries", query_table(content)), ("shown", shown_table(content, lambda _: None))):
                path = f"media/table/{name}_{row.step}.json"
                server.files[path] = json.dumps(dict(zip(("columns", "data"), table, strict=True))).encode()
                server.rows[index][f"validation/{name}"] = {"_type": "table-file", "path": path}
    config = {"run": {**asdict(record.identity), "best_metric": "val/cell"}, "optim": {"qwen_lr": 1}, "_wandb": {}}
    server.config = {name: {"value": value} for name, value in config.items()}
    server.rows[len(server.rows) - 1]["val/cell"] = 1  # W&B keeps 1.0 as 1
    read = read_wandb_run("me/arcdist/abcdefgh")
    record.epochs[-1]["val/cell"] = 1.0
    assert (read.steps, read.epochs, read.validations) == (record.steps, record.epochs, record.validations)
    assert read.best == {"metric": "val/cell", **max(record.epochs, key=lambda epoch: epoch["val/cell"])}
    assert repr(read.config) == "{'optim.qwen_lr': 1.0}"


@pytest.mark.slow
def test_what_cannot_be_read_from_w_and_b_is_one_error(server, monkeypatch):
    with pytest.raises(DataError, match=r"me/arcdist/nothing cannot be read from W&B \(.*Could not find run"):
        read_wandb_run("me/arcdist/nothing")
    server.mode = "refuses"
    with pytest.raises(DataError, match=r"cannot be read from W&B \(.*or the key \(`wandb login`\)"):
        read_wandb_run("me/arcdist/nothing")
    server.mode = "hangs"
    with pytest.raises(DataError, match=r"cannot be read from W&B \("):
        read_wandb_run("me/arcdist/nothing", seconds=1)
    monkeypatch.delenv("WANDB_API_KEY")
    with pytest.raises(DataError, match=r"cannot be read from W&B \(there is no key\): check"):
        read_wandb_run("me/arcdist/nothing")
    assert children() == []


def test_what_is_no_run_is_refused(record, monkeypatch):
    with pytest.raises(ConfigError, match="runs/one is not a W&B run: give ENTITY/PROJECT/RUN_ID"):
        read_wandb_run("runs/one")
    with pytest.raises(ConfigError, match="me/other/run is not a run of arcdist: its configuration in W&B lacks `run`"):
        parse_wandb_run("me/other/run", {"lr": 1}, [], {})
    with pytest.raises(DataError, match="me/arcdist/run holds no logged step yet"):
        parse_wandb_run("me/arcdist/run", {"run": asdict(record.identity)}, [], {})
    monkeypatch.setattr(wandb, "find_spec", lambda name: None)
    with pytest.raises(PlatformError, match=r"cannot be read without wandb: pip install 'arcdist\[wandb\]'"):
        read_wandb_run("me/arcdist/run")


NAMES = st.sampled_from(["loss", "efe/risk", "train/exact", "a_new_number", "time/elapsed_s", "grad_norm/qwen"])
NUMBERS = st.none() | st.floats(allow_nan=False, allow_infinity=False)
STEPS = st.fixed_dictionaries(
    {"step": st.integers(1, 10**9), "epoch": st.just(3), "flags": st.lists(st.sampled_from(["a", "b"]))}
)
SCORES = st.dictionaries(st.sampled_from(["val/exact", "floor/copy_exact", "solver/size"]) | NAMES, NUMBERS)


@settings(max_examples=25, deadline=None)
@given(STEPS, st.dictionaries(NAMES, NUMBERS), SCORES)
def test_records_come_back_from_their_row(record, step, numbers, scores):
    step, epoch = {**step, **numbers}, {"epoch": 3, **scores, "train/loss": 1.0}

    def parsed(row):
        kept = {**row.numbers, "_step": 7, "_runtime": 1.5, "metrics_plot": {"path": "somewhere"}}
        run = parse_wandb_run("me/arcdist/run", {"run": asdict(record.identity)}, [kept], {})
        return run.steps, run.epochs

    assert parsed(make_row(7, step, epoch)) == ((step,), (epoch,))
    assert parsed(make_row(7, step)) == ((step,), ())
    assert parsed(make_row(7, None, epoch)) == ((), (epoch,))


@pytest.fixture
def told(monkeypatch, tmp_path):
    """Set variables of W&B in an environment that has none, in a folder of its own."""
    without_accounts(monkeypatch, tmp_path / "home")
    monkeypatch.chdir(tmp_path)
    return monkeypatch.setenv


def mode_of(*flags):
    return wandb_mode(load_config(["--recipe", "quickstart", *flags]).config)


@pytest.mark.parametrize(
    ("variables", "meant"),
    [
        ({"WANDB_MODE": "online"}, ("online", "WANDB_MODE is online")),
        ({"WANDB_MODE": "dryrun"}, ("offline", "WANDB_MODE is dryrun")),
        ({"WANDB_MODE": "Disabled"}, ("disabled", "WANDB_MODE is Disabled")),
        ({"WANDB_MODE": ""}, (None, "")),
        ({"WANDB_DISABLED": "true"}, ("disabled", "WANDB_DISABLED is true")),
        ({"WANDB_DISABLED": "1", "WANDB_MODE": "online"}, ("disabled", "WANDB_DISABLED is 1")),
        ({"WANDB_DISABLED": "false"}, (None, "")),
        ({"WANDB_DISABLED": "", "WANDB_MODE": "offline"}, ("offline", "WANDB_MODE is offline")),
    ],
)
def test_the_configuration_has_precedence_over_wandb_s_own_variables(told, variables, meant):
    for name, value in variables.items():
        told(name, value)
    assert mode_of() == meant
    for mode in ("offline", "online", "disabled"):
        assert mode_of("--tracking.wandb", mode) == (mode, "")


def test_a_mode_that_w_and_b_has_not_is_refused(told):
    told("WANDB_MODE", "shared")
    with pytest.raises(ConfigError, match="WANDB_MODE is shared: choose online, offline or disabled"):
        mode_of()
    told("WANDB_MODE", "")
    told("WANDB_DISABLED", "perhaps")
    with pytest.raises(ConfigError, match="WANDB_DISABLED is perhaps: choose true or false"):
        mode_of()


@pytest.mark.slow
@pytest.mark.parametrize("elsewhere", [False, True])
def test_what_the_commands_of_w_and_b_have_set_counts(told, tmp_path, elsewhere):
    if elsewhere:
        told("WANDB_DIR", str(tmp_path / "elsewhere"))
    place = (tmp_path / "elsewhere" if elsewhere else Path()) / "wandb" / "settings"
    for command, mode in (("disabled", "disabled"), ("offline", "offline"), ("online", None), ("enabled", None)):
        subprocess.run([sys.executable, "-m", "wandb", command], check=True, capture_output=True, timeout=60)
        found, where = mode_of()
        assert found == mode
        if mode:
            assert where == f"`wandb {mode}` has written so into {place}, and `wandb online` takes it back"
    told("WANDB_MODE", "disabled")
    assert mode_of()[0] == "disabled"


def test_the_settings_of_a_user_come_before_those_of_a_folder_and_broken_ones_say_nothing(told, tmp_path):
    told("WANDB_CONFIG_DIR", str(tmp_path / "mine"))
    for folder, content in (("mine", "[default]\nmode = disabled\n"), ("wandb", "[default]\nproject = 100%\n")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "settings").write_text(content)
    assert mode_of()[0] == "disabled"
    (tmp_path / "wandb" / "settings").write_text("[default]\nmode = online\n")
    assert mode_of() == (None, "")
    (tmp_path / "mine" / "settings").write_bytes(b"\xff mode")
    (tmp_path / "wandb" / "settings").write_text("mode\n")
    assert mode_of() == (None, "")
    told("WANDB_CONFIG_DIR", "~nobody_of_this_name/wandb")
    assert mode_of() == (None, "")


def test_without_wandb_a_run_goes_without_it_unless_it_is_asked_for_by_name(monkeypatch):
    monkeypatch.setattr(wandb, "find_spec", lambda name: None)
    assert mode_of() == ("disabled", "wandb is not installed (pip install 'arcdist[wandb]')")
    for mode in ("offline", "online"):
        with pytest.raises(PlatformError, match=rf"tracking\.wandb is {mode}, but wandb is not installed: pip"):
            mode_of("--tracking.wandb", mode)
    assert mode_of("--tracking.wandb", "disabled") == ("disabled", "")


def test_a_run_that_is_not_kept_says_why(told, folder, record, caplog):
    caplog.set_level(logging.INFO, "arcdist")
    told("WANDB_DISABLED", "true")
    assert not opened(folder, record)
    assert caplog.messages == ["The run is not kept in W&B: WANDB_DISABLED is true."]
    assert list(folder.iterdir()) == []
    assert wandb_variables(load_config([])) == {}


SAID = {
    "WANDB_NAME": "named",
    "WANDB_RUN_GROUP": "a group",
    "WANDB_JOB_TYPE": "trial",
    "WANDB_TAGS": "one, two,,one",
    "WANDB_NOTES": "Why\nit was run.",
    "WANDB_RUN_ID": "my id*",
    "WANDB_RESUME": "allow",
}


def test_what_the_environment_says_of_a_run_stays_at_a_resume_but_for_its_id(told, tmp_path, caplog):
    caplog.set_level(logging.INFO, "arcdist")
    for name, value in SAID.items():
        told(name, value)
    told("WANDB_NOTES", "")
    told("WANDB_PROJECT", "mine")
    told("WANDB_DIR", "not/there")
    told("WANDB_MODE", "offline")
    said = {name: value for name, value in SAID.items() if name != "WANDB_NOTES"}
    said |= {"WANDB_PROJECT": "mine", "WANDB_MODE": "offline", "WANDB_DIR": str(tmp_path / "not" / "there")}
    assert wandb_variables(load_config([])) == said
    assert wandb_variables(load_config(["--tracking.wandb", "online"])).keys() == said.keys() - {"WANDB_MODE"}
    assert not (tmp_path / "not").exists()
    assert caplog.messages == []

    resumed = load_config(["--tracking.wandb_project", "its_own"])
    told("WANDB_NAME", "renamed")
    told("WANDB_TAGS", "")
    told("WANDB_DIR", str(tmp_path))
    told("WANDB_MODE", "")
    assert wandb_variables(resumed, said, "abcd1234") == {
        **{name: value for name, value in said.items() if name not in ("WANDB_MODE", "WANDB_RESUME")},
        "WANDB_NAME": "renamed",
    }
    assert caplog.messages == [
        "WANDB_PROJECT is mine, but tracking.wandb_project is its_own (flag), which counts.",
        "WANDB_RUN_ID is my id*, but this run is resumed and keeps its own id, abcd1234.",
        f"WANDB_DIR is {tmp_path}, but this run is resumed and its files for W&B stay {tmp_path}/not/there.",
    ]
    caplog.clear()
    told("WANDB_PROJECT", "")
    told("WANDB_DIR", "")
    assert wandb_variables(resumed, {}, "my id*")["WANDB_NAME"] == "renamed"
    assert caplog.messages == []


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("WANDB_RUN_ID", "a/b", r"WANDB_RUN_ID is 'a/b': choose up to 128 characters without :;,#\?/' and without "),
        ("WANDB_RUN_ID", " a", "WANDB_RUN_ID is ' a': choose "),
        ("WANDB_RUN_ID", "a" * 129, "WANDB_RUN_ID is 'a+': choose "),
        ("WANDB_RESUME", "true", "WANDB_RESUME is true: choose allow, never, must or auto, or unset it"),
        ("WANDB_TAGS", "a," + 65 * "b", r"WANDB_TAGS has a tag of 65 characters, b{20}\.\.\.: give tags of at most 64"),
        ("WANDB_DIR", "file/below", "WANDB_DIR is .*file/below, and .*file is no folder that can be written: choose"),
    ],
)
def test_what_w_and_b_would_not_take_is_refused_at_the_start(told, tmp_path, name, value, message):
    (tmp_path / "file").write_text("")
    told(name, value)
    with pytest.raises(ConfigError, match=message):
        check_mirrors(load_config([]))
    check_mirrors(load_config(["--tracking.wandb", "disabled"]))


@pytest.mark.slow
def test_w_and_b_is_given_what_was_said_and_nothing_that_is_not_the_run_s(told, folder, record, tmp_path, caplog):
    caplog.set_level(logging.INFO, "arcdist")
    place = tmp_path / "else where"
    identity = replace(record.identity, id="my id*", wandb={**SAID, "WANDB_DIR": str(place)})
    # Whatever else the environment has by now, W&B would fail with.
    for name in ("WANDB_MODE", "WANDB_RESUME"):
        told(name, "nonsense")
    for name in ("WANDB_PROJECT", "WANDB_RUN_ID", "WANDB_TAGS"):
        told(name, "a/b" * 30)
    told("WANDB_JOB_TYPE", "")
    flags = ("--tracking.wandb", "offline", "--tracking.wandb_project", "mine", "--tracking.wandb_entity", "team")
    for steps in (range(10, 41, 10), ALL):  # resumed from its folder there
        mirrors = open_mirrors(folder, identity, load_config(flags).config, best_metric="val/exact")
        log_steps(mirrors, record, steps)
        closed(mirrors)
    assert f"`wandb sync '{place}/wandb'/*run-*-'my id*'` uploads it" in caplog.text
    assert "WARNING" not in caplog.text
    assert [path.name for path in (folder / "wandb").iterdir()] == ["console.log"]
    files = sorted(place.glob("wandb/offline-run-*-my id*/run-my id*.wandb"))
    steps = [one["history"]["step"]["num"] for file in files for one in inspect(file) if one["type"] == "history"]
    assert steps == list(ALL)
    run = next(one["run"] for one in inspect(files[0]) if one["type"] == "run")
    named = ("display_name", "run_group", "job_type", "notes", "run_id", "project", "entity")
    assert {name: run[name] for name in named} == {
        "display_name": "named",
        "run_group": "a group",
        "job_type": "trial",
        "notes": "Why\nit was run.",
        "run_id": "my id*",
        "project": "mine",
        "entity": "team",
    }
    assert run["tags"] == [*record.identity.tags, "one", "two"]
    assert "else where" not in json.dumps(run["config"])


@pytest.mark.slow
def test_a_run_of_a_sweep_is_the_sweep_s(server, folder, record, monkeypatch, tmp_path, caplog):
    # What W&B's agent sets.
    parameters = tmp_path / "wandb" / "sweep-abc" / "config-trial.yaml"
    parameters.parent.mkdir(parents=True)
    parameters.write_text("wandb_version: 1\nagent_lr: {value: 0.002}\n")
    variables = {"SWEEP_ID": "abc", "RUN_ID": "trial", "PROJECT": "ours", "ENTITY": "me", "DIR": str(tmp_path)}
    for name, value in {**variables, "SWEEP_PARAM_PATH": str(parameters)}.items():
        monkeypatch.setenv(f"WANDB_{name}", value)
    loaded = load_config(["--agent_lr=0.002", "--tracking.wandb_project=mine"])
    said = wandb_variables(loaded)
    assert said == {f"WANDB_{name}": value for name, value in variables.items() if name != "SWEEP_ID"}
    identity = replace(record.identity, id=said["WANDB_RUN_ID"], wandb=said)
    mirrors = open_mirrors(folder, identity, loaded.config, best_metric="val/exact")
    log_steps(mirrors, record, ALL)
    closed(mirrors)
    assert {name: server.run[name] for name in ("sweep", "name", "project", "entity")} == {
        "sweep": "abc",
        "name": "trial",
        "project": "ours",
        "entity": "me",
    }
    assert server.config["agent_lr"]["value"] == 0.002
    assert [row["_step"] for row in server.rows.values()] == list(ALL)
    assert "WARNING" not in caplog.text


@pytest.mark.slow
def test_a_run_that_takes_the_id_of_another_is_told_what_w_and_b_lacks(server, folder, record, caplog):
    closed_after(opened(folder, record), record, range(10, 51, 10))
    identity = replace(record.identity, wandb={"WANDB_RUN_ID": record.identity.id})
    mirrors = open_mirrors(folder, identity, load_config([]).config, best_metric="val/exact")
    closed_after(mirrors, record, ALL)
    assert only_warning(caplog) == (
        f"W&B's run {record.identity.id}, which WANDB_RUN_ID names, has rows of another run up to step 50, so that "
        "W&B lacks this run's until then: unset WANDB_RUN_ID, or name a run that is not there yet."
    )


def closed_after(mirrors, record, steps):
    log_steps(mirrors, record, steps)
    closed(mirrors)
