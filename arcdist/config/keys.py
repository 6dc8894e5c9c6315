"""The configuration tree as dotted keys, which flags and error messages name, and as YAML, which files hold."""

import difflib
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, is_dataclass
from functools import cache
from operator import attrgetter
from pathlib import Path
from types import NoneType
from typing import Any, Literal, NamedTuple, get_args, get_origin, get_type_hints

import docstring_parser
import yaml

from arcdist.config.schema import Config
from arcdist.errors import ConfigError
from arcdist.files import replacing

REMOVED_KEYS = {
    "qwen.numeric_in_dim": "there are always 15 transformation features",
    "agent.num_colors": "ARC always has 10 colours",
    "refiner.rl_feat_dim": "the grid summary always has 32 numbers",
    "refiner.rl_prompt_dim": "it is always qwen.prompt_dim",
    "refiner.rl_ctrl_dim": "it is always qwen.prompt_dim",
}
"""Keys that older configuration files hold, with the reason why nothing needs them; a file may still have them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Key:
    """One leaf of the configuration tree."""

    name: str
    """Dotted name, such as `data.augment.colors`."""
    type: Any
    """The field's type annotation."""
    default: object
    """Value if no recipe, file or flag gives one."""
    sentence: str
    """What the field means."""

    @property
    def section(self) -> str:
        """Dotted name of the dataclass that the leaf belongs to."""
        return self.name.rpartition(".")[0]

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


@cache
def config_keys() -> dict[str, Key]:
    """Every key of the tree by its dotted name, in the tree's order."""
    defaults = Config()
    return {
        name: Key(name=name, type=kind, default=attrgetter(name)(defaults), sentence=sentence)
        for name, kind, sentence in _tree(Config, "")
        if not is_dataclass(kind)
    }


@cache
def config_sections() -> dict[str, str]:
    """What every section (`data`, `data.augment`, ...) is about, by its dotted name, in the tree's order."""
    sections = {name: kind.__doc__ or "" for name, kind, _ in _tree(Config, "") if is_dataclass(kind)}
    return {name: text.partition("\n\n")[0] for name, text in sections.items()}


def _tree(part: Any, prefix: str) -> Iterator[tuple[str, Any, str]]:
    """Dotted name, type and docstring of every field, a section before what it holds."""
    # A sentence that goes over several lines keeps its indentation there.
    described = docstring_parser.parse_from_object(part).params
    sentences = {meta.args[1]: " ".join((meta.description or "").split()) for meta in described}
    for name, kind in get_type_hints(part).items():
        yield prefix + name, kind, " ".join(sentences.get(name, "").split())
        if is_dataclass(kind):
            yield from _tree(kind, f"{prefix}{name}.")


def flatten(config: Config) -> dict[str, object]:
    """The tree's leaves by dotted key, in the tree's order."""
    return {name: attrgetter(name)(config) for name in config_keys()}


def dotted(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The leaves of nested mappings by dotted key."""
    leaves: dict[str, Any] = {}
    for name, value in tree.items():
        leaves |= dotted(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {prefix + name: value}
    return leaves


def build(values: Mapping[str, object]) -> Config:
    """The tree from a value for every dotted key; the inverse of `flatten`.

    Raises:
        ConfigError: A value or a combination of values that the tree's own checks refuse.
    """

    def section(kind: Any, prefix: str) -> Any:
        return kind(
            **{
                name: section(hint, f"{prefix}{name}.") if is_dataclass(hint) else values[prefix + name]
                for name, hint in get_type_hints(kind).items()
            }
        )

    config: Config = section(Config, "")
    return config


def nearest(name: str, choices: Collection[str]) -> str:
    """` Did you mean X?` for the choice most like `name`; empty if none is like it.

    Last parts are compared as well as whole names, so that a right name in a wrong section is found.
    """

    def likeness(choice: str) -> float:
        pairs = ((name, choice), (name.rpartition(".")[2], choice.rpartition(".")[2]))
        return max(difflib.SequenceMatcher(a=left, b=right).ratio() for left, right in pairs)

    best = max(choices, key=likeness)
    return f" Did you mean {best}?" if likeness(best) >= 0.6 else ""


Text = str | list[str] | None
"""A value as it was written: text, so that `precision: no` in a file means what `--train.precision no` means."""


class RawValue(NamedTuple):
    """A value before its type is checked."""

    text: Text
    where: str
    """The place, in words, for error messages."""


def parse_yaml(text: str, name: str) -> dict[str, RawValue]:
    """The dotted keys that a YAML text gives, removed ones included.

    Args:
        text: The YAML document; an empty one gives nothing.
        name: What error messages call it.

    Raises:
        ConfigError: Broken YAML, an unknown key, a key given twice, or a value of a shape that no key has.
    """
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise ConfigError(f"{name}{line}: broken YAML, {error.problem}. Correct it there or just above.") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{name}: not YAML, {error}. Give a plain text file.") from error

    found: dict[str, RawValue] = {}
    for key, node in _entries(root, "", name) if root else ():
        where = f"{name}, line {node.start_mark.line + 1}"
        if key not in config_keys() and key not in REMOVED_KEYS:
            suggestion = nearest(key, [*config_keys(), *config_sections()])
            raise ConfigError(f"{where}: there is no key {key}.{suggestion}")
        if key in found:
            raise ConfigError(f"{where}: {key} is given a second time, after {found[key].where}. Keep one of them.")
        found[key] = RawValue(_text(node, key, where), where)
    return found


def _entries(node: yaml.Node, prefix: str, name: str) -> Iterator[tuple[str, yaml.Node]]:
    if _is_null(node):
        return
    if not isinstance(node, yaml.MappingNode):
        what = f"{prefix[:-1]} is a section" if prefix else "a configuration is made of sections"
        example = f"{prefix or 'train.'}KEY".replace(".", ": ")
        raise ConfigError(f"{name}, line {node.start_mark.line + 1}: {what}; give its keys, as in `{example}: VALUE`.")
    for key_node, value_node in node.value:
        key = f"{prefix}{key_node.value}"
        if key in config_sections():
            yield from _entries(value_node, key + ".", name)
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
    lines = []
    opened: set[str] = set()
    for key, value in flatten(config).items():
        *sections, leaf = key.split(".")
        for depth, section in enumerate(sections):
            if (path := ".".join(sections[: depth + 1])) not in opened:
                opened.add(path)
                lines.append((f"{'  ' * depth}{section}:", ""))
        plain = list(value) if isinstance(value, tuple) else value
        dumped = yaml.safe_dump(plain, default_flow_style=True, width=float("inf"), allow_unicode=True)
        inline = dumped.removesuffix("...\n").strip()
        lines.append((f"{'  ' * len(sections)}{leaf}: {inline}", f"# {sources[key]}" if sources else ""))
    width = max(len(line) for line, _ in lines)
    return "".join(f"{line:<{width}}  {comment}".rstrip() + "\n" for line, comment in lines)


def save_config(config: Config, path: Path) -> None:
    """Write the configuration to a YAML file that `--config` reads back."""
    with replacing(path) as partial:
        partial.write_text(format_config(config), encoding="utf-8")
