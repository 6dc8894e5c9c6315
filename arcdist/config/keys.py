"""The configuration tree seen flat: one dotted key a leaf, as flags and error messages name it."""

import difflib
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from types import NoneType
from typing import Any, Literal, get_args, get_origin, get_type_hints

import docstring_parser
import yaml

from arcdist.config.schema import Config
from arcdist.errors import ConfigError


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


Text = str | list[str] | None
"""A value as it was written: a scalar's characters, a list of them, or null."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RawValue:
    """A value that somebody wrote, before its type is checked."""

    text: Text
    """What was written. Left as text, so that `precision: no` in a file means what `--train.precision no` means."""
    where: str
    """The place, in words, for error messages."""


def parse_yaml(text: str, name: str, keys: Collection[str], sections: Collection[str]) -> dict[str, RawValue]:
    """The dotted keys that a YAML text gives.

    Args:
        text: The YAML document; an empty one gives nothing.
        name: What error messages call it.
        keys: The dotted keys that exist.
        sections: The dotted names of the mappings that hold them.

    Raises:
        ConfigError: Broken YAML, an unknown key, a key given twice, or a value of a shape that no key has.
    """
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise ConfigError(f"{name}{line}: broken YAML, {error.problem}. Mend it there or just above.") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{name}: not YAML, {error}. Give a plain text file.") from error

    found: dict[str, RawValue] = {}
    for key, node in _entries(root, "", name, sections) if root else ():
        where = f"{name}, line {node.start_mark.line + 1}"
        if key not in keys:
            raise ConfigError(f"{where}: there is no key {key}.{nearest(key, [*keys, *sections])}")
        if key in found:
            raise ConfigError(f"{where}: {key} is given a second time, after {found[key].where}. Keep one of them.")
        found[key] = RawValue(text=_text(node, key, where), where=where)
    return found


def _entries(node: yaml.Node, prefix: str, name: str, sections: Collection[str]) -> Iterator[tuple[str, yaml.Node]]:
    if _is_null(node):
        return
    if not isinstance(node, yaml.MappingNode):
        what = f"{prefix[:-1]} is a section" if prefix else "a configuration is made of sections"
        example = f"{prefix or 'train.'}KEY".replace(".", ": ")
        raise ConfigError(f"{name}, line {node.start_mark.line + 1}: {what}; give its keys, as in `{example}: VALUE`.")
    for key_node, value_node in node.value:
        key = f"{prefix}{key_node.value}"
        if key in sections:
            yield from _entries(value_node, key + ".", name, sections)
        else:
            yield key, value_node


def _is_null(node: yaml.Node) -> bool:
    return node.tag == "tag:yaml.org,2002:null"


def _text(node: yaml.Node, key: str, where: str) -> Text:
    if isinstance(node, yaml.ScalarNode):
        return None if _is_null(node) else node.value
    if isinstance(node, yaml.SequenceNode) and all(isinstance(item, yaml.ScalarNode) for item in node.value):
        return [item.value for item in node.value]
    raise ConfigError(f"{where}: {key} takes one value or a list of names, not a nested structure.")


def format_config(config: Config, sources: Mapping[str, str] | None = None) -> str:
    """The configuration as YAML that `--config` reads back; `sources` adds where each line's value came from."""
    lines: list[tuple[str, str]] = []
    opened: set[str] = set()
    for key, value in flatten(config).items():
        *sections, leaf = key.split(".")
        for depth, section in enumerate(sections):
            path = ".".join(sections[: depth + 1])
            if path not in opened:
                opened.add(path)
                lines.append((f"{'  ' * depth}{section}:", ""))
        comment = f"# {sources[key]}" if sources else ""
        lines.append((f"{'  ' * len(sections)}{leaf}: {_inline(value)}", comment))
    width = max(len(line) for line, _ in lines)
    return "".join(f"{line:<{width}}  {comment}".rstrip() + "\n" for line, comment in lines)


def _inline(value: object) -> str:
    plain = list(value) if isinstance(value, tuple) else value
    dumped = yaml.safe_dump(plain, default_flow_style=True, width=float("inf"), allow_unicode=True)
    return dumped.removesuffix("...\n").strip()


def save_config(config: Config, path: Path) -> None:
    """Write the configuration to a YAML file that `--config` reads back."""
    path.write_text(format_config(config), encoding="utf-8")
