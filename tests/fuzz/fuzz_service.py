# SPDX-License-Identifier: LGPL-2.1-or-later
"""The fuzzer: `python -m tests.fuzz.fuzz_service --seconds 3600`. Files as arguments are tried, and nothing else.

atheris (libFuzzer for Python) makes the inputs from corpus/, and goes on from those that reach new code of bridge/;
where there is no atheris, they are corpus/ mutated blindly. Ends with the first finding, of which the last line says
how to try it again; or, with exit status 0, after so many seconds and at least so many inputs. stage.py says what an
input is.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import random
import re
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from .stage import Stage

HERE = Path(__file__).parent
CORPUS, DICTIONARY = HERE / "corpus", HERE / "dictionary"
FOUND = HERE.parents[1] / "build" / "fuzz"
# Longer ones are slower and find nothing else. Far below what a message may be, but not below the stage's limit.
LENGTH_MAX = 1024
# After so many inputs, and twice as many, and so on, what is held is counted.
LOOK = 5000
# Python's objects, by sys.getallocatedblocks: what may still become cached after LOOK inputs, in all.
BLOCKS_MAX = 20_000


def has_atheris() -> bool:
    return importlib.util.find_spec("atheris") is not None


def tokens() -> list[bytes]:
    """Those of the dictionary, as libFuzzer reads them."""
    escape = re.compile(rb'\\(?:x(..)|(["\\]))')
    found = re.findall(rb'^"(.*)"$', DICTIONARY.read_bytes(), re.MULTILINE)
    return [escape.sub(lambda m: bytes.fromhex(m[1].decode()) if m[1] else m[2], token) for token in found]


def resident_kib() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") // 1024


class Run:
    """Tries inputs on one stage and says at the end what it came to."""

    def __init__(self, stage: Stage, options: argparse.Namespace) -> None:
        self._stage = stage
        self._options = options
        self._started = time.monotonic()
        self._next_look = LOOK
        self._blocks = self._first_blocks = self._first_kib = 0
        self._fds = len(os.listdir("/proc/self/fd"))

    def one_input(self, data: bytes) -> None:
        """Ends the process after the last one."""
        try:
            self._stage.run(data)
            if self._stage.runs >= self._next_look:
                self._next_look += LOOK
                self._look()
        except KeyboardInterrupt:
            self._say("interrupted, no finding")
            os._exit(130)
        except BaseException:
            self._fail(data)
        if self._stage.runs >= self._options.inputs and self._seconds > self._options.seconds:
            self._end()

    @property
    def _seconds(self) -> float:
        return time.monotonic() - self._started

    def _look(self) -> None:
        self._blocks = self._stage.objects()
        if not self._first_blocks:
            self._first_blocks, self._first_kib = self._blocks, resident_kib()
        more = self._blocks - self._first_blocks
        if more > BLOCKS_MAX:
            raise AssertionError(f"{more} more objects than after {LOOK} inputs: something is kept")

    def _end(self) -> NoReturn:
        try:
            self._look()
        except AssertionError:
            self._fail(b"")
        self._say("no finding")
        os._exit(0)  # libFuzzer has no other end that runs nothing of ours again

    def _fail(self, data: bytes) -> NoReturn:
        self._options.found.mkdir(parents=True, exist_ok=True)
        path = self._options.found / f"finding-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"
        path.write_bytes(data)
        traceback.print_exc()
        self._say("FINDING")
        print(f"try it again: {Path(sys.executable)} -m tests.fuzz.fuzz_service {path}", flush=True)
        os._exit(1)

    def _say(self, result: str) -> None:
        sys.stderr.flush()
        print(
            f"{result}: {self._stage.runs} inputs, {self._stage.replies} replies in {self._seconds:.0f} s;"
            f" descriptors {self._fds} before, {len(os.listdir('/proc/self/fd'))} after;"
            f" objects {self._first_blocks} after {min(LOOK, self._stage.runs)} inputs, {self._blocks} at the end;"
            f" RSS {self._first_kib} KiB then, {resident_kib()} KiB now",
            flush=True,
        )


def guided(make: Callable[[], Run], options: argparse.Namespace) -> None:
    """With coverage of bridge/, which must not have been imported before."""
    import atheris

    with atheris.instrument_imports(include=["bridge"]):
        import bridge.server  # noqa: F401

        run = make()
    kept = options.found / "corpus"
    kept.mkdir(parents=True, exist_ok=True)
    arguments = [
        f"-dict={DICTIONARY}",
        f"-max_len={LENGTH_MAX}",
        "-timeout=60",
        "-rss_limit_mb=2048",
        f"-artifact_prefix={options.found}/",
    ]
    if options.seed is not None:
        arguments.append(f"-seed={options.seed}")
    # What is new goes into the first one.
    atheris.Setup([sys.argv[0], *arguments, str(kept), str(CORPUS)], run.one_input)
    atheris.Fuzz()


def blind(run: Run, options: argparse.Namespace) -> None:
    """Without: parts of the corpus, put together and changed at random."""
    chance = random.Random(options.seed)  # noqa: S311
    corpus = [path.read_bytes() for path in sorted(CORPUS.iterdir())]
    known = tokens()
    for data in corpus:
        run.one_input(data)
    while True:
        mutated = bytearray(chance.choice(corpus))
        for _ in range(chance.randint(1, 5)):
            begin = chance.randint(0, len(mutated))
            end = min(len(mutated), begin + chance.randint(0, 8))
            other = chance.choice(corpus)
            mutated[begin:end] = chance.choice(
                [b"", chance.choice(known), chance.randbytes(end - begin), other[chance.randint(0, len(other)) :]]
            )
        run.one_input(bytes(mutated[:LENGTH_MAX]))


def main() -> None:
    parser = argparse.ArgumentParser(prog="fuzz_service", description=__doc__)
    parser.add_argument("file", type=Path, nargs="*", help="try these inputs only")
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--inputs", type=int, default=0, help="try at least so many, however long it takes")
    parser.add_argument("--seed", type=int, help="the same inputs each time, as far as there is no time in them")
    parser.add_argument("--found", type=Path, default=FOUND, help="where findings go, and a corpus that grows")
    parser.add_argument("--blind", action="store_true", help="without atheris, as where there is none")
    options = parser.parse_args()

    def make() -> Run:
        from .stage import Stage

        return Run(Stage(), options)

    if options.file:
        from .stage import Stage

        with Stage() as stage:
            for path in options.file:
                stage.run(path.read_bytes())
        print("no finding")
    elif options.blind or not has_atheris():
        blind(make(), options)
    else:
        guided(make, options)


if __name__ == "__main__":
    main()
