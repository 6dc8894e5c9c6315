import json

import pytest
import yaml

from arcdist.config import load_config
from arcdist.models.base_identity import Base
from arcdist.models.embedded import TINY
from arcdist.training.model_card import Facts, model_card

NAMES = {"hub": "Qwen/Qwen2.5-1.5B", "folder": "/data/models/Qwen2.5-1.5B", "random": TINY, "unknown": "models/mine"}


def card(kind="hub", **progress):
    flags = ["--train.batch_size=7", f"--qwen.model={TINY if kind == 'random' else 'models/mine'}"]
    return model_card(
        Facts(
            config=load_config(flags).config,
            state={"step": 10, "epoch": 2, "batch": 0, "processes": 1, "epochs": [], "versions": {}} | progress,
            base=Base(kind=kind, name=NAMES[kind], sha256="ab" * 32),
            averaged=True,
            without_control_mlp=False,
        )
    )


@pytest.mark.parametrize(
    ("kind", "named", "told", "code"),
    [
        ("hub", "Qwen/Qwen2.5-1.5B", "pretrained weights from the Hugging Face Hub,", ""),
        (
            *("folder", None, "pretrained weights from the folder `/data/models/Qwen2.5-1.5B`,"),
            "  # or where a copy of that folder lies",
        ),
        (
            *("unknown", None, "pretrained weights, from a folder or from the Hugging Face Hub: the checkpoint does"),
            "  # the run's folder of that name, or the Hub's model",
        ),
    ],
)
def test_only_what_came_from_the_hub_is_named_as_a_repository(kind, named, told, code):
    text = card(kind)
    assert yaml.safe_load(text.split("---\n")[1]).get("base_model") == named
    assert told in text
    assert f"base = AutoModel.from_pretrained({json.dumps(NAMES[kind])}, dtype=torch.float32){code}\n" in text
    assert f"SHA-256 `{'ab' * 32}`" in text


def test_random_weights_are_drawn_again():
    text = card("random")
    assert "base_model" not in text
    assert f"| base | `{TINY}`, random weights, float32" in text
    assert f'base, _ = load_body("{TINY}", "random", torch.float32, seed=0)' in text


@pytest.mark.parametrize(
    ("progress", "told"),
    [
        ({}, "10 steps of up to 7 queries each; 2 whole epochs"),
        ({"step": 1, "epoch": 0, "batch": 1}, "1 step of up to 7 queries each; 0 whole epochs and 1 step of the next"),
        (
            {"step": 12345, "epoch": 1, "batch": 2345},
            "12,345 steps of up to 7 queries each; 1 whole epoch and 2,345 steps of the next",
        ),
    ],
)
def test_how_long_it_was_trained_is_counted_in_words(progress, told):
    assert f"| length | {told} |" in card(**progress)
