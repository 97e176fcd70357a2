# SPDX-License-Identifier: LGPL-2.1-or-later
"""The fuzzer, for as long as a change may wait for it; and that it would see what it looks for."""

from __future__ import annotations

import gc
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from jeepney.fds import FileDescriptor

from bridge import dispatch, fds, framing, reads, server
from bridge.contract import Contract
from bridge.framing import Bounds
from bridge.loop import Timer
from bridge.messages import Call, Peer, Reply
from bridge.policy import Policy

from . import oracle, stage
from .fuzz_service import CORPUS, DICTIONARY, HERE, LENGTH_MAX, tokens
from .stage import HEADER, Finding, Stage

SEEDS = sorted(CORPUS.iterdir())
SECONDS, INPUTS = 20, 10_000
# So often a file of the corpus is tried, to see whether something of each stays.
TIMES, ROUNDS = 20, 10


@pytest.fixture
def on_stage() -> Iterator[Stage]:
    with Stage() as made:
        yield made


def seed(name: str) -> bytes:
    return (CORPUS / name).read_bytes()


# --- what is tried --------------------------------------------------------------------------------------------------


def test_the_corpus_is_no_finding(on_stage: Stage) -> None:
    for path in SEEDS:
        on_stage.run(path.read_bytes())
    assert on_stage.replies > len(SEEDS) / 2


def test_nothing_stays_in_memory(on_stage: Stage) -> None:
    """Of any file of the corpus, however often it is tried."""
    gc.freeze()  # looking through what pytest holds takes most of the time
    try:
        assert [path.name for path in SEEDS if _grows(on_stage, path.read_bytes())] == []
    finally:
        gc.unfreeze()


def _grows(on_stage: Stage, data: bytes) -> bool:
    """Whether something is kept of each run. Python's own caches fill some time, too."""
    before = on_stage.objects()
    for _ in range(ROUNDS):
        for _ in range(TIMES):
            on_stage.run(data)
        after = on_stage.objects()
        if after - before < TIMES:
            return False
        before = after
    return True


@pytest.mark.parametrize("how", [(), ("--blind",)], ids=["guided", "blind"])
def test_no_input_is_a_finding(tmp_path: Path, how: tuple[str, ...]) -> None:
    """`make fuzz`, in little. Where there is no atheris, both are blind."""
    seconds, inputs = (SECONDS, INPUTS) if not how else (2, 500)
    fuzzer = [sys.executable, "-m", "tests.fuzz.fuzz_service", "--seed", "1", "--found", str(tmp_path), *how]
    ended = subprocess.run(
        [*fuzzer, "--seconds", str(seconds), "--inputs", str(inputs)],
        cwd=HERE.parents[1],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        timeout=600,
    )
    assert ended.returncode == 0, ended.stdout[-5000:]
    summary = r"^no finding: (\d+) inputs, (\d+) replies .* descriptors (\d+) before, (\d+) after"
    said = re.search(summary, ended.stdout, re.MULTILINE)
    assert said, ended.stdout[-5000:]
    tried, replies, before, after = map(int, said.groups())
    assert tried >= inputs
    assert replies > tried / 20, "hardly any input reaches a method"
    assert before == after
    assert [path for path in tmp_path.iterdir() if path.is_file()] == []


# --- what it is tried with ------------------------------------------------------------------------------------------


def test_the_corpus_has_a_call_of_each_method_and_each_kind_of_error() -> None:
    calls = [call for path in SEEDS for call in stage.Input.of(path.read_bytes()).calls()]
    assert {call.method for call in calls} >= oracle.METHODS.keys()
    names = set()
    with Stage() as made:
        for path in SEEDS:
            made.run(path.read_bytes())
            names |= made.errors
    assert names >= stage.STANDARD.keys() | oracle.ERRORS.keys()


def test_the_corpus_is_small() -> None:
    assert 20 < len(SEEDS) < 200
    assert sum(path.stat().st_size for path in SEEDS) < 200_000
    assert all(HEADER <= path.stat().st_size <= LENGTH_MAX for path in SEEDS)


