"""A run in TensorBoard: each step once, however often it was resumed."""

import io
import math

import numpy as np
import pytest
from PIL import Image
from shared.made_runs import make_run
from shared.mirrored import catch_up, log_steps
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from arcdist.analysis.record import read_run_folder
from arcdist.tracking.grids import query_picture
from arcdist.tracking.mirror import Mirrors
from arcdist.tracking.tensorboard import TensorBoardMirror


@pytest.fixture(scope="module")
def record(tmp_path_factory):
    return read_run_folder(make_run(tmp_path_factory.mktemp("made") / "source"))


@pytest.fixture(scope="module")
def events(tmp_path_factory, record):
    """Of a run that was ended after step 70 and resumed after step 40."""
    folder = tmp_path_factory.mktemp("run")
    for resumed_after, steps in ((0, range(10, 71, 10)), (40, range(50, 121, 10))):
        mirrors = Mirrors([TensorBoardMirror(folder, record.identity)])
        catch_up(mirrors, record, resumed_after)
        log_steps(mirrors, record, steps)
        mirrors.close(0)
    assert len(list((folder / "tensorboard").iterdir())) == 1
    found = EventAccumulator(str(folder / "tensorboard"), size_guidance={"scalars": 0, "images": 0})
    found.Reload()
    return found


def scalars(events, tag):
    return [(event.step, event.value) for event in events.Scalars(tag)]


def test_each_step_is_there_once_with_its_numbers(events, record):
    assert scalars(events, "loss") == [(step["step"], float(np.float32(step["loss"]))) for step in record.steps]
    assert {tag for tag in events.Tags()["scalars"] if "/" not in tag} == {
        name for name in record.steps[0] if "/" not in name and name not in ("step", "flags")
    }


def test_numbers_of_epochs_are_at_their_last_step(events, record):
    ends = [validation.step for validation in record.validations]
    for tag, name in (("val/exact", "val/exact"), ("epoch/train/loss", "train/loss"), ("floor/copy_cell",) * 2):
        assert scalars(events, tag) == [
            (end, float(np.float32(epoch[name]))) for end, epoch in zip(ends, record.epochs, strict=True)
        ]


def test_they_are_at_the_time_when_they_were_logged(events, record):
    first, second = events.Scalars("loss")[:2]
    between = record.steps[1]["time/elapsed_s"] - record.steps[0]["time/elapsed_s"]
    assert math.isclose(second.wall_time - first.wall_time, between, rel_tol=1e-3)


def test_shown_queries_are_pictures(events, record):
    shown = record.validations[-1].shown
    assert set(events.Tags()["images"]) == {f"validation/{query.id}" for query in shown}
    pictures = events.Images(f"validation/{shown[0].id}")
    assert [picture.step for picture in pictures] == [40, 80, 120]
    picture = Image.open(io.BytesIO(pictures[-1].encoded_image_string))
    assert (picture.width, picture.height) == (pictures[-1].width, pictures[-1].height)
    assert np.array_equal(np.asarray(picture.convert("RGB")), np.asarray(query_picture(shown[0]).convert("RGB")))
