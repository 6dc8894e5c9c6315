"""Configurations as YAML: read to dotted keys with their lines, written with where each value came from."""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import yaml

from arcdist.config.keys import flatten, nearest
from arcdist.config.schema import Config
from arcdist.errors import ConfigError

Text = str | list[str] | None
"""A value as it was written: a scalar's characters, a list of them, or null."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Given:
    """A value that somebody wrote, before its type is checked."""

    text: Text
    """What was written. Left as text, so that `precision: no` in a file means what `--train.precision no` means."""
    where: str
    """The place, in words, for error messages."""


def parse_yaml(text: str, name: str, keys: Collection[str], sections: Collection[str]) -> dict[str, Given]:
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

    found: dict[str, Given] = {}
    for key, node in _entries(root, "", name, sections) if root else ():
        where = f"{name}, line {node.start_mark.line + 1}"
        if key not in keys:
            raise ConfigError(f"{where}: there is no key {key}.{nearest(key, [*keys, *sections])}")
        if key in found:
            raise ConfigError(f"{where}: {key} is given a second time, after {found[key].where}. Keep one of them.")
        found[key] = Given(text=_text(node, key, where), where=where)
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
