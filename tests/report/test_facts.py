"""What a run was, and where it differs from its recipe."""

import json

from arcdist.config import Config, load_config
from arcdist.config.keys import flatten
from arcdist.report.facts import Difference, differences, facts, shown


def read_back(*flags):
    """A configuration as it is read from a run folder."""
    return json.loads(json.dumps(flatten(load_config([*flags]).config)))


def test_a_run_of_a_recipe_differs_nowhere(make_record):
    assert differences(make_record(config=read_back("--recipe", "quickstart"))) == ("the recipe quickstart", [])


def test_what_the_flags_changed(make_record):
    config = read_back("--seed", "7", "--qwen.lora_targets", "q_proj,v_proj", "--output_dir", "runs/x")
    assert differences(make_record(config=config)) == (
        "the recipe quickstart",
        [
            Difference(key="qwen.lora_targets", run="[q_proj, v_proj]", recipe="[all-linear]"),
            Difference(key="train.seed", run="7", recipe="0"),
        ],
    )


def test_without_a_recipe_the_defaults_count(make_record):
    config = json.loads(json.dumps(flatten(Config()))) | {"train.epochs": 3, "train.no_longer": 1}
    against, found = differences(make_record(config=config, recipe=None))
    assert against == "the defaults"
    assert [(one.key, one.run) for one in found] == [("train.epochs", "3"), ("train.no_longer", "1")]
    assert found[1].recipe == "–"
    assert differences(make_record(config=config, recipe="of_another_version"))[0] == "the defaults"


def test_facts_of_an_older_run_have_dashes(make_record):
    told = dict(facts(make_record(zero_stage=2, started="yesterday")))
    assert told["Qwen"] == "–, LoRA rank –"
    assert (told["commit"], told["seed"], told["validation queries"]) == ("–", "–", "–")
    assert (told["DeepSpeed"], told["started"]) == ("ZeRO-2", "yesterday")
    assert dict(facts(make_record(config={"qwen.model": "x"})))["started"] == "2026-01-02 03:04:05 UTC"


def test_settings_as_one_would_write_them():
    assert [shown(value) for value in (True, 1, 1.0, None, ["a", "b"], "no")] == [
        "true", "1", "1.0", "null", "[a, b]", "no"
    ]  # fmt: skip
