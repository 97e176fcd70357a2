# SPDX-License-Identifier: LGPL-2.1-or-later
"""Hold the interface against each release of it, and refuse a change that an existing client would notice.

    python schema/released.py            exit 1 with each such change, one a line
    python schema/released.py --release  keep the interface as it is now as a release, in schema/released/VERSION.json

An existing client is a program that was built with the interface of a release and is not built again. It notices when a
call that it can make is refused or means something else, or when a reply or an error does not fit what it was built
with. So a service may take more than it took, and may say no more than it said:

- what is new may be: a method, an error, a type; an optional parameter; an optional field of a reply or an error, since
  every client reads past fields that it does not know; an error in a method's list, since every client has to live with
  those of org.varlink.service, which are in no list;
- what a call takes may become wider: a range, a length, an enum, a parameter that need not be there any more. A pattern
  may go, but not change, as no program can tell what another one takes;
- what a reply holds may become narrower, but an enum stays as it is: clients in Rust fail on a reply with a value that
  is not in it, and one that waits for a value would wait for ever;
- everything else stays, the default of a parameter and the errors of a method among it.

A program that is generated again may have to be adapted to what is new: varlink/go makes a function of a method with
all its parameters in their order, so that one more is an error of its compiler. What no compiler would notice is
refused: the parameters, and the fields of a reply, stay in their order, as otherwise two texts could change places.

Interfaces beside io.machine1 are held to the same rules. A change for which these rules have no room needs an interface
of another name, io.machine2. What is new needs a new version, so that GetInfo tells who has it: the minor one, in
info.version of the contract.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import derive

RELEASES = Path("schema/released")
Schema: TypeAlias = Mapping[str, Any]

LOWER = {"minimum": -math.inf, "minLength": 0, "minItems": 0}
UPPER = {"maximum": math.inf, "maxLength": math.inf, "maxItems": math.inf}
# Keywords that are compared here. `$comment` is for people.
COMPARED = {"type", "enum", "pattern", "$comment", "default", "items", "properties", "required", "additionalProperties"}
COMPARED |= LOWER.keys() | UPPER.keys()


# --- the surface: what is compared ---------------------------------------------------------------------------------


def surface(text: str) -> dict[str, Any]:
    """All of the interface that a client can notice, from the text of the OpenAPI document.

    The schemas are those that the service has, with the default of each parameter and the errors of each method.
    """
    interface = derive.Reader(derive.UniqueKeyLoader(text).get_single_data()).read()
    contract = json.loads(derive.contract_text(interface))
    for method in interface.methods:
        found = contract["methods"][f"{derive.INTERFACE}.{method.name}"]
        found["errors"] = [f"{derive.INTERFACE}.{error}" for error in method.errors]
        for parameter in method.parameters.fields:
            if parameter.default is not None:
                found["parameters"]["properties"][parameter.name]["default"] = parameter.default
    types = [f"{derive.INTERFACE}.{type_.name}" for type_ in interface.types]
    return {**contract, "interfaces": list(contract["interfaces"]), "types": types}


def same(one: Schema, other: Schema) -> bool:
    """Whether two surfaces differ in nothing but their versions and comments."""
    return without_comments({**one, "version": ""}) == without_comments({**other, "version": ""})


def without_comments(value: object) -> object:
    if isinstance(value, dict):
        return {key: without_comments(member) for key, member in value.items() if key != "$comment"}
    return [without_comments(item) for item in value] if isinstance(value, list) else value


# --- the rules -----------------------------------------------------------------------------------------------------


def noticed(old: Schema, new: Schema) -> Iterator[str]:
    """Each change from one surface to another that an existing client would notice."""
    for plural in ("interfaces", "types"):
        for name in old[plural]:
            if name not in new[plural]:
                yield f"{plural[:-1]} {name} is gone"
    for name, method in old["methods"].items():
        if name not in new["methods"]:
            yield f"method {name} is gone"
            continue
        changed = new["methods"][name]
        yield from struct(f"{name}: parameter", method["parameters"], changed["parameters"], sent=False)
        yield from struct(f"{name}: reply field", method["reply"], changed["reply"], sent=True)
        for error in method.get("errors", []):
            if error not in changed.get("errors", []):
                yield f"{name}: error {error} is no longer what it ends in"
        for key in sorted((method.keys() | changed.keys()) - {"parameters", "reply", "errors"}):
            if method.get(key) != changed.get(key):
                yield f"{name}: {key} was {method.get(key)} and is now {changed.get(key)}"
    for name, error in old["errors"].items():
        if name not in new["errors"]:
            yield f"error {name} is gone"
        else:
            yield from struct(f"{name}: field", error, new["errors"][name], sent=True)


def struct(place: str, old: Schema, new: Schema, *, sent: bool) -> Iterator[str]:
    """Of an object: one that the service sends, or one that it takes."""
    before, after = old["properties"], new["properties"]
    needed, now_needed = set(old.get("required", [])), set(new.get("required", []))
    kept = [name for name in before if name in after]
    if kept != (order := [name for name in after if name in before]):
        yield f"{place} order was {', '.join(kept)} and is now {', '.join(order)}"
    if old["additionalProperties"] != new["additionalProperties"]:
        yield f"{place} of another name was {allowed(old)} and is now {allowed(new)}"
    for name in before:
        spot = f"{place} {name}"
        if name not in after:
            yield f"{spot} is gone"
            continue
        if sent and name in needed - now_needed:
            yield f"{spot} was always there and is now optional"
        if sent and name in now_needed - needed:
            yield f"{spot} was optional and is now required: clients built with this would refuse older services"
        if not sent and name in now_needed - needed:
            yield f"{spot} was optional and is now required"
        yield from value(spot, before[name], after[name], sent=sent)
    why = "clients built with this would refuse older services" if sent else "existing clients do not send it"
    for name in after:
        if name in now_needed and name not in before:
            yield f"{place} {name} is new and has to be optional: {why}"


def value(place: str, old: Schema, new: Schema, *, sent: bool) -> Iterator[str]:
    """Of a value, whatever it is."""
    if unknown := sorted((old.keys() | new.keys()) - COMPARED):
        yield f"{place} has {', '.join(unknown)}, about which there is no rule yet"
    if kind(old) != kind(new):
        yield f"{place} was {kind(old)} and is now {kind(new)}"
        return
    if sent and not nullable(old) and nullable(new):
        yield f"{place} may now be null"
    if not sent and nullable(old) and not nullable(new):
        yield f"{place} may no longer be null"
    yield from choices(place, old, new, sent=sent)
    yield from bounds(place, old, new, sent=sent)
    narrow, wide = (new, old) if sent else (old, new)
    if wide.get("pattern") not in (None, narrow.get("pattern")):
        yield f"{place} has another pattern, and nobody can tell what it takes: {new.get('pattern')}"
    if not sent and old.get("default") != new.get("default"):
        yield f"{place} was {old.get('default')} when left out and is now {new.get('default')}"
    if "items" in old:
        yield from value(f"{place}[]", old["items"], new["items"], sent=sent)
    if "properties" in old:
        yield from struct(f"{place}: field", old, new, sent=sent)


def choices(place: str, old: Schema, new: Schema, *, sent: bool) -> Iterator[str]:
    before, after = (set(schema.get("enum", [])) - {None} for schema in (old, new))
    for gone in sorted(before - after):
        yield f"{place} has no value {gone} any more"
    if sent:
        for added in sorted(after - before):
            yield f"{place} has a new value {added}, on which existing clients fail"


def bounds(place: str, old: Schema, new: Schema, *, sent: bool) -> Iterator[str]:
    for keyword, unlimited in (LOWER | UPPER).items():
        before, after = old.get(keyword, unlimited), new.get(keyword, unlimited)
        wider = after < before if keyword in LOWER else after > before
        if before != after and wider is sent:
            yield f"{place} had {keyword} {before} and has now {after}"


def kind(schema: Schema) -> str:
    """Its type. A text and one of a few texts are two, and an object of which nothing is said is a third."""
    names = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
    name = "/".join(name for name in names if name != "null")
    if name == "object" and "properties" not in schema:
        return "any object"
    return "enum" if "enum" in schema else name


def allowed(schema: Schema) -> str:
    return "taken" if schema["additionalProperties"] else "refused"


def nullable(schema: Schema) -> bool:
    return "null" in schema["type"] if isinstance(schema["type"], list) else bool(schema["type"] == "null")


# --- releases ------------------------------------------------------------------------------------------------------


def number(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))


def releases(root: Path) -> dict[str, dict[str, Any]]:
    """The surface of each release by its version, the oldest first."""
    paths = [path for path in (root / RELEASES).glob("*.json") if re.fullmatch(derive.VERSION, path.stem)]
    paths.sort(key=lambda path: number(path.stem))
    return {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in paths}


def objections(root: Path, now: Schema) -> Iterator[str]:
    """Why the interface cannot be as it is, in view of what was released."""
    released = releases(root)
    if not released:
        yield f"{RELEASES} has no release"
        return
    for version, old in released.items():
        for change in noticed(old, now):
            yield f"since {version}: {change}"
    last, old = list(released.items())[-1]
    if number(now["version"])[0] != number(last)[0]:
        yield f"version {now['version']} after {last}: what existing clients cannot use has another name"
    elif number(now["version"]) < number(last):
        yield f"version {now['version']} after {last}"
    elif now["version"] == last and not same(old, now):
        major, minor = number(last)
        yield f"something is new since {last}: in the contract, set info.version to '{major}.{minor + 1}'"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Hold the interface against its releases.")
    parser.add_argument("--release", action="store_true", help="keep it as it is now as a release")
    parser.add_argument("--root", type=Path, default=Path(__file__).resolve().parent.parent, help="of the repository")
    options = parser.parse_args(arguments)
    try:
        now = surface((options.root / derive.CONTRACT).read_text(encoding="utf-8"))
    except derive.ContractError as error:
        print(f"{derive.CONTRACT}: {error}", file=sys.stderr)
        return 1
    target = options.root / RELEASES / f"{now['version']}.json"
    first = options.release and not releases(options.root)
    if problems := [] if first else list(objections(options.root, now)):
        print(*problems, sep="\n", file=sys.stderr)
        return 1
    if options.release and target.exists():
        print(f"version {now['version']} is released, and nothing is new since", file=sys.stderr)
        return 1
    if options.release:
        target.parent.mkdir(exist_ok=True)
        target.write_text(json.dumps(now, indent=1) + "\n", encoding="utf-8")
        print(f"wrote {target.relative_to(options.root)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
