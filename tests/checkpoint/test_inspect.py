"""Which checkpoints a path means, and what is said of each."""

import json
import re
import shutil

import pytest
import torch
from shared.rights import without_rights

from arcdist.checkpoint import inspect as inspection
from arcdist.checkpoint.inspect import (
    checkpoints_of_run,
    inspect,
    is_aside,
    is_checkpoint,
    load_unchanged,
    no_checkpoint_message,
    show_run,
    verify,
)
from arcdist.checkpoint.store import (
    FILES,
    MANIFEST,
    STATE,
    WEIGHTS,
    Snapshot,
    finish_replacement,
    lies_at,
    manifest_entry,
    manifest_text,
    save_checkpoint,
    step_folder,
)
from arcdist.errors import ConfigError, DataError


def save(folder, step=1):
    state = {"step": step, "epoch": step // 3, "batch": step % 3}
    save_checkpoint(folder, Snapshot(weights={"w": torch.full((8,), float(step))}, moments={}, prompts={}, state=state))
    return folder


def cut(folder, name=WEIGHTS):
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[:-3])
    return len(content)


@pytest.fixture
def run(tmp_path):
    """A run with two steps, a best one and one that was set aside."""
    run = tmp_path / "run"
    for step in (3, 4, 5):
        save(step_folder(run / "checkpoints", step), step)
    save(run / "best", 3)
    step_folder(run / "checkpoints", 5).rename(run / "checkpoints" / "aside_1_step_00000005")
    return run


@pytest.fixture
def small_run(tmp_path, monkeypatch):
    """A run with a step and a best one, in a folder that anybody may enter, by its relative path."""
    tmp_path.chmod(0o755)
    monkeypatch.chdir(tmp_path)
    root = tmp_path.relative_to(tmp_path) / "run"
    save(step_folder(root / "checkpoints", 1))
    save(root / "best")
    return root


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        *(("aside_1_step_00000005", True), ("aside_12_best", True)),
        *(
            ("aside_step_00000005", False),
            ("aside_1_step_5", False),
            ("step_00000005", False),
            ("aside_1_best_", False),
        ),
    ],
)
def test_what_was_set_aside_is_known_by_its_name(tmp_path, name, expected):
    assert is_aside(tmp_path / name) is expected


@pytest.mark.parametrize(
    ("partial", "replaced", "expected"),
    [
        ("whole", "whole", "partial"),
        ("whole", None, "partial"),
        ("cut", "whole", "replaced"),
        (None, "whole", "replaced"),
        (None, "cut", "replaced"),
        ("cut", None, None),
        (None, None, None),
    ],
)
def test_a_best_one_in_the_middle_of_its_replacement_is_read_where_resume_would_take_it(
    small_run, partial, replaced, expected
):
    best = small_run / "best"
    shutil.rmtree(best)
    for kind, content in (("partial", partial), ("replaced", replaced)):
        if content is not None:
            folder = save(small_run / f".best.{kind}")
            if content == "cut":
                cut(folder)
    before = sorted(path.name for path in small_run.rglob("*"))
    place = lies_at(best)
    assert place == (small_run / f".best.{expected}" if expected else None)
    assert (best in checkpoints_of_run(small_run)) is (expected is not None)
    assert is_checkpoint(best) is (expected is not None)
    assert sorted(path.name for path in small_run.rglob("*")) == before
    # What training does with it is the measure: a broken old one stays where it is.
    content = (place / MANIFEST).read_bytes() if place else b""
    finish_replacement(best)
    assert best.exists() is (expected is not None and "whole" in (partial, replaced))
    if best.exists():
        assert (best / MANIFEST).read_bytes() == content


def test_a_best_one_that_is_in_its_place_is_read_there_whatever_lies_beside_it(small_run):
    save(small_run / ".best.partial", step=9)
    save(small_run / ".best.replaced", step=9)
    assert lies_at(small_run / "best") == small_run / "best"


def test_a_run_called_best_is_a_run(tmp_path):
    small_run = tmp_path / "best"
    step = save(step_folder(small_run / "checkpoints", 1))
    assert checkpoints_of_run(small_run) == [step]
    assert not is_checkpoint(small_run)
    (tmp_path / "aside_1_best").mkdir()
    assert is_checkpoint(tmp_path / "aside_1_best")


def test_a_link_to_nothing_is_a_checkpoint_that_has_to_be_told_of(small_run):
    link = step_folder(small_run / "checkpoints", 9)
    link.symlink_to("nowhere")
    assert link in checkpoints_of_run(small_run)
    assert no_checkpoint_message(link).startswith(
        f"{link}: there is no such folder. Give that of a checkpoint, such as"
    )


