# SPDX-License-Identifier: LGPL-2.1-or-later
"""Requests made from the contract's schemas: those that fit, and those that do not in exactly one place.

Every keyword of a schema is made something of here; one that is not known is an error, so that nobody believes that it
is tried.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from . import oracle

Schema = Mapping[str, Any]

# With what a text may have at all: NUL, halves of surrogate pairs and noncharacters are no text for framing already.
LAST_OF_PLANES = [plane << 16 | last for plane in range(17) for last in (0xFFFE, 0xFFFF)]
NEVER = "".join(map(chr, [0, *range(0xFDD0, 0xFDF0), *LAST_OF_PLANES]))
CHARACTERS = st.characters(codec="utf-8", exclude_characters=NEVER)
TEXTS = st.text(CHARACTERS, max_size=20)
INT_MIN, INT_MAX = -(2**63), 2**64 - 1
# One of each type of JSON, by the name that JSON Schema has for it. 1.0 and 1 are two.
OF_TYPE: dict[str, list[Any]] = {
    "null": [None],
    "boolean": [True, False],
    "integer": [1, 0],
    "number": [1.0, 0.5],
    "string": ["", "web"],
    "array": [[], ["web"]],
    "object": [{}, {"name": "web"}],
}
# What a pattern may forbid somewhere: one of each kind, the ends of ranges among them.
SUSPICIOUS = ["/", ".", "..", ".#", "-", "_", ":", "=", "#", " ", "\n", "\x01", "\x1f", "\x7f", "é", "\u2028", "1"]
_END = r"(?![\s\S])"
# These forbid nothing but NUL.
ANY_TEXT = rf"^[^\u0000]*{_END}"

# Values that programs are known to misread; tried besides those that hypothesis thinks of.
SPECIAL = [
    "$", "$$", "${HOME}", "%n", "\\", '"', "'", " ", "\t", "-", "--", ";", "é\U0010fffd", "\u2028", "a\nb", "\x7f",
]  # fmt: skip
SPECIAL_PATHS = ["/", "//", "/.", "/a/.", "/a//b/", "/./a", "/a/../b", "/..", "/a/..b", "/...", "/$x/ y", "/a/./"]


# --- what fits ------------------------------------------------------------------------------------------------------


def fitting(schema: Schema) -> SearchStrategy[Any]:
    """Values that fit a schema."""
    check_keywords(schema)
    if "enum" in schema:
        return st.sampled_from(schema["enum"])
    return st.one_of([_OF[name](schema) for name in oracle.types(schema)])


def check_keywords(schema: Schema) -> None:
    strange = set(schema) - oracle.KEYWORDS
    assert not strange, f"write down what {strange} means here"


def _texts(schema: Schema) -> SearchStrategy[str]:
    if "pattern" not in schema:
        assert "maxLength" not in schema
        return TEXTS
    expression = schema["pattern"]
    assert expression.startswith("^") and expression.endswith(_END), expression  # noqa: PT018  one thing
    core = expression.removeprefix("^").removesuffix(_END)
    made = st.from_regex(_short(core), fullmatch=True, alphabet=CHARACTERS)
    special = [text for text in SPECIAL + SPECIAL_PATHS + ["A=" + text for text in SPECIAL] if _fits(schema, text)]
    made = st.one_of(made, st.sampled_from(special)) if special else made
    return made.filter(lambda text: _fits(schema, text))


def _short(expression: str) -> str:
    """The same with few repetitions, each of which takes its time; `longest` is for long texts."""
    parts = re.split(r"(\[(?:[^]\\]|\\.)*\]|\\.)", expression)
    for index in range(0, len(parts), 2):
        for repetition, groups, others in (("*", "{0,2}", "{0,6}"), ("+", "{1,2}", "{1,6}")):
            parts[index] = parts[index].replace(f"){repetition}", f"){groups}").replace(repetition, others)
    return "".join(parts)


def _fits(schema: Schema, value: object) -> bool:
    return not oracle.violations(schema, value)


def _integers(schema: Schema) -> SearchStrategy[int]:
    return st.integers(schema.get("minimum", INT_MIN), schema.get("maximum", INT_MAX))


def _lists(schema: Schema) -> SearchStrategy[list[Any]]:
    return st.lists(fitting(schema["items"]), max_size=min(5, schema.get("maxItems", 5)))


def _objects(schema: Schema) -> SearchStrategy[dict[str, Any]]:
    """Optional members are there or not, in any order; of an object that the schema says nothing about, some."""
    if "properties" not in schema:
        return st.dictionaries(TEXTS, st.sampled_from([None, True, 1, "x", [], {}]), max_size=3)
    assert schema["additionalProperties"] is False
    members = {name: fitting(member) for name, member in schema["properties"].items()}
    required = schema.get("required", [])
    return st.fixed_dictionaries(
        {name: members[name] for name in required},
        optional={name: member for name, member in members.items() if name not in required},
    )


_OF: dict[str, Callable[[Schema], SearchStrategy[Any]]] = {
    "null": lambda _: st.none(),
    "boolean": lambda _: st.booleans(),
    "integer": _integers,
    "string": _texts,
    "array": _lists,
    "object": _objects,
}


def longest(schema: Schema) -> str:
    """A text that fits and has as many characters as may be."""
    for beginning in ("web", "/web", "WEB=", "http://web/"):
        text = beginning.ljust(schema["maxLength"], "a")
        if _fits(schema, text):
            return text
    raise AssertionError(f"write down a beginning of a long text for {schema}")


# --- what does not --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Violation:
    """One way to break a request that fits: put one of `values` at `steps`, or take away what is there."""

    kind: str
    steps: tuple[str | int, ...]
    values: tuple[Any, ...] = ()
    around: Any = None  # what `steps` lead into, where the request may not have it

    @property
    def path(self) -> str:
        """As the error has to name it."""
        named = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in self.steps)
        return named.removeprefix(".")

    def __str__(self) -> str:
        return f"{self.kind} at {self.path}"


def violations_of(schema: Schema) -> Iterator[Violation]:
    """All kinds at all places of an object: the parameters of a method."""
    check_keywords(schema)
    for name in schema.get("required", ()):
        yield Violation("missing", (name,))
    for name in ("x", "Name", "name ", "", "a.b", "name\n"):
        yield Violation("unknown", (name,), (None, 1, "web"))
    for name, member in schema["properties"].items():
        for kind, value in _wrong(member):
            yield Violation(kind, (name,), tuple(value))
        if "items" in member:
            yield from _wrong_items(name, member)


def _wrong_items(name: str, schema: Schema) -> Iterator[Violation]:
    good = _simple(schema["items"])
    for index in (0, 1, 4):
        for kind, values in _wrong(schema["items"]):
            yield Violation(f"{kind} in list", (name, index), tuple(values), [good] * 5)


def _simple(schema: Schema) -> str:
    return next(value for value in ("A=1", "web") if _fits(schema, value))


def _wrong(schema: Schema) -> Iterator[tuple[str, list[Any]]]:
    """Kind and values for each keyword of a schema that a value may break."""
    check_keywords(schema)
    named = oracle.types(schema)
    for name, values in OF_TYPE.items():
        if name not in named:
            yield f"{name} for {'/'.join(named)}", values
    if "enum" in schema:
        yield "outsider", ["", "ALL", "all ", "none", "hosts"]
    if "minimum" in schema:
        yield "below", [schema["minimum"] - 1, INT_MIN, 0 if schema["minimum"] > 0 else INT_MIN]
    if "maximum" in schema:
        above = [schema["maximum"] + 1, 2**31, 2**32 + 1, 2**63, INT_MAX]
        yield "above", [value for value in above if value > schema["maximum"]]
    if "maxItems" in schema:
        item = _simple(schema["items"])
        many = [item] * (schema["maxItems"] + 1)
        yield "too many", [many]
    if "maxLength" in schema:
        long = longest(schema)
        yield "too long", [long + "a", long + "é"]
    if "minLength" in schema:
        assert schema["minLength"] == 1
        yield "empty", [""]
    if "pattern" in schema:
        forbidden = _forbidden(schema)
        assert forbidden or schema["pattern"] == ANY_TEXT, f"write down what {schema['pattern']} forbids"
        if forbidden:
            yield "pattern", forbidden


def _forbidden(schema: Schema) -> list[str]:
    """Texts that are a text of the pattern but for a character at its beginning, inside or at its end."""
    texts = ["", "web", "/web", "A=1", ".", "..", "a/b"]
    good = [text for text in texts if re.search(schema["pattern"], text)]
    changed = [text[:at] + odd + text[at:] for text in good for odd in SUSPICIOUS for at in {0, 1, len(text)}]
    return sorted({text for text in texts + changed if text and not re.search(schema["pattern"], text)})


def broken(request: Mapping[str, Any], violation: Violation, value: object) -> dict[str, Any]:
    """The request with one thing wrong."""
    first, *rest = violation.steps
    changed = dict(request)
    if violation.kind == "missing":
        del changed[str(first)]
    elif rest:
        items = list(violation.around)
        items[int(rest[0])] = value
        changed[str(first)] = items
    else:
        changed[str(first)] = value
    return changed


# --- how it is written ----------------------------------------------------------------------------------------------


def spelled(value: object, chance: random.Random) -> str:
    """JSON of the same meaning: spaces, order of keys, escapes."""
    return _space(chance) + _spelled(value, chance) + _space(chance)


def _space(chance: random.Random) -> str:
    return chance.choice(["", "", "", " ", "\t", "\r\n", "   "])


def _spelled(value: object, chance: random.Random) -> str:
    if isinstance(value, str):
        return '"' + "".join(_character(character, chance) for character in value) + '"'
    between = f"{_space(chance)},{_space(chance)}"
    if isinstance(value, list):
        items = [_spelled(item, chance) for item in value]
        return f"[{_space(chance)}{between.join(items)}{_space(chance)}]"
    if isinstance(value, dict):
        members = [
            f"{_spelled(key, chance)}{_space(chance)}:{_space(chance)}{_spelled(member, chance)}"
            for key, member in chance.sample(sorted(value.items()), len(value))
        ]
        return f"{{{_space(chance)}{between.join(members)}{_space(chance)}}}"
    return json.dumps(value)


def _character(character: str, chance: random.Random) -> str:
    escaped = json.dumps(character)[1:-1]
    if character in '"\\' or character < " ":
        must = [escaped, "".join(f"\\u{ord(character):04x}")]
        return chance.choice(must)
    if chance.random() < 0.8:
        return character
    units = character.encode("utf-16-be")
    form = chance.choice(["\\u{:04x}", "\\u{:04X}"])
    return "".join(form.format(int.from_bytes(units[at : at + 2], "big")) for at in range(0, len(units), 2))
