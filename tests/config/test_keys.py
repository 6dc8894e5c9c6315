import pytest

from arcdist.config.keys import build, config_keys, config_sections, flatten, nearest
from arcdist.config.schema import Config, TrainConfig


def test_every_key_has_a_section_a_sentence_and_a_description_of_its_values() -> None:
    for key in config_keys().values():
        assert key.section in config_sections()
        assert key.sentence.endswith((".", ")")), key.name
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