def test_a_folder_that_cannot_be_read_is_not_an_empty_one(small_run):
    for folder, find, unread in (
        (small_run, lambda: checkpoints_of_run(small_run), "best"),
        (small_run / "checkpoints", lambda: checkpoints_of_run(small_run), "checkpoints"),
        (small_run, lambda: is_checkpoint(small_run / "best"), "best"),
    ):
        with without_rights(folder), pytest.raises(DataError) as raised:
            find()
        assert str(raised.value) == f"{small_run / unread} cannot be read (Permission denied): see who may read it."
    assert len(checkpoints_of_run(small_run)) == 2


@pytest.mark.parametrize("name", [MANIFEST, *FILES])
def test_any_of_its_files_makes_a_folder_a_checkpoint(tmp_path, name):
    assert not is_checkpoint(tmp_path)
    (tmp_path / name).touch()
    assert is_checkpoint(tmp_path)


def test_what_is_moved_while_it_is_read_is_read_again(small_run, monkeypatch):
    read, best, calls = inspection.load_checkpoint, small_run / "best", []
    best.rename(small_run / ".best.replaced")

    def read_while_it_moves(place, needed):
        calls.append(place.name)
        if len(calls) == 1:
            place.rename(best)
            raise DataError("gone")
        return read(place, needed)

    monkeypatch.setattr(inspection, "load_checkpoint", read_while_it_moves)
    place, snapshot = load_unchanged(best, {})
    assert (place, snapshot.state["step"]) == (best, 1)
    assert calls == [".best.replaced", "best"]


def test_what_is_broken_and_stays_so_is_read_once(small_run, monkeypatch):
    calls = []

    def read(place, needed):
        calls.append(place)
        raise DataError("broken")

    monkeypatch.setattr(inspection, "load_checkpoint", read)
    with pytest.raises(DataError, match=r"^broken$"):
        load_unchanged(small_run / "best", {})
    assert calls == [small_run / "best"]
    assert load_unchanged(small_run / "absent", {}) is None


def rows(text):
    return [
        re.split(r" {2,}", line.strip()) for line in text.splitlines() if re.match(r"(step_|best|aside_)\w* ", line)
    ]


def test_a_run_is_listed_by_step_then_best_then_what_was_set_aside(run, capsys):
    show_run(run)
    text = capsys.readouterr().out
    table = rows(text)
    assert [row[0] for row in table] == ["step_00000003", "step_00000004", "best", "aside_1_step_00000005"]
    assert [row[1:4] for row in table] == [["3", "1", "0"], ["4", "1", "1"], ["3", "1", "0"], ["5", "1", "2"]]
    assert {row[6] for row in table} == {"whole"}
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d", row[5]) for row in table)
    assert text.endswith("\n--resume continues from step_00000004.\n")


def test_its_folder_of_checkpoints_gives_the_same_table(run, capsys):
    show_run(run)
    by_run = capsys.readouterr().out
    show_run(run / "checkpoints")
    assert capsys.readouterr().out == by_run


def test_a_broken_newest_one_is_told_with_the_one_that_resume_takes(run, capsys):
    size = cut(run / "checkpoints" / "step_00000004")
    with pytest.raises(DataError) as raised:
        show_run(run)
    assert (
        str(raised.value) == "The newest checkpoint, step_00000004, is broken; --resume continues from step_00000003."
    )
    text = capsys.readouterr().out
    assert rows(text)[1][1:4] == ["–", "–", "–"]
    assert rows(text)[1][6] == "broken"
    assert text.endswith(f"\nstep_00000004: {WEIGHTS} has {size - 3} bytes in place of {size}.\n")


def test_a_broken_older_one_is_told_and_no_error(run, capsys):
    cut(run / "checkpoints" / "step_00000003")
    show_run(run)
    assert [row[6] for row in rows(capsys.readouterr().out)[:2]] == ["broken", "whole"]


def test_where_only_the_best_is_whole_resume_is_told_its_folder(run, capsys):
    for step in (3, 4):
        cut(step_folder(run / "checkpoints", step))
    with pytest.raises(DataError, match=rf"step_00000004, is broken; --resume {run}/best continues from that one\.$"):
        show_run(run)