def test_the_dictionary_has_each_method() -> None:
    assert {name.encode() for name in oracle.METHODS} <= set(tokens())
    assert b"\x00" in tokens()
    lines = [line for line in DICTIONARY.read_text().splitlines() if not line.startswith("#")]
    assert len(tokens()) == len(lines)


# --- that it would be seen ------------------------------------------------------------------------------------------


def test_a_descriptor_that_is_not_closed_is_seen(on_stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[FileDescriptor] = []
    monkeypatch.setattr(fds, "close_untaken", lambda untaken, _: kept.extend(untaken))
    with pytest.raises(Finding, match="descriptors"):
        on_stage.run(seed("oneway"))
    for fd in kept:
        fd.close()


def test_a_timer_that_is_not_cancelled_is_seen(on_stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    on_stage.run(seed("list-machines"))
    cancel, started = Timer.cancel, time.monotonic()
    monkeypatch.setattr(reads, "DEADLINE", 3600)
    monkeypatch.setattr(Timer, "cancel", lambda timer: cancel(timer) if timer.when - started < 60 else None)
    with pytest.raises(Finding, match="timers"):
        on_stage.run(seed("list-machines"))


def test_memory_that_is_kept_is_seen(on_stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[Call] = []
    answer = dispatch.Dispatcher.answer

    async def keep(dispatcher: dispatch.Dispatcher, call: Call, peer: Peer) -> Reply:
        kept.append(call)
        return await answer(dispatcher, call, peer)

    monkeypatch.setattr(dispatch.Dispatcher, "answer", keep)
    assert _grows(on_stage, seed("kill"))
    monkeypatch.undo()
    assert not _grows(on_stage, seed("kill"))


def test_an_exception_is_seen(on_stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    def filter_nothing(policy: Policy, method: str, reply: dict[str, Any]) -> None:
        reply["no such thing"]

    monkeypatch.setattr(Policy, "filter", filter_nothing)
    with pytest.raises(Finding, match="KeyError"):
        on_stage.run(seed("list-machines"))


def test_a_parameter_that_is_not_checked_is_seen(on_stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Contract, "check", lambda contract, method, parameters: parameters)
    with pytest.raises(Finding, match="another outcome"):
        on_stage.run(seed("invalid-pattern"))


def test_a_value_that_changes_on_the_way_is_seen(on_stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "normalize", lambda method, parameters: dict(parameters))
    with pytest.raises(Finding, match="machined got others"):
        on_stage.run(seed("shell"))


@pytest.mark.parametrize("name", ["framing-twice", "framing-nan", "framing-nul"])
def test_bytes_that_are_no_call_are_seen(on_stage: Stage, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    def lax(message: bytes, bounds: Bounds) -> Call:
        return Call("a.B")

    monkeypatch.setattr(stage, "parse_call", lax)
    with pytest.raises(Finding, match="no call"):
        on_stage.run(seed(name))


def test_a_reply_that_does_not_come_is_seen(on_stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "parse_call", lambda message, _: Call(framing.parse_call(message).method, oneway=True))
    with pytest.raises(Finding, match="calls and replies"):
        on_stage.run(seed("get-info"))


def test_a_finding_says_how_to_try_it_again(tmp_path: Path) -> None:
    """An input whose oracle is another one than the bridge: of one that takes nothing."""
    program = (
        "import sys, tests.fuzz.oracle as oracle, tests.fuzz.fuzz_service as fuzzer\n"
        "def reject(message, items_max): raise oracle.Rejected\n"
        "oracle.read_call = reject\n"
        f"sys.argv[1:] = ['--blind', '--found', {str(tmp_path)!r}]\n"
        "fuzzer.main()\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program], cwd=HERE.parents[1], capture_output=True, text=True, timeout=120
    )
    assert ended.returncode == 1
    (found,) = tmp_path.iterdir()
    assert ended.stdout.splitlines()[-1].endswith(f"-m tests.fuzz.fuzz_service {found}")
    assert "no call" in ended.stderr
    again = subprocess.run(
        [sys.executable, "-m", "tests.fuzz.fuzz_service", str(found)], cwd=HERE.parents[1], env=os.environ, timeout=120
    )
    assert again.returncode == 0, "the oracle that is there does not find it"
