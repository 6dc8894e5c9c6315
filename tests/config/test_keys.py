"""The tree as dotted keys and as YAML."""

from pathlib import Path

import pytest
import yaml

from arcdist.config.keys import (
    Text,
    build,
    config_keys,
    config_sections,
    flatten,
    format_config,
    nearest,
    parse_yaml,
    save_config,
)
from arcdist.config.schema import Config, DataConfig, OutputConfig, TrainConfig
from arcdist.errors import ConfigError


def test_every_key_has_a_section_a_sentence_and_a_description_of_its_values() -> None:
    for key in config_keys().values():
        assert key.section in config_sections()
        assert key.sentence.endswith((".", ")")), key.name
        assert key.sentence == " ".join(key.sentence.split()), key.name
        assert key.accepted


def test_sections_carry_their_docstring() -> None:
    sections = config_sections()
    assert list(sections)[:3] == ["data", "data.augment", "qwen"]
    assert sections["train"] == "How long, on what, with which seed."


@pytest.mark.parametrize(
    ("name", "default", "accepted"),
    [
        ("train.epochs", 10, "a whole number"),
        ("train.max_batches", None, "a whole number or null"),
        ("qwen.gradient_checkpointing", False, "true or false"),
        ("train.precision", "no", "no, bf16 or fp16"),
        ("optim.agent_lr", 1e-4, "a finite number"),
        ("output.dir", None, "a text or null"),
        ("qwen.lora_targets", ("all-linear",), "names separated by commas"),
        ("data.augment.order", True, "true or false"),
    ],
)
def test_a_key_knows_its_default_and_its_values(name: str, default: object, accepted: str) -> None:
    key = config_keys()[name]
    assert key.default == default
    assert key.accepted == accepted


def test_build_is_the_inverse_of_flatten() -> None:
    config = Config(train=TrainConfig(epochs=3, seed=7))
    values = flatten(config)
    assert values["train.epochs"] == 3
    assert list(values) == list(config_keys())
    assert build(values) == config


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("train.epoch", "train.epochs"),
        ("data.maxside", "data.max_side"),
        ("train.max_side", "data.max_side"),
        ("data.colors", "data.augment.colors"),
        ("agent_lr", "optim.agent_lr"),
    ],
)
def test_nearest_finds_misspelt_keys_and_keys_of_another_section(name: str, meant: str) -> None:
    assert nearest(name, config_keys()) == f" Did you mean {meant}?"


def test_nearest_is_silent_where_nothing_is_like_the_name() -> None:
    assert nearest("zzz", config_keys()) == ""


def texts(yaml_text: str) -> dict[str, Text]:
    given = parse_yaml(yaml_text, "mine.yaml")
    return {key: value.text for key, value in given.items()}


def test_values_stay_the_text_that_was_written() -> None:
    assert texts("train: {precision: no, epochs: 3, max_batches: null}\noptim: {agent_lr: 1e-4}") == {
        "train.precision": "no",
        "train.epochs": "3",
        "train.max_batches": None,
        "optim.agent_lr": "1e-4",
    }


def test_nested_sections_dotted_keys_and_lists() -> None:
    assert texts("data:\n  augment:\n    colors: false\ntrain.seed: 3\nqwen:\n  lora_targets: [q_proj, v_proj]") == {
        "data.augment.colors": "false",
        "train.seed": "3",
        "qwen.lora_targets": ["q_proj", "v_proj"],
    }


@pytest.mark.parametrize("empty", ["", "# nothing yet\n", "train:\n", "data:\n  augment:\n"])
def test_an_empty_file_or_section_gives_nothing(empty: str) -> None:
    assert texts(empty) == {}


def test_the_place_names_file_and_line() -> None:
    given = parse_yaml("train:\n  epochs: 3\n", "mine.yaml")
    assert given["train.epochs"].where == "mine.yaml, line 2"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("train:\n  epoch: 3", "mine.yaml, line 2: there is no key train.epoch. Did you mean train.epochs?"),
        ("trian:\n  epochs: 3", "mine.yaml, line 2: there is no key trian. Did you mean train?"),
        (
            "data:\n  augment:\n    colours: true",
            "mine.yaml, line 3: there is no key data.augment.colours. Did you mean data.augment.colors?",
        ),
        (
            "train:\n  seed: 1\n  seed: 2",
            "mine.yaml, line 3: train.seed is given a second time, after mine.yaml, line 2. Keep one of them.",
        ),
        ("train: 3", "mine.yaml, line 1: train is a section; give its keys, as in `train: KEY: VALUE`."),
        ("[1, 2]", "mine.yaml, line 1: a configuration is made of sections; give its keys"),
        ("train:\n  epochs: {a: 1}", "mine.yaml, line 2: train.epochs takes one value or a list of names"),
        ("train:\n  epochs: [3\n", "mine.yaml, line 3, column 1: broken YAML, "),
        ("train:\n\tepochs: 3", "mine.yaml, line 2, column 1: broken YAML, "),
        ("train: \x00", "mine.yaml: not YAML, "),
        ("data: &loop\n  augment: *loop", "mine.yaml, line 1: there is no key data.augment.augment."),
    ],
)
def test_what_cannot_be_read_is_reported_with_its_place(text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        texts(text)
    assert str(caught.value).startswith(message)


ODD = Config(
    data=DataConfig(source="hf: a # b", allow_overlap=("x", "null", "3")),
    train=TrainConfig(precision="no", max_batches=5),
    output=OutputConfig(dir="läufe/no"),
)


def test_a_formatted_configuration_is_yaml_of_the_same_values() -> None:
    document = yaml.safe_load(format_config(ODD))
    assert document["data"]["source"] == "hf: a # b"
    assert document["data"]["allow_overlap"] == ["x", "null", "3"]
    assert document["data"]["augment"] == {"dihedral": True, "colors": True, "order": True}
    assert document["train"]["precision"] == "no"
    assert document["train"]["max_batches"] == 5
    assert document["output"]["dir"] == "läufe/no"


def test_each_line_says_where_its_value_came_from() -> None:
    config = Config(train=TrainConfig(epochs=3))
    sources = {**dict.fromkeys(flatten(config), "default"), "train.epochs": "flag"}
    lines = {line.split("#")[0].strip(): line.partition("# ")[2] for line in format_config(config, sources).split("\n")}
    assert lines["epochs: 3"] == "flag"
    assert lines["seed: 0"] == "default"
    assert lines["train:"] == ""


def test_save_config_writes_what_format_config_gives(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    save_config(ODD, path)
    assert path.read_text(encoding="utf-8") == format_config(ODD)


def test_who_reads_while_a_configuration_is_written_finds_a_whole_one(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    save_config(Config(), path)
    with path.open(encoding="utf-8") as reader:
        save_config(ODD, path)
        assert reader.read() == format_config(Config())
    assert path.read_text(encoding="utf-8") == format_config(ODD)
    assert [file.name for file in tmp_path.iterdir()] == ["config.yaml"]