def test_where_none_is_whole_a_new_run_is_all_that_is_left(run, capsys):
    for place in checkpoints_of_run(run):
        cut(place, MANIFEST)
    with pytest.raises(DataError, match="None of the checkpoints is whole: start a new run"):
        show_run(run)
    assert {row[6] for row in rows(capsys.readouterr().out)} == {"broken"}


def test_a_run_may_have_a_best_one_only(run, capsys):
    shutil.rmtree(run / "checkpoints")
    show_run(run)
    assert capsys.readouterr().out.endswith(f"\n--resume {run}/best continues from that one.\n")


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("absent", "absent: there is no such folder. Give that of a run, such as runs/NAME."),
        ("run/best", "run/best is a checkpoint, not a run: give the run's folder, or use"),
        ("empty", "empty holds no checkpoint, neither checkpoints/step_… nor best/: give the folder of a run"),
        ("run/best/state.json", "state.json: there is no such folder. Give that of a run, such as runs/NAME."),
    ],
)
def test_what_is_no_run_is_refused(run, place, message):
    (run.parent / "empty").mkdir()
    with pytest.raises(ConfigError) as raised:
        show_run(run.parent / place)
    assert message in str(raised.value)


def test_verify_prints_a_line_for_each_of_many(run, capsys):
    verify([run / "best", run / "checkpoints", step_folder(run / "checkpoints", 3)])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"whole   {run}/best: step 3, ")
    assert [line.partition(": ")[0] for line in lines[1:]] == [
        f"whole   {place}" for place in [*checkpoints_of_run(run), run / "checkpoints" / "step_00000003"]
    ]


@pytest.mark.parametrize("name", [MANIFEST, *FILES])
@pytest.mark.parametrize("harm", ["cut", "gone", "turned"])
def test_verify_names_the_file_that_is_broken(run, capsys, name, harm):
    file = run / "best" / name
    content = file.read_bytes()
    if harm == "gone":
        file.unlink()
    else:
        file.write_bytes(content[:-1] if harm == "cut" else content[:-2] + bytes([content[-2] ^ 1]) + content[-1:])
    with pytest.raises(DataError, match=r"^Broken: 1 of 4\. "):
        verify([run])
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("broken")]
    assert line.startswith(f"broken  {run}/best: {name}")


def test_verify_takes_a_checkpoint_that_has_lost_all_its_files_for_one(run, capsys):
    for path in (run / "best").iterdir():
        path.unlink()
    with pytest.raises(DataError, match="Broken: 1 of 1"):
        verify([run / "best"])
    assert "manifest.json cannot be read: No such file or directory" in capsys.readouterr().out


def test_verify_begins_with_none_where_one_path_is_wrong(run, capsys):
    with pytest.raises(ConfigError, match=r"is neither a checkpoint \(it has no manifest.json\) nor a run folder"):
        verify([run, run.parent])
    with pytest.raises(ConfigError, match="there is no such folder"):
        verify([run, run / "absent"])
    assert capsys.readouterr().out == ""


def test_one_that_a_running_run_has_removed_is_no_broken_one(run, monkeypatch):
    def read_while_it_goes(folder, needed):
        shutil.rmtree(folder)
        raise DataError("gone")

    monkeypatch.setattr(inspection, "load_checkpoint", read_while_it_goes)
    assert inspect(run / "best") is None


def test_one_that_a_running_run_has_replaced_meanwhile_is_read_again(run, monkeypatch):
    read, calls = inspection.load_checkpoint, []

    def read_while_it_changes(folder, needed):
        calls.append(folder)
        if len(calls) == 1:
            save(folder, 7)
            raise DataError("half of one, half of the other")
        return read(folder, needed)

    monkeypatch.setattr(inspection, "load_checkpoint", read_while_it_changes)
    found = inspect(run / "best")
    assert (found.position["step"], found.flaw) == (7, None)


def test_size_is_that_of_the_files(run):
    size = sum(path.stat().st_size for path in (run / "best").iterdir())
    assert inspect(run / "best").size == size
    assert (
        json.loads((run / "best" / "state.json").read_text())["epoch"] == inspect(run / "best").position["epoch"] == 1
    )


def rewrite(folder, name, content):
    """Put other bytes into a checkpoint as if it had been saved with them: its checksums are right."""
    (folder / name).write_bytes(content)
    (folder / MANIFEST).write_text(
        manifest_text({each: manifest_entry((folder / each).read_bytes()) for each in FILES})
    )


