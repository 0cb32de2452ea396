"""Cases of bad input, and the ways in which any file can be spoilt so that nobody could read it."""

import math
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from typing import Any, Literal, get_args, get_origin, get_type_hints

from hypothesis import strategies as st

from transformer_dropout.runs.strict_types import choices_of

FOLDER = "a folder in place of the file"


@dataclass(frozen=True, kw_only=True)
class Case:
    """A command line, with files that lie beside the good ones or in their place.

    Attributes:
        words: of the command line.
        files: by path, the content; None where the file is missing, `FOLDER` where a folder lies instead.
    """

    words: tuple[str, ...]
    files: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        files = ", ".join(f"{name}: {content!r:.1500}" for name, content in self.files.items())
        return f"dropout {' '.join(map(repr, self.words))}" + (f" with {files}" if files else "")


def words_like(known, others=True):
    """Draw words that are none of those known, and keys that are no words if asked for."""
    letters = st.text("abcdefghijklmnopqrstuvwxyz_", min_size=1, max_size=12)
    near = st.sampled_from(sorted(known)).map(lambda word: word + "s")
    words = (letters | near).filter(lambda word: word not in known and word != "self")
    return words | st.sampled_from([5, 1.5, True, None, ""]) if others else words


def not_of(hint):
    """Return values that are of none of the types that an annotation allows."""
    allowed = choices_of(hint)
    kinds = {kind for kind in allowed if isinstance(kind, type)}
    origins = {get_origin(kind) for kind in allowed}
    values = [True, 7, 1.5, math.nan, math.inf, "", "zzz", "1", [7.5], [[]], {"zzz": 1}, {"": None}, None]

    def allows(value):
        if value is None:
            return type(None) in kinds or any(is_dataclass(kind) for kind in allowed)
        if isinstance(value, bool):
            return bool in kinds
        if isinstance(value, float) and not math.isfinite(value):
            return False
        if isinstance(value, int | float):
            whole = isinstance(value, int)
            return float in kinds or (whole and int in kinds)
        if isinstance(value, str):
            return str in kinds and float not in kinds
        if isinstance(value, list):
            return False
        return dict in kinds or (dict in origins and float not in kinds)

    if Any in allowed:
        return []
    return [value for value in values if not allows(value)]


def wrong_values(kind, path=()):
    """Return (key path, value) pairs, each of which a dataclass cannot hold, those inside it too."""
    pairs = []
    for name, hint in get_type_hints(kind).items():
        if name not in {entry.name for entry in fields(kind)}:
            continue
        here = (*path, name)
        pairs += [(here, value) for value in not_of(hint)]
        for choice in choices_of(hint):
            if is_dataclass(choice):
                pairs += wrong_values(choice, here)
            if get_origin(choice) is Literal:
                pairs += [(here, word) for word in ("zzz", get_args(choice)[0].upper() + "_")]
    return pairs


def section_paths(kind, path=()):
    """Return (key path, known keys) of a dataclass and of those that it always holds."""
    found = [(path, [entry.name for entry in fields(kind)])]
    for entry in fields(kind):
        hint = get_type_hints(kind)[entry.name]
        if is_dataclass(hint) and (entry.default_factory is not MISSING or entry.default is not MISSING):
            found += section_paths(hint, (*path, entry.name))
    return found


def with_value(data, path, value):
    """Return a copy of plain data in which a value stands at a key path."""
    *parents, last = path
    copy = dict(data)
    target = copy
    for part in parents:
        target[part] = dict(target.get(part) or {})
        target = target[part]
    target[last] = value
    return copy


def unreadable(good, kind):
    """Draw what nobody can read as ``yaml``, ``json``, ``text`` or ``binary`` any more.

    Args:
        good: the sound file's bytes.
        kind: what it is.
    """
    places = st.integers(0, len(good))
    cut = st.integers(1, max(1, len(good.rstrip()) - 1)).map(lambda at: good[:at])
    ways = [st.just(FOLDER)]
    if kind in ("yaml", "json", "text"):
        ways += [
            st.tuples(places, st.sampled_from([b"\xff", b"\xc3\x28", b"\xed\xa0\x80", b"\xe9"])).map(
                lambda drawn: good[: drawn[0]] + drawn[1] + good[drawn[0] :]
            ),
            st.binary(min_size=8, max_size=64).map(lambda noise: b"\x89PNG\r\n\x1a\n\xff" + noise),
        ]
    if kind == "yaml":
        ways += [
            places.map(lambda at: good[:at] + b"\x01" + good[at:]),
            st.sampled_from(BAD_YAML).map(lambda text: good + b"\n" + text),
            st.sampled_from(BAD_YAML),
        ]
    if kind == "json":
        ways += [
            cut,
            st.sampled_from(BAD_JSON),
            st.sampled_from([b"}", b"]", b"x", b"{}"]).map(lambda end: good + end),
        ]
    if kind == "binary":
        ways += [cut, st.just(b""), st.binary(max_size=64), st.just(b"\0" * 64), st.just(b"\xff" * 64)]
    return st.one_of(ways)


NESTED = b"a0: &a0 [x, x]\n" + b"".join(
    b"a%d: &a%d [*a%d, *a%d]\n" % (n, n, n - 1, n - 1) for n in range(1, 30)
)
BAD_YAML = [
    b"[",
    b"{",
    b"\tname: x: y",
    b"name: 'x",
    b'name: "x',
    b"name: x: y",
    b"- a\nb: 1",
    b"? [a]\n: b",
    b"%YAML 9.9\n---\nname: x",
    b"name: *nowhere",
    b"name: &a [*a]",
    NESTED,
    b"name: " + b"[" * 1000 + b"]" * 1000,
    b"name: " + b"{a: " * 60 + b"}" * 60,
    b"name: " + b"9" * 5000,
    b"seed: 99999999999999999999",
    b"name: !!int abc",
    b"name: !!float x",
    b"name: !!bool 7",
    b"name: !!timestamp x",
    b"name: !!binary '*'",
    b"name: !!set {a}",
    b"name: !!python/object/apply:os.getcwd []",
    b"name: !own x",
    b"name: 2024-01-01\n--- \nname: x",
    b"x" * 1_100_000,
]
BAD_JSON = [
    b"",
    b"null",
    b"[]",
    b"7",
    b'"text"',
    b"{'name': 1}",
    b'{"name": 1,}',
    b"[" * 100_000,
    b'{"a":' * 5_000,
    b"9" * 5_000,
    b'{"name": NaN',
]
