#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Make src/generated.rs from io.machine1.varlink: zlink-codegen, and what it cannot know.

It knows nothing of file descriptors, calls GetMachineByPID by a name of Rust's, GetMachineByPid, lends strings that
cannot be lent if they hold an escape, and takes an error of another interface for a reply, which of a method that
returns nothing is success, but not an empty object. So its trait stays inside of the crate, with types that every error
and every empty reply fits, and each of its methods gets one of `Client` around it. One that takes a file descriptor
gets two: `Client::more` sends none.

zlink-codegen has the version of zlink in Cargo.toml, and is kept in $XDG_CACHE_HOME/machine1-bridge/generators.
"""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
import tomllib
from pathlib import Path

CRATE = Path(__file__).resolve().parent
VARLINK = CRATE.parents[1] / "io.machine1.varlink"
GENERATED = CRATE / "src" / "generated.rs"
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "machine1-bridge" / "generators"
ZLINK: str = tomllib.loads((CRATE / "Cargo.toml").read_text())["dependencies"]["zlink"]["version"].removeprefix("=")

OWN_TYPES = """\
use std::os::fd::{AsFd, OwnedFd};

use crate::client::{Client, Nothing, duplicates};
use crate::error::AnyError;
use crate::replies::Replies;
"""
FDS_DOC = "    ///\n    /// Returns the file descriptors too, whose indices are in the fields `*_fd`.\n"
FDS = "Vec<OwnedFd>"
AS_FD = "impl AsFd"
SENT_DOC = "    ///\n    /// Sends a duplicate of `{fd}`, which stays the caller's.\n"
MORE_DOC = "    /// [`Client::{name}`] with the flag `more`: it has replies until all is done.\n"

HEADER = """\
// SPDX-License-Identifier: LGPL-2.1-or-later
// Made by contrib/rust/generate.py with zlink-codegen {zlink} from io.machine1.varlink: edit neither this nor that.