@pytest.mark.parametrize(
    ("name", "content", "flaw"),
    [
        (STATE, b"[]", "state.json is no state of a run: it is a list, not an object."),
        (STATE, b"\xff\xfe\xfa", "state.json is no state of a run: it cannot be read as JSON"),
        (STATE, b"[" * 100_000, "state.json is no state of a run: it cannot be read as JSON"),
        (STATE, b"{", "state.json is no state of a run: it cannot be read as JSON (Expecting property name"),
        (STATE, b"null", "state.json is no state of a run: it is a NoneType, not an object."),
        (STATE, b'{"step": 3, "epoch": 1}', "state.json is no state of a run: it lacks batch (int)."),
        (STATE, b'{"step": "3", "epoch": 1, "batch": 0}', "state.json is no state of a run: it lacks step (int)."),
        *((name, b"junk", f"{name} is no safetensors file (Error while deserializing") for name in FILES[:3]),
    ],
)
def test_what_was_written_and_is_not_what_it_should_be_is_broken(run, capsys, name, content, flaw):
    rewrite(run / "best", name, content)
    with pytest.raises(DataError, match=r"^Broken: 1 of 1\. "):
        verify([run / "best"])
    assert capsys.readouterr().out.startswith(f"broken  {run}/best: {flaw}")
    assert inspect(run / "best").position == {}


def test_a_manifest_that_is_nested_without_end_is_broken(run, capsys):
    (run / "checkpoints" / "step_00000004" / MANIFEST).write_text("[" * 100_000)
    with pytest.raises(DataError, match=r"step_00000004, is broken; --resume continues from step_00000003\.$"):
        show_run(run)
    assert "\nstep_00000004: manifest.json: it is no list of checksums.\n" in capsys.readouterr().out


def test_a_header_that_does_not_account_for_every_byte_is_told(run):
    content = (run / "best" / WEIGHTS).read_bytes()
    rewrite(run / "best", WEIGHTS, content[:-4])
    assert inspect(run / "best").flaw.startswith(f"{WEIGHTS} is no safetensors file (Error while deserializing: ")
    rewrite(run / "best", WEIGHTS, content)
    assert inspect(run / "best").flaw is None


def test_a_link_to_nothing_is_broken_as_resume_finds_it(run, capsys):
    (run / "checkpoints" / "step_00000009").symlink_to("nowhere")
    with pytest.raises(DataError) as raised:
        show_run(run)
    assert (
        str(raised.value) == "The newest checkpoint, step_00000009, is broken; --resume continues from step_00000004."
    )
    text = capsys.readouterr().out
    assert rows(text)[2] == ["step_00000009", "–", "–", "–", "0 bytes", "–", "broken"]
    assert "step_00000009: manifest.json cannot be read: No such file or directory.\n" in text


@pytest.mark.parametrize("kind", ["partial", "replaced"])
def test_a_best_one_that_was_cut_off_between_its_renamings_is_shown_and_where_it_lies(run, capsys, kind):
    best, place = run / "best", run / f".best.{kind}"
    best.rename(place)
    told = f"{best}: its replacement was cut off, or continues: {place} is read, and --resume puts it back.\n"
    show_run(run)
    text = capsys.readouterr().out
    assert rows(text)[2][:4] == ["best", "3", "1", "0"]
    assert rows(text)[2][6] == "whole"
    assert text.endswith(f"\n{told}--resume continues from step_00000004.\n")
    for given in (run, best):
        verify([given])
        text = capsys.readouterr().out
        assert f"whole   {best}: step 3, " in text
        assert f"        {told}" in text
    shutil.rmtree(run / "checkpoints")
    show_run(run)
    assert capsys.readouterr().out.endswith(f"\n--resume {best} continues from that one.\n")
    assert [path.name for path in run.iterdir()] == [place.name]


def test_what_cannot_be_read_is_told_and_not_passed_over(run, capsys, monkeypatch):
    run.parent.chmod(0o755)
    monkeypatch.chdir(run.parent)
    here = run.relative_to(run.parent)
    show_run(here)
    for folder in (here, here / "checkpoints"):
        for tool in (show_run, lambda path: verify([path])):
            message = rf"^{folder}(/best|/{MANIFEST})? cannot be read \(Permission denied\): see who may read it\.$"
            with without_rights(folder), pytest.raises(DataError, match=message):
                tool(here)
    capsys.readouterr()
    with without_rights(here / "checkpoints" / "step_00000004"), pytest.raises(DataError, match="step_00000004, is br"):
        show_run(here)
    assert "\nstep_00000004: manifest.json cannot be read: Permission denied.\n" in capsys.readouterr().out
