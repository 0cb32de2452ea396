"""YAML with the rules of YAML 1.2 and the place of every key.

PyYAML follows YAML 1.1, which reads ``9e-4`` as text and ``on`` as true, and it drops the first of two
equal keys in silence.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from .errors import InputError

KeyPath = tuple[str | int, ...]


class Loader(yaml.SafeLoader):
    """A safe loader whose plain words follow the YAML 1.2 core schema."""


# None of the inherited words.
Loader.yaml_implicit_resolvers = {}
Loader.add_implicit_resolver(
    "tag:yaml.org,2002:null", re.compile(r"^(?:~|null|Null|NULL|)$"), ["~", "n", "N", ""]
)
Loader.add_implicit_resolver(
    "tag:yaml.org,2002:bool", re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF")
)
Loader.add_implicit_resolver("tag:yaml.org,2002:int", re.compile(r"^[-+]?[0-9]+$"), list("-+0123456789"))
Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(
        r"^(?:[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$"
    ),
    list("-+.0123456789"),
)


class Dumper(yaml.SafeDumper):
    """Quotes every text that the loader, or one of YAML 1.1, would read as something else."""


for _first, _resolvers in Loader.yaml_implicit_resolvers.items():
    for _tag, _regexp in _resolvers:
        Dumper.add_implicit_resolver(_tag, _regexp, [_first])


def _construct_int(loader: Loader, node: yaml.ScalarNode) -> int:
    # YAML 1.1 would read a leading zero as octal.
    number = int(loader.construct_scalar(node)) if len(node.value) <= LONGEST_NUMBER else 2**64
    if not -(2**63) <= number < 2**64:
        raise yaml.constructor.ConstructorError(
            problem="a whole number of more than 64 bits", problem_mark=node.start_mark
        )
    return number


def _refuse_tag(loader: Loader, node: yaml.Node) -> None:
    raise yaml.constructor.ConstructorError(
        problem=f"the tag {node.tag!r} is none of plain data", problem_mark=node.start_mark
    )


Loader.add_constructor("tag:yaml.org,2002:int", _construct_int)
# Dates, sets and bytes are no values of any key.
for _tag in ("timestamp", "binary", "set", "omap", "pairs"):
    Loader.add_constructor(f"tag:yaml.org,2002:{_tag}", _refuse_tag)


# What reading YAML can end in: its own errors, and those of a tag whose value does not fit it.
UNREADABLE = (yaml.YAMLError, ValueError, TypeError, LookupError, AttributeError, RecursionError)
# Characters of a file; keys, items and values of it with all its aliases written out; how deep they may lie.
MOST_CHARACTERS, MOST_NODES, DEEPEST = 1_000_000, 100_000, 50
LONGEST_NUMBER = 30


def refuse_bombs(root: yaml.Node, where: str) -> None:
    """Refuse what would grow without bound when its aliases are written out, or lies too deep.

    Raises:
        InputError: naming the limit.
    """
    sizes: dict[int, int] = {}
    open_nodes: set[int] = set()

    def size(node: yaml.Node, depth: int) -> int:
        if id(node) in open_nodes:
            raise InputError(f"{where}: an alias stands inside what it stands for; write it out.")
        if depth > DEEPEST:
            raise InputError(f"{where}: lists and mappings lie more than {DEEPEST} deep in each other.")
        if id(node) not in sizes:
            open_nodes.add(id(node))
            sizes[id(node)] = 1 + sum(size(child, depth + 1) for child in children(node))
            open_nodes.remove(id(node))
        if sizes[id(node)] > MOST_NODES:
            raise InputError(f"{where}: its aliases stand for more than {MOST_NODES:,} values.")
        return sizes[id(node)]

    size(root, 0)


def children(node: yaml.Node) -> list[yaml.Node]:
    """Return the keys and values of a mapping, the items of a list, nothing of a scalar."""
    if isinstance(node, yaml.MappingNode):
        return [part for pair in node.value for part in pair]
    return list(node.value) if isinstance(node, yaml.SequenceNode) else []


@dataclass(frozen=True, kw_only=True)
class YamlFile:
    """What a YAML file says, and where.

    Attributes:
        data: the content as plain mappings, lists and scalars.
        places: for each key path the ``file:line:column`` of the key.
    """

    data: Any
    places: dict[KeyPath, str]


def parse_value(text: str) -> Any:
    """Return the value of one YAML scalar or flow collection, as ``--set key=value`` takes it.

    Raises:
        InputError: for a number of more than 64 bits, and for what would grow without bound.
    """
    try:
        root = yaml.compose(text, Loader)
        if root is None:
            return None
        refuse_bombs(root, "--set")
        return yaml.load(text, Loader)
    except InputError:
        raise
    except UNREADABLE as error:
        if isinstance(error, yaml.constructor.ConstructorError):
            raise InputError(f"--set: {text[:60]!r} is no value ({error.problem}).") from None
        return text


def dump_yaml(data: Any) -> str:
    """Return plain data as YAML text that reads as the same data."""
    return yaml.dump(data, Dumper=Dumper, sort_keys=False)


def read_yaml(path: Path) -> YamlFile:
    """Read a YAML file.

    Raises:
        InputError: for a file that is missing, not UTF-8, or not YAML, and for a key written twice.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise InputError(f"There is no file {path}; give the path of a YAML file.") from None
    except IsADirectoryError:
        raise InputError(f"{path} is a folder; give the path of a YAML file.") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text (byte {error.start}); save it as UTF-8.") from None
    return read_text(text, str(path))


def read_text(text: str, name: str) -> YamlFile:
    """Read YAML text.

    Args:
        text: the YAML.
        name: what it is called in messages, as a file's path.

    Raises:
        InputError: for what is not YAML or would grow without bound, and for a key written twice.
    """
    if len(text) > MOST_CHARACTERS:
        raise InputError(f"{name} has {len(text):,} characters; at most {MOST_CHARACTERS:,} are read.")
    try:
        root = yaml.compose(text, Loader)
        if root is not None:
            refuse_bombs(root, name)
        data = None if root is None else yaml.load(text, Loader)
    except InputError:
        raise
    except UNREADABLE as error:
        mark = getattr(error, "problem_mark", None)
        place = f"{name}:{mark.line + 1}:{mark.column + 1}" if mark else name
        problem = getattr(error, "problem", None) or str(error).split("\n")[0] or type(error).__name__
        raise InputError(f"{place}: this is not YAML that can be read ({problem}).") from None
    places: dict[KeyPath, str] = {}
    if root is not None:
        _collect_places(root, (), name, places)
    return YamlFile(data=data, places=places)


def _collect_places(node: yaml.Node, prefix: KeyPath, name: str, places: dict[KeyPath, str]) -> None:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            place = f"{name}:{key.start_mark.line + 1}:{key.start_mark.column + 1}"
            here = (*prefix, key.value)
            if here in places:
                raise InputError(f"{place}: the key {key.value!r} stands here twice; keep one.")
            places[here] = place
            _collect_places(value, here, name, places)
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            places[*prefix, index] = f"{name}:{value.start_mark.line + 1}:{value.start_mark.column + 1}"
            _collect_places(value, (*prefix, index), name, places)