"""
TRAIT = re.compile(r"/// Proxy trait for [^\n]*\n#\[proxy[^\n]*\npub trait Machine1 {\n(.*?)^}\n", re.M | re.S)
METHOD = re.compile(
    r"(?P<docs>(?: *///.*\n)*) *async fn (?P<name>\w+)\(&mut self(?P<arguments>.*)\)"
    r" -> zlink::Result<Result<(?P<output>.+), Machine1Error>>;\n"
)
ARGUMENT = re.compile(r'(?:#\[zlink\(rename = "(\w+)"\)\] )?((?:r#)?(\w+)): (.+?)(?=, (?:#|(?:r#)?\w+: )|$)')
ERRORS = re.compile(r"^pub enum Machine1Error {\n.*?^}\n", re.M | re.S)
VARIANT = re.compile(r"^    (\w+)(?= {$|,$)", re.M)


def codegen(varlink: Path = VARLINK) -> str:
    """What zlink-codegen says; installs it first if it has to."""
    root = CACHE / f"zlink-codegen-{ZLINK}"
    program = root / "bin" / "zlink-codegen"
    if not program.exists():
        install = ["cargo", "install", "--quiet", "--locked", "--root", str(root), f"zlink-codegen@{ZLINK}"]
        subprocess.run(install, check=True)
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "generated.rs"
        subprocess.run([program, varlink, "--output", output], check=True, stdout=subprocess.DEVNULL)
        return output.read_text()


def derive(source: str, varlink: Path = VARLINK) -> str:
    """The module of the crate from what zlink-codegen wrote of an interface."""
    said = re.findall(r"^(?:method|error) (\w+)", varlink.read_text(), flags=re.M)
    names = {name.lower(): name for name in said}

    def renamed(found: re.Match[str]) -> str:
        name = names[found[1].lower()]
        return found[0] if found[1] == name else f'    #[zlink(rename = "{name}")]\n{found[0]}'

    source = source.replace("<'a>", "").replace("    #[serde(borrow)]\n", "").replace("&'a str", "String")
    source = source.replace("<'_>", "")
    # The words of the interface alone, not those of the generator and of the file.
    source = re.sub(r"\A.*?^//! Derived from [^\n]*\n", "", source, flags=re.M | re.S)
    # Which rustdoc would take for a link.
    source = re.sub(r"[\w.]*\w\[\d+\]", r"`\g<0>`", source)
    source = source.replace("use serde::", OWN_TYPES + "use serde::")
    with_fds = set(re.findall(r"pub struct (\w+) {\n(?:(?!^}).*\n)*?    pub \w+_fd: i64,\n", source, flags=re.M))
    trait, client = [], []

    def method(found: re.Match[str]) -> str:
        docs, name, arguments, output = found.group("docs", "name", "arguments", "output")
        plain = [(argument, key or word, kind) for key, argument, word, kind in ARGUMENT.findall(arguments)]
        sent = [argument for argument, _, kind in plain if argument.endswith("_fd") and kind == "i64"]
        values = [str(sent.index(argument)) if argument in sent else argument for argument, _, _ in plain]
        taken = "&mut self" + "".join(f", {each}: {AS_FD if each in sent else kind}" for each, _, kind in plain)
        duplicate = f"        let fds = duplicates([{', '.join(f'{fd}.as_fd()' for fd in sent)}])?;\n" if sent else ""
        docs_of_sent = "".join(SENT_DOC.format(fd=fd) for fd in sent)
        fds = output in with_fds
        nothing = output == "()"
        called = names[name.replace("_", "")]
        attributes = [f'rename = "{called}"'] if called != name.title().replace("_", "") else []
        attributes += ["return_fds"] if fds else []
        result = f"Result<{'Nothing' if nothing else output}, AnyError>"
        trait.append(
            (f"    #[zlink({', '.join(attributes)})]\n" if attributes else "")
            + f"    async fn {name}(&mut self{arguments}"
            + (f", #[zlink(fds)] fds: {FDS}" if sent else "")
            + ") -> zlink::Result<"
            + (f"({result}, {FDS})" if fds else result)
            + ">;\n"
        )
        client.append(
            docs
            + docs_of_sent
            + (FDS_DOC if fds else "")
            + f"    pub async fn {name}({taken}) -> crate::Result<"
            + (f"({output}, {FDS})" if fds else output)
            + "> {\n"
            + duplicate
            + "        self.begin()?;\n"
            + f"        let result = self.connection.{name}({', '.join([*values, 'fds'] if sent else values)}).await;\n"
            + ("        let result = result.map(|(result, fds)| result.map(|output| (output, fds)));\n" if fds else "")
            + f"        self.end({'Nothing::expected(result)' if nothing else 'result'})\n"
            + "    }\n"
        )
        if sent:
            parameters = ", ".join(f'"{key}": {value}' for (_, key, _), value in zip(plain, values, strict=True))
            client.append(
                MORE_DOC.format(name=name)
                + docs_of_sent
                + f"    pub async fn {name}_more({taken}) -> crate::Result<Replies<'_, {output}>> {{\n"
                + duplicate
                + f"        let parameters = serde_json::json!({{{parameters}}});\n"
                + f'        self.more_with("io.machine1.{called}", parameters, fds).await\n'
                + "    }\n"
            )
        return ""

    def client_of(found: re.Match[str]) -> str:
        rest = METHOD.sub(method, found[1])
        if rest.strip():
            raise SystemExit(f"zlink-codegen wrote methods that are not understood here:\n{rest}")
        return (
            '#[proxy("io.machine1")]\npub(crate) trait Machine1 {\n' + "".join(trait) + "}\n\n"
            "/// The methods of the interface.\nimpl Client {\n" + "\n".join(client) + "}\n"
        )

    source = ERRORS.sub(lambda found: VARIANT.sub(renamed, found[0]), source)
    source, count = TRAIT.subn(client_of, source)
    if count != 1:
        raise SystemExit("zlink-codegen wrote no trait that is understood here")
    return HEADER.format(zlink=ZLINK) + source


if __name__ == "__main__":
    GENERATED.write_text(derive(codegen()))
