import shutil

import pytest
import torch
from shared.rights import without_rights

from arcdist.errors import DataError
from arcdist.training.checkpoint import FILES, MANIFEST, WEIGHTS, Snapshot, mend, save_checkpoint, step_folder
from arcdist.training.places import (
    checkpoints_of_run,
    is_aside,
    is_checkpoint,
    lies_at,
    no_checkpoint,
    read_unchanged,
)


def save(folder, step=1):
    state = {"step": step, "epoch": 0, "batch": step}
    save_checkpoint(folder, Snapshot(weights={"w": torch.zeros(2)}, moments={}, prompts={}, state=state))
    return folder


def cut(folder):
    (folder / WEIGHTS).write_bytes(b"")
    return folder


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A run in a folder that anybody may enter, by its relative path."""
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
    run, partial, replaced, expected
):
    best = run / "best"
    shutil.rmtree(best)
    for kind, content in (("partial", partial), ("replaced", replaced)):
        if content is not None:
            folder = save(run / f".best.{kind}")
            if content == "cut":
                cut(folder)
    before = sorted(path.name for path in run.rglob("*"))
    place = lies_at(best)
    assert place == (run / f".best.{expected}" if expected else None)
    assert (best in checkpoints_of_run(run)) is (expected is not None)
    assert is_checkpoint(best) is (expected is not None)
    assert sorted(path.name for path in run.rglob("*")) == before
    # What training does with it is the measure: a broken old one stays where it is.
    content = (place / MANIFEST).read_bytes() if place else b""
    mend(best)
    assert best.exists() is (expected is not None and "whole" in (partial, replaced))
    if best.exists():
        assert (best / MANIFEST).read_bytes() == content


def test_a_best_one_that_is_in_its_place_is_read_there_whatever_lies_beside_it(run):
    save(run / ".best.partial", step=9)
    save(run / ".best.replaced", step=9)
    assert lies_at(run / "best") == run / "best"


def test_a_run_called_best_is_a_run(tmp_path):
    run = tmp_path / "best"
    step = save(step_folder(run / "checkpoints", 1))
    assert checkpoints_of_run(run) == [step]
    assert not is_checkpoint(run)
    (tmp_path / "aside_1_best").mkdir()
    assert is_checkpoint(tmp_path / "aside_1_best")


def test_a_link_to_nothing_is_a_checkpoint_that_has_to_be_told_of(run):
    link = step_folder(run / "checkpoints", 9)
    link.symlink_to("nowhere")
    assert link in checkpoints_of_run(run)
    assert no_checkpoint(link).startswith(f"{link} is a link to nowhere, which is not there. Give the folder of a")


def test_a_folder_that_cannot_be_read_is_not_an_empty_one(run):
    for folder, inside in ((run, run), (run / "checkpoints", run), (run, run / "best")):
        with without_rights(folder), pytest.raises(DataError) as raised:
            checkpoints_of_run(inside) if inside == run else is_checkpoint(inside)
        assert str(raised.value) == f"{folder} cannot be read (Permission denied): see who may read it."
    assert len(checkpoints_of_run(run)) == 2


@pytest.mark.parametrize("name", [MANIFEST, *FILES])
def test_any_of_its_files_makes_a_folder_a_checkpoint(tmp_path, name):
    assert not is_checkpoint(tmp_path)
    (tmp_path / name).touch()
    assert is_checkpoint(tmp_path)


def test_what_is_moved_while_it_is_read_is_read_again(run):
    best, calls = run / "best", []
    best.rename(run / ".best.replaced")

    def read(place):
        calls.append(place.name)
        if len(calls) == 1:
            place.rename(best)
            raise DataError("gone")
        return 7

    assert read_unchanged(best, read) == (best, 7)
    assert calls == [".best.replaced", "best"]


def test_what_is_broken_and_stays_so_is_read_once(run):
    calls = []

    def read(place):
        calls.append(place)
        raise DataError("broken")

    with pytest.raises(DataError, match=r"^broken$"):
        read_unchanged(run / "best", read)
    assert calls == [run / "best"]
    assert read_unchanged(run / "absent", read) is None
