"""A frozen base is named by what its weights are, wherever they lie."""

import hashlib
from pathlib import Path
from typing import Any

import pytest
from transformers import Qwen2Config

from arcdist.models.base_identity import base_identity

WEIGHTS = {"model-1.safetensors": b"first", "model-2.safetensors": b"second" * 1000}


def config(folder: Path | None = None, **changes: Any) -> Qwen2Config:
    made = Qwen2Config(hidden_size=16, num_hidden_layers=1, **changes)
    made.name_or_path = str(folder or "")
    return made


def model_folder(folder: Path, weights: dict[str, bytes]) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    for name, content in weights.items():
        (folder / name).write_bytes(content)
    return folder


def identity(folder: Path, seed: int = 0) -> str:
    named = base_identity(config(folder), "some/name", random=False, seed=seed)
    assert named["model"] == "some/name"
    return named["sha256"]


def test_weights_are_named_by_their_bytes_not_by_their_place_or_the_seed(tmp_path: Path) -> None:
    first = model_folder(tmp_path / "a", WEIGHTS)
    second = model_folder(tmp_path / "b", dict(reversed(WEIGHTS.items())))
    (second / "README.md").write_text("no weights")
    assert identity(first) == identity(second, seed=1)
    # Computed by hand: names and checksums, in the order of the names.
    lines = "".join(f"{name}\0{hashlib.sha256(WEIGHTS[name]).hexdigest()}\0" for name in sorted(WEIGHTS))
    assert identity(first) == hashlib.sha256(lines.encode()).hexdigest()


@pytest.mark.parametrize(
    "other",
    [
        {**WEIGHTS, "model-1.safetensors": b"First"},
        {**WEIGHTS, "model-2.safetensors": b"second" * 999},
        {**WEIGHTS, "model-3.safetensors": b""},
        {"model-1.safetensors": b"first"},
        {"model-2.safetensors": b"first", "model-1.safetensors": b"second" * 1000},
    ],
)
def test_other_bytes_are_another_base(tmp_path: Path, other: dict[str, bytes]) -> None:
    assert identity(model_folder(tmp_path / "a", WEIGHTS)) != identity(model_folder(tmp_path / "b", other))


def test_a_name_in_the_hub_s_cache_is_the_checksum_and_is_not_computed_again(tmp_path: Path) -> None:
    plain = model_folder(tmp_path / "plain", WEIGHTS)
    cached = model_folder(tmp_path / "cached", {})
    for name, content in WEIGHTS.items():
        blob = tmp_path / hashlib.sha256(content).hexdigest()
        blob.write_bytes(b"")  # so that whoever reads it computes something else
        (cached / name).symlink_to(blob)
    assert identity(cached) == identity(plain)


def test_a_link_to_a_file_of_any_other_name_is_read(tmp_path: Path) -> None:
    plain = model_folder(tmp_path / "plain", WEIGHTS)
    linked = model_folder(tmp_path / "linked", {})
    for name, content in WEIGHTS.items():
        (tmp_path / f"my {name}").write_bytes(content)
        (linked / name).symlink_to(tmp_path / f"my {name}")
    assert identity(linked) == identity(plain)
    # Nor is a file that only has such a name, without a link to it, taken at its word.
    name = "0" * 64
    odd = model_folder(tmp_path / "odd", {f"{name}.safetensors": b"first"})
    assert identity(odd) != identity(model_folder(tmp_path / "even", {f"{name}.safetensors": b"second"}))


def random_identity(seed: int = 0, folder: Path | None = None, **changes: Any) -> str:
    return base_identity(config(folder, **changes), "embedded:tiny", random=True, seed=seed)["sha256"]


def test_random_weights_are_named_by_their_shape_and_their_seed(tmp_path: Path) -> None:
    assert random_identity() == random_identity()
    others = [
        random_identity(seed=1),
        random_identity(intermediate_size=24),
        random_identity(vocab_size=99),
        random_identity(rms_norm_eps=1e-5),
        random_identity(tie_word_embeddings=True),
    ]
    assert len({random_identity(), *others}) == 6
    # Weights that lie beside the configuration are not what such a model is made of.
    assert random_identity(folder=model_folder(tmp_path / "a", WEIGHTS)) == random_identity()
