"""A frozen base is named by what its weights are, wherever they lie."""

import hashlib
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from transformers import AutoConfig, Qwen2Config, Qwen2ForCausalLM

from arcdist.checkpoint.base import base_identity, has_random_weights, read_base
from arcdist.config import QwenConfig
from arcdist.errors import DataError, PlatformError
from arcdist.models.qwen_source import TINY, load_body

WEIGHTS = {"model-1.safetensors": b"first", "model-2.safetensors": b"second" * 1000}


COMMIT = "0123456789abcdef0123456789abcdef01234567"


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


def cached(cache: Path, weights: dict[str, bytes], *, snapshots: str = "snapshots", blobs: str = "blobs") -> Path:
    """A model in the Hub's cache; its blobs are empty, so that whoever reads them computes something else."""
    snapshot = cache / snapshots / COMMIT
    for folder in (snapshot, cache / blobs):
        folder.mkdir(parents=True)
    for name, content in weights.items():
        blob = cache / blobs / hashlib.sha256(content).hexdigest()
        blob.write_bytes(b"")
        (snapshot / name).symlink_to(Path("..", "..", blobs, blob.name))
    return snapshot


def test_a_name_in_the_hub_s_cache_is_the_checksum_and_is_not_computed_again(tmp_path: Path) -> None:
    plain = model_folder(tmp_path / "plain", WEIGHTS)
    snapshot = cached(tmp_path / "hub" / "models--Qwen--Qwen2.5-1.5B", WEIGHTS)
    assert identity(snapshot) == identity(plain)
    (tmp_path / "elsewhere").symlink_to(tmp_path / "hub")
    assert identity(tmp_path / "elsewhere" / snapshot.relative_to(tmp_path / "hub")) == identity(plain)


@pytest.mark.parametrize(
    ("cache", "layout"),
    [
        ("Qwen2.5-1.5B", {}),
        ("models--Qwen--Qwen2.5-1.5B", {"snapshots": "versions"}),
        ("models--Qwen--Qwen2.5-1.5B", {"blobs": "files"}),
    ],
)
def test_in_no_other_layout_is_a_name_taken_for_a_checksum(tmp_path: Path, cache: str, layout: dict[str, str]) -> None:
    empty = model_folder(tmp_path / "empty", dict.fromkeys(WEIGHTS, b""))
    assert identity(cached(tmp_path / cache, WEIGHTS, **layout)) == identity(empty)


def test_nor_is_that_of_a_blob_which_is_another_model_s(tmp_path: Path) -> None:
    snapshot = cached(tmp_path / "models--a--b", {"model.safetensors": b"first"})
    other = cached(tmp_path / "models--c--d", {"model.safetensors": b"second"})
    link = snapshot / "model.safetensors"
    link.unlink()
    link.symlink_to(other.parents[1] / "blobs" / hashlib.sha256(b"second").hexdigest())
    assert identity(snapshot) == identity(model_folder(tmp_path / "empty", {"model.safetensors": b""}))


@pytest.mark.parametrize("place", ["empty", "absent", None])
def test_pretrained_weights_that_are_not_there_are_not_named_by_their_shape(tmp_path: Path, place: str | None) -> None:
    (tmp_path / "empty").mkdir()
    source = tmp_path / place if place else None
    with pytest.raises(
        PlatformError, match=rf"no weights as safetensors in {source or 'any folder'}, where they were "
    ):
        base_identity(config(source), "some/name", random=False, seed=0)


def test_pretrained_weights_that_cannot_be_read_are_told(tmp_path: Path) -> None:
    (tmp_path / "a.safetensors").mkdir()
    with pytest.raises(PlatformError, match=r"a\.safetensors cannot be read \(Is a directory\)"):
        base_identity(config(tmp_path), "some/name", random=False, seed=0)


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


@pytest.mark.parametrize(
    ("model", "init", "expected"),
    [
        ("Qwen/Qwen2.5-1.5B", "pretrained", False),
        ("Qwen/Qwen2.5-1.5B", "random", True),
        (TINY, "pretrained", True),
        (TINY, "random", True),
        ("models/mine", "pretrained", False),
    ],
)
def test_whether_weights_are_random(model: str, init: Literal["pretrained", "random"], expected: bool) -> None:
    assert has_random_weights(QwenConfig(model=model, init=init)) is expected


def test_a_relative_folder_is_named_so_that_it_is_found_from_anywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shape, _ = load_body(TINY, "random", torch.float32)
    model = "models/mine"
    Qwen2ForCausalLM(shape.config).save_pretrained(model)
    loaded = Qwen2ForCausalLM.from_pretrained(Path(model), config=AutoConfig.from_pretrained(Path(model))).base_model
    drawn, _ = load_body(model, "random", torch.float32)
    for body, random in ((loaded, False), (drawn, True)):
        named = base_identity(body.config, model, random=random, seed=0)
        kind = "random" if random else "folder"
        assert named == named | {"model": model, "kind": kind, "folder": str(tmp_path / model)}
        base = read_base(named, QwenConfig(model=model))
        assert (base.kind, base.name, base.sha256) == (kind, str(tmp_path / model), named["sha256"])


def test_a_name_whose_weights_lie_elsewhere_is_the_hub_s(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "some" / "name").mkdir(parents=True)  # which was not there when the weights were loaded
    named = base_identity(config(model_folder(tmp_path / "snapshot", WEIGHTS)), "some/name", random=False, seed=0)
    assert named == {"model": "some/name", "kind": "hub", "sha256": identity(tmp_path / "snapshot")}
    base = read_base(named, QwenConfig(model="some/name"))
    assert (base.kind, base.name) == ("hub", "some/name")


@pytest.mark.parametrize(
    ("model", "init", "kind", "name"),
    [
        (TINY, "pretrained", "random", TINY),
        ("Qwen/Qwen2.5-0.5B", "random", "random", "Qwen/Qwen2.5-0.5B"),
        ("Qwen/Qwen2.5-1.5B", "pretrained", "unknown", "Qwen/Qwen2.5-1.5B"),
        ("models/mine", "pretrained", "unknown", "models/mine"),
        ("./models/mine", "pretrained", "folder", "./models/mine"),
        ("models/mine/", "pretrained", "folder", "models/mine/"),
        ("/models/mine", "pretrained", "folder", "/models/mine"),
        ("~/mine", "pretrained", "folder", "/home/me/mine"),
    ],
)
def test_what_an_older_checkpoint_does_not_say_is_not_guessed(
    monkeypatch: pytest.MonkeyPatch,
    model: str,
    init: Literal["pretrained", "random"],
    kind: str,
    name: str,
) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    base = read_base({"model": model, "sha256": "ab"}, QwenConfig(model=model, init=init))
    assert (base.kind, base.name, base.sha256) == (kind, name, "ab")


def test_a_state_that_names_no_base_is_refused() -> None:
    with pytest.raises(DataError, match=r"does not say what base it belongs to: it lacks model, sha256\.$"):
        read_base({}, QwenConfig())
