"""The configuration tree seen flat: one dotted key a leaf, as flags and error messages name it."""

import difflib
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from types import NoneType
from typing import Any, Literal, get_args, get_origin, get_type_hints

import docstring_parser

from arcdist.config.schema import Config


@dataclass(frozen=True, kw_only=True, slots=True)
class Key:
    """One leaf of the configuration tree."""

    name: str
    """Dotted name, such as `data.augment.colors`."""
    type: Any
    """The field's type annotation."""
    default: object
    """Value where no recipe, file or flag gives one."""
    sentence: str
    """What the field means."""

    @property
    def section(self) -> str:
        """Dotted name of the dataclass that the leaf belongs to."""
        return self.name.rpartition(".")[0]

    @property
    def is_list(self) -> bool:
        """True for a key that holds several names."""
        return get_origin(self.type) is tuple

    @property
    def is_optional(self) -> bool:
        """True for a key that may be null."""
        return NoneType in get_args(self.type)

    @property
    def accepted(self) -> str:
        """The values that the key takes, in words: the end of "choose ..."."""
        return _accepted(self.type)


def _accepted(kind: Any) -> str:
    if get_origin(kind) is Literal:
        *others, last = map(str, get_args(kind))
        return f"{', '.join(others)} or {last}" if others else last
    if get_origin(kind) is tuple:
        return "names separated by commas"
    if members := get_args(kind):
        return " or ".join("null" if member is NoneType else _accepted(member) for member in members)
    return {int: "a whole number", float: "a finite number", bool: "true or false", str: "a text"}[kind]


def config_keys() -> dict[str, Key]:
    """Every key of the tree by its dotted name, in the tree's order."""
    return {key.name: key for key in _keys(Config, "", flatten(Config()))}


def _keys(part: Any, prefix: str, defaults: Mapping[str, object]) -> Iterator[Key]:
    sentences = {meta.args[1]: meta.description or "" for meta in docstring_parser.parse_from_object(part).params}
    for name, kind in get_type_hints(part).items():
        dotted = prefix + name
        if is_dataclass(kind):
            yield from _keys(kind, dotted + ".", defaults)
        else:
            yield Key(name=dotted, type=kind, default=defaults[dotted], sentence=sentences[name])


def config_sections() -> dict[str, str]:
    """The docstring of every section (`data`, `data.augment`, ...) by its dotted name, in the tree's order."""
    return dict(_sections(Config, ""))


def _sections(part: Any, prefix: str) -> Iterator[tuple[str, str]]:
    for name, kind in get_type_hints(part).items():
        if is_dataclass(kind):
            yield prefix + name, kind.__doc__ or ""
            yield from _sections(kind, f"{prefix}{name}.")


def flatten(config: Config) -> dict[str, object]:
    """The tree's leaves by dotted key, in the tree's order."""
    return dict(_leaves(config, ""))


def _leaves(part: Any, prefix: str) -> Iterator[tuple[str, object]]:
    for field in fields(part):
        value = getattr(part, field.name)
        if is_dataclass(value):
            yield from _leaves(value, f"{prefix}{field.name}.")
        else:
            yield prefix + field.name, value


def build(values: Mapping[str, object]) -> Config:
    """The tree from a value for every dotted key; the inverse of `flatten`.

    Raises:
        ConfigError: A value or a combination of values that the tree's own checks refuse.
    """
    config: Config = _build(Config, "", values)
    return config


def _build(part: Any, prefix: str, values: Mapping[str, object]) -> Any:
    return part(
        **{
            name: _build(kind, f"{prefix}{name}.", values) if is_dataclass(kind) else values[prefix + name]
            for name, kind in get_type_hints(part).items()
        }
    )


def nearest(name: str, choices: Collection[str]) -> str:
    """`Did you mean X?` for the choice most like `name`, with a space before it; empty where none is like it.

    Last parts are compared as well as whole names, so that a right name in a wrong section is found.
    """

    def likeness(choice: str) -> float:
        pairs = ((name, choice), (name.rpartition(".")[2], choice.rpartition(".")[2]))
        return max(difflib.SequenceMatcher(a=left, b=right).ratio() for left, right in pairs)

    best = max(choices, key=likeness)
    return f" Did you mean {best}?" if likeness(best) >= 0.6 else ""
