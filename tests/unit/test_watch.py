# SPDX-License-Identifier: LGPL-2.1-or-later
"""Watches, of a machined that says what a test wants and in the order that it wants. With a real one: tests/lab."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest

from bridge import remembered
from bridge import watch as module
from bridge.bus import Bus, DBusError, Signal
from bridge.errors import Timeout, Unavailable
from bridge.limits import Limits
from bridge.listed import Image, Images, Machine, Machines
from bridge.loop import Future, Loop
from bridge.machined import Machined, Signals
from bridge.messages import Reply
from bridge.pool import Pool, Stamp
from bridge.ring import Ring
from bridge.watch import Changes, ImageWatch, MachineWatch, Told, wait_for_machine

HOST = (".host", "host", "", "/h")
UINT64_MAX = 2**64 - 1


def machine(name: str) -> Machine:
    return name, "container", "test", f"/m/{name}"


def image(name: str, *, usage: int = 1, ctime: int = 1) -> Image:
    return name, "directory", False, ctime, 1, usage, f"/i/{name}"


class Said:
    """One connection to machined: a question is answered by `answer`, and what it says by itself goes to `told`."""

    def __init__(self, loop: Loop, told: Told) -> None:
        self._loop = loop
        self.told = told
        self.opened = False
        self.closed = False
        self.questions: list[Future[Machines]] = []

    async def open(self) -> None:
        self.opened = True

    async def machines(self) -> Machines:
        self.questions.append(Future(self._loop))
        return await self.questions[-1]

    def close(self) -> None:
        self.closed = True
        for question in self.questions:
            question.fail(Unavailable("closed"))


class Task:
    """What becomes of a coroutine."""

    def __init__(self, loop: Loop, coroutine: Coroutine[Future[Any], None, Any]) -> None:
        self.result: Any = None
        self.error: Exception | None = None
        self.done = False

        async def wait() -> None:
            try:
                self.result = await coroutine
            except Exception as error:
                self.error = error
            self.done = True

        loop.start(wait(), lambda _: None)


class Scene:
    """A watch of machines, and clients that follow it. `hidden` are those that the policy does not show."""

    def __init__(self, loop: Loop) -> None:
        self.loop = loop
        self.said: list[Said] = []
        self.hidden: set[str] = set()
        self.watch = MachineWatch(loop, self._connect)
        self.streams: list[Changes[Machine]] = []

    def _connect(self, told: Told) -> Said:
        self.said.append(Said(self.loop, told))
        return self.said[-1]

    def shows(self, name: str) -> bool:
        return name not in self.hidden

    @property
    def now(self) -> Said:
        return self.said[-1]

    def turn(self, seconds: float = 0) -> None:
        """Let everything go on that can."""

        def soon(turns: int) -> None:
            self.loop.call_soon(self.loop.stop if turns == 0 else lambda: soon(turns - 1))

        self.loop.call_later(seconds, lambda: soon(6))
        self.loop.run()

    def until(self, condition: Callable[[], bool]) -> None:
        for _ in range(300):
            if condition():
                return
            self.turn(0.01)
        raise AssertionError("it does not come true")

    def answer(self, *names: str) -> None:
        """machined lists these and the host."""
        self.until(lambda: bool(self.now.questions) and not self.now.questions[-1].done)
        self.now.questions[-1].resolve(Machines([HOST, *map(machine, names)]))
        self.turn()

    def follow(self, cursor: str | None = None, *, everything: bool = False) -> tuple[Changes[Machine], Task]:
        stream = Changes(self.watch, self.shows, "machines", lambda entry: {"name": entry[0]}, everything=everything)
        self.streams.append(stream)
        return stream, Task(self.loop, stream.first(cursor))

    def begin(self, *names: str) -> tuple[Changes[Machine], Reply]:
        """The first one follows, and machined lists these."""
        stream, first = self.follow()
        self.answer(*names)
        assert first.error is None
        assert first.done
        return stream, first.result

    def next(self, stream: Changes[Machine]) -> Task:
        task = Task(self.loop, stream.next())
        self.turn()
        return task

    def told(self, stream: Changes[Machine]) -> tuple[str, list[str]]:
        """The next reply, which is there already."""
        task = self.next(stream)
        assert task.done
        assert task.error is None
        return seen(task.result)

    def close(self) -> None:
        for stream in self.streams:
            stream.close()
        self.watch.end()
        self.turn()


def seen(reply: Reply) -> tuple[str, list[str]]:
    assert reply.stream is not None
    return reply.parameters["event"], [entry["name"] for entry in reply.parameters["machines"]]


@pytest.fixture
def loop() -> Iterator[Loop]:
    loop = Loop()
    yield loop
    loop.close()


@pytest.fixture
def scene(loop: Loop, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Scene]:
    """What takes time takes little here. There is no directory with machined's files, so nothing is a ghost."""
    monkeypatch.setattr(remembered, "DIRECTORY", tmp_path / "none")
    monkeypatch.setattr(module, "RETRY", 0.01)
    monkeypatch.setattr(module, "DOUBT", 0.001)
    scene = Scene(loop)
    yield scene
    scene.close()


# --- the state and its changes --------------------------------------------------------------------------------------


def test_first_comes_what_there_is(scene: Scene) -> None:
    _, first = scene.begin("b", "a")
    assert seen(first) == ("snapshot", ["a", "b"])
    assert set(first.parameters) == {"event", "machines", "cursor"}


@pytest.mark.parametrize("early", [True, False])
def test_who_leaves_before_it_comes_is_waited_for_no_longer(scene: Scene, early: bool) -> None:
    """So is every client for a service that stops."""
    left = Future[None](scene.loop)
    if early:
        left.resolve(None)
    stream = Changes(scene.watch, scene.shows, "machines", lambda entry: {"name": entry[0]}, everything=False)
    first = Task(scene.loop, stream.first(None, left))
    scene.turn()
    assert first.done == early
    left.resolve(None)
    scene.turn()
    assert isinstance(first.error, Unavailable)
    assert scene.watch._followers == set()
    assert left._waiting == []


def test_the_host_is_there_for_who_asks_for_it(scene: Scene) -> None:
    scene.begin("a")
    _, other = scene.follow(everything=True)
    assert seen(other.result) == ("snapshot", [".host", "a"])


def test_each_change_is_a_reply_in_order(scene: Scene) -> None:
    stream, _ = scene.begin("a")
    scene.now.told.added("b", "/m/b")
    scene.now.told.removed("a")
    scene.answer("b")
    assert scene.told(stream) == ("added", ["b"])
    assert scene.told(stream) == ("removed", ["a"])
    assert not scene.next(stream).done


def test_who_is_gone_before_machined_was_asked_is_not_lost(scene: Scene) -> None:
    stream, _ = scene.begin()
    for _ in range(3):
        scene.now.told.added("short", "/m/short")
        scene.now.told.removed("short")
    scene.answer()
    assert [scene.told(stream) for _ in range(6)] == [("added", ["short"]), ("removed", ["short"])] * 3


def test_a_machine_that_is_replaced_is_removed_and_added(scene: Scene) -> None:
    stream, _ = scene.begin("a")
    scene.now.told.removed("a")
    scene.now.told.added("a", "/m/a")
    scene.answer("a")
    assert [scene.told(stream) for _ in range(2)] == [("removed", ["a"]), ("added", ["a"])]


def test_a_snapshot_is_the_state_that_the_next_change_follows(scene: Scene) -> None:
    """Machined has announced one, but has not said yet what it is: who comes now is told of it later."""
    scene.begin("a")
    scene.now.told.added("b", "/m/b")
    scene.now.told.removed("a")
    stream, first = scene.follow()
    assert seen(first.result) == ("snapshot", ["a"])
    scene.answer("b")
    assert [scene.told(stream) for _ in range(2)] == [("added", ["b"]), ("removed", ["a"])]


def test_what_is_listed_is_what_was_announced_last(scene: Scene) -> None:
    """The entry of an answer is that of the machine that there is then, not of one before it with its name."""
    scene.begin()
    for _ in range(2):
        scene.now.told.added("a", "/m/a")
        scene.now.told.removed("a")
    scene.now.told.added("a", "/m/a")
    scene.answer("a")
    services = [scene.watch.ring[position].entry[2] for position in range(5) if position % 2 == 0]
    assert services == ["", "", "test"]


def test_announcements_without_end_take_no_memory_without_end(scene: Scene) -> None:
    scene.watch.ring = Ring(10)
    scene.begin()
    for number in range(100):
        scene.now.told.added(f"m{number}", "/m")
        scene.now.told.removed(f"m{number}")
    assert len(scene.watch._pending) <= 11
    assert scene.watch.ring.end >= 180


# --- gaps -----------------------------------------------------------------------------------------------------------


def test_a_machined_that_leaves_its_machines_leaves_a_gap(scene: Scene) -> None:
    stream, _ = scene.begin("a", "b")
    scene.now.told.moved(False)
    scene.now.told.moved(True)
    scene.now.told.added("a", "/m/a")  # as a machined does that begins
    scene.answer("a")
    task = scene.next(stream)
    assert seen(task.result) == ("snapshot", ["a"])
    assert task.result.parameters["gap"] == "restarted"
    assert not scene.next(stream).done


def test_a_machined_that_leaves_without_machines_leaves_none(scene: Scene) -> None:
    """It exits when it is idle. It is not asked, or it could not, until it comes again."""
    stream, _ = scene.begin()
    questions = len(scene.now.questions)
    scene.now.told.moved(False)
    scene.turn()
    assert len(scene.now.questions) == questions
    scene.now.told.moved(True)
    scene.now.told.added("a", "/m/a")
    scene.answer("a")
    assert scene.told(stream) == ("added", ["a"])


@pytest.mark.parametrize("pending", [False, True])
def test_a_machined_that_leaves_with_hidden_machines_alone_looks_as_one_without(scene: Scene, pending: bool) -> None:
    scene.hidden = {"secret", "other"}
    stream, _ = scene.begin("secret")
    if pending:
        scene.now.told.added("other", "/m/other")
    scene.now.told.moved(False)
    scene.now.told.moved(True)
    scene.now.told.added("secret", "/m/secret")  # as a machined does that begins
    scene.now.told.added("a", "/m/a")
    scene.answer("a", "secret")
    assert scene.told(stream) == ("added", ["a"])
    assert not scene.next(stream).done
    assert set(scene.watch.state) == {".host", "a", "secret"}


def test_a_bus_that_breaks_leaves_a_gap(scene: Scene) -> None:
    stream, _ = scene.begin("a")
    broken = scene.now
    broken.told.broke()
    scene.turn(0.02)
    assert broken.closed
    assert scene.now is not broken
    scene.answer("a")
    task = scene.next(stream)
    assert task.result.parameters["gap"] == "restarted"


def test_what_was_announced_before_a_gap_is_told_before_it(scene: Scene) -> None:
    stream, _ = scene.begin("a")
    scene.now.told.added("b", "/m/b")
    scene.now.told.moved(False)
    scene.turn()
    assert not scene.watch.settled
    scene.answer("a")
    # It comes at once with the gap, so that all before it is void.
    assert scene.told(stream) == ("snapshot", ["a"])


def test_a_list_that_does_not_fit_is_asked_for_again_and_has_the_last_word(scene: Scene) -> None:
    stream, _ = scene.begin("a")
    scene.watch._want()
    for _ in range(module.DOUBTS_MAX + 2):
        scene.answer("a", "never-announced")
    assert scene.told(stream) == ("snapshot", ["a", "never-announced"])


def test_what_is_hidden_makes_no_gap_however_little_it_fits(scene: Scene) -> None:
    """A hidden machine that lingers in the list of a busy machined, or that was never announced to be gone."""
    scene.hidden = {"never-announced", "gone"}
    stream, _ = scene.begin("a", "gone")
    scene.watch._want()
    for _ in range(module.DOUBTS_MAX + 1):
        scene.answer("a", "never-announced")
    assert not scene.next(stream).done
    assert set(scene.watch.state) == {".host", "a", "never-announced"}
    scene.now.told.removed("a")
    scene.until(lambda: len(scene.watch.state) == 2)


def test_who_lingers_in_the_list_has_not_come_back(scene: Scene) -> None:
    """262 forgets a machine a moment after it has said that it is gone."""
    stream, _ = scene.begin("a", "b")
    scene.now.told.removed("a")
    assert scene.told(stream) == ("removed", ["a"])
    scene.watch._want()
    scene.answer("a", "b")
    scene.answer("b")
    assert scene.watch.settled
    assert not scene.next(stream).done


def test_who_lingers_at_first_is_not_in_the_snapshot(
    scene: Scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its file is gone."""
    monkeypatch.setattr(remembered, "DIRECTORY", tmp_path)
    (tmp_path / "b").touch()
    _, first = scene.follow()
    scene.answer("a", "b")
    assert not first.done
    scene.answer("b")
    assert seen(first.result) == ("snapshot", ["b"])


def test_no_bus_at_the_beginning_is_an_error_and_leaves_nothing(scene: Scene) -> None:
    stream, first = scene.follow()
    scene.now.questions[-1].fail(Unavailable("no bus"))
    scene.turn()
    assert isinstance(first.error, Unavailable)
    assert scene.watch._session is None
    assert scene.now.closed
    stream.close()
    _, again = scene.follow()
    scene.answer("a")
    assert seen(again.result) == ("snapshot", ["a"])


def test_a_bus_that_stays_away_ends_the_watch(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PATIENCE", 0.05)
    stream, _ = scene.begin("a")
    waiting = scene.next(stream)
    failed = DBusError("org.freedesktop.DBus.Error.NoReply", "")
    scene.now.told.broke()
    for _ in range(20):
        scene.turn(0.01)
        if waiting.done:
            break
        if scene.now.questions and not scene.now.questions[-1].done:
            scene.now.questions[-1].fail(failed)
    assert waiting.error is failed


# --- cursors, slow ones, policies -----------------------------------------------------------------------------------


def test_a_cursor_goes_on_where_it_is_from(scene: Scene) -> None:
    stream, _ = scene.begin()
    for name in ("a", "b", "c"):
        scene.now.told.added(name, "/m")
    scene.answer("a", "b", "c")
    cursor = scene.next(stream).result.parameters["cursor"]
    stream.close()
    again, first = scene.follow(cursor)
    assert seen(first.result) == ("resumed", [])
    assert first.result.parameters["cursor"] == cursor
    assert [scene.told(again) for _ in range(2)] == [("added", ["b"]), ("added", ["c"])]


def test_who_comes_back_finds_the_watch_going_on(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    stream, first = scene.begin("a")
    stream.close()
    scene.now.told.removed("a")
    again, resumed = scene.follow(first.parameters["cursor"])
    assert seen(resumed.result) == ("resumed", [])
    assert scene.told(again) == ("removed", ["a"])


def test_who_comes_back_too_late_is_told(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LINGER", 0.01)
    stream, first = scene.begin("a")
    connection = scene.now
    stream.close()
    scene.turn(0.05)
    assert connection.closed
    _, again = scene.follow(first.parameters["cursor"])
    scene.answer("a")
    assert seen(again.result) == ("snapshot", ["a"])
    assert again.result.parameters["gap"] == "cursor"


@pytest.mark.parametrize("cursor", ["", "nonsense", "0123456789abcdef-0"])
def test_a_cursor_that_is_none_is_no_error(scene: Scene, cursor: str) -> None:
    _, first = scene.follow(cursor)
    scene.answer("a")
    assert first.result.parameters["gap"] == "cursor"


def test_who_is_slow_is_told_how_much_was_missed(scene: Scene) -> None:
    scene.watch.ring = Ring(10)
    stream, _ = scene.begin("a")
    scene.now.told.removed("a")
    for number in range(20):
        scene.now.told.added(f"m{number}", "/m")
    scene.answer(*(f"m{number}" for number in range(20)))
    task = scene.next(stream)
    assert (task.result.parameters["gap"], task.result.parameters["missed"]) == ("lagged", 21)
    assert len(task.result.parameters["machines"]) == 20
    assert not scene.next(stream).done


def test_what_is_hidden_is_no_reply_and_does_not_count(scene: Scene) -> None:
    scene.hidden = {"secret"}
    stream, first = scene.begin("a", "secret")
    assert seen(first) == ("snapshot", ["a"])
    waiting = scene.next(stream)
    scene.now.told.removed("secret")
    scene.now.told.added("secret", "/m")
    scene.answer("a", "secret")
    assert not waiting.done
    scene.now.told.removed("a")
    scene.turn()
    assert seen(waiting.result) == ("removed", ["a"])
    before, after = (reply.parameters["cursor"].partition("-") for reply in (first, waiting.result))
    assert (before[2], after[2]) == ("0", "1")


def test_another_policy_is_another_snapshot(scene: Scene) -> None:
    scene.hidden = {"b"}
    stream, first = scene.begin("a", "b")
    waiting = scene.next(stream)
    scene.hidden = {"a"}
    scene.watch.renew()
    scene.turn()
    assert seen(waiting.result) == ("snapshot", ["b"])
    assert waiting.result.parameters["gap"] == "policy"
    _, again = scene.follow(first.parameters["cursor"])
    assert again.result.parameters["gap"] == "cursor"


# --- ends -----------------------------------------------------------------------------------------------------------


def test_who_leaves_ends_the_wait(scene: Scene) -> None:
    stream, _ = scene.begin()
    waiting = scene.next(stream)
    stream.close()
    stream.close()
    scene.turn()
    assert waiting.done
    assert waiting.result == Reply()


def test_one_watch_serves_all_and_ends_after_the_last(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LINGER", 0.01)
    one, _ = scene.begin("a")
    two, _ = scene.follow()
    one.close()
    scene.turn(0.05)
    assert len(scene.said) == 1
    assert not scene.now.closed
    two.close()
    scene.turn(0.05)
    assert scene.now.closed
    assert scene.watch.state == {}
    assert not scene.watch._followers


def test_nothing_is_done_while_nobody_watches(scene: Scene) -> None:
    scene.turn(0.02)
    assert scene.said == []


# --- waiting --------------------------------------------------------------------------------------------------------


def wait(
    scene: Scene, name: str, *, there: bool, seconds: float | None = None, left: Future[None] | None = None
) -> Task:
    task = Task(
        scene.loop,
        wait_for_machine(scene.watch, scene.shows, name, there=there, seconds=seconds, left=left),
    )
    scene.turn()
    return task


def test_what_is_so_already_needs_no_wait(scene: Scene) -> None:
    running, gone = wait(scene, "a", there=True), wait(scene, "b", there=False)
    assert not running.done
    scene.answer("a")
    assert (running.result, gone.done, gone.result) == (machine("a"), True, None)


def test_it_is_waited_for(scene: Scene) -> None:
    scene.begin("a")
    running, gone = wait(scene, "b", there=True), wait(scene, "a", there=False)
    scene.now.told.added("b", "/m/b")
    scene.now.told.removed("a")
    assert not running.done
    assert not gone.done
    scene.answer("b")
    assert running.result == machine("b")
    assert gone.done
    assert gone.error is None


def test_one_that_comes_back_at_once_was_gone(scene: Scene) -> None:
    scene.begin("a")
    gone = wait(scene, "a", there=False)
    scene.now.told.removed("a")
    scene.now.told.added("a", "/m/a")
    scene.answer("a")
    assert gone.done
    assert gone.error is None


def test_a_time_is_over_when_it_is_known_what_there_is(scene: Scene) -> None:
    there, not_there = wait(scene, "a", there=True, seconds=0), wait(scene, "b", there=True, seconds=0)
    scene.turn(0.01)
    assert not there.done
    scene.answer("a")
    assert there.result == machine("a")
    assert isinstance(not_there.error, Timeout)
    assert not scene.watch._followers


def test_a_hidden_machine_is_one_that_does_not_come(scene: Scene) -> None:
    scene.hidden = {"secret"}
    scene.begin("secret")
    tasks = [wait(scene, name, there=True, seconds=0.01) for name in ("secret", "missing")]
    scene.turn(0.03)
    assert [type(task.error) for task in tasks] == [Timeout, Timeout]
    assert [wait(scene, name, there=False).done for name in ("secret", "missing")] == [True, True]


def test_the_wait_ends_when_the_client_leaves(scene: Scene) -> None:
    scene.begin()
    left = Future[None](scene.loop)
    task = wait(scene, "a", there=True, left=left)
    assert not task.done
    left.resolve(None)
    scene.turn()
    assert isinstance(task.error, Unavailable)
    assert len(scene.watch._followers) == 1


# --- images ---------------------------------------------------------------------------------------------------------


class FakePool(Pool):
    """Looks as a test says."""

    def __init__(self) -> None:
        self.version = 0

    def look(self) -> Stamp | None:
        return ((self.version, 0, 0, 0),)

    def has_changed(self, stamp: Stamp | None) -> bool:
        return stamp != self.look()


class Gallery:
    """A watch of images."""

    def __init__(self, scene: Scene) -> None:
        self.scene = scene
        self.images: list[Image] = []
        self.reads = 0
        self.error: Exception | None = None
        self.pool = FakePool()
        self.watch = ImageWatch(scene.loop, self._read, self.pool)
        self.stream = Changes(
            self.watch, lambda _: True, "images", lambda entry: {"name": entry[0], "usage": entry[5]}, everything=False
        )

    async def _read(self) -> Images:
        self.reads += 1
        if self.error is not None:
            raise self.error
        return Images(self.images)

    def begin(self, *images: Image) -> None:
        self.images = list(images)
        first = Task(self.scene.loop, self.stream.first(None))
        self.scene.turn()
        assert first.result.parameters["event"] == "snapshot"

    def change(self, *images: Image) -> None:
        self.images = list(images)
        self.pool.version += 1
        reads = self.reads
        self.scene.until(lambda: self.reads > reads)
        self.scene.turn()

    def events(self) -> list[tuple[str, str]]:
        """All replies that are there."""
        found = []
        while self.stream._position < self.watch.ring.end:
            task = Task(self.scene.loop, self.stream.next())
            self.scene.turn()
            (entry,) = task.result.parameters["images"]
            found.append((task.result.parameters["event"], entry["name"]))
        return found


@pytest.fixture
def gallery(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> Iterator[Gallery]:
    monkeypatch.setattr(module, "LOOK", 0.005)
    gallery = Gallery(scene)
    yield gallery
    gallery.stream.close()
    gallery.watch.end()
    scene.turn()


def test_images_come_go_and_change(gallery: Gallery) -> None:
    gallery.begin(image("a"), image("b"), image("c"))
    gallery.change(image("b"), image("c", usage=2), image("d"))
    assert gallery.events() == [("removed", "a"), ("changed", "c"), ("added", "d")]


def test_an_image_that_was_replaced_is_removed_and_added(gallery: Gallery) -> None:
    gallery.begin(image("a"))
    gallery.change(image("a", ctime=2))
    assert gallery.events() == [("removed", "a"), ("added", "a")]


def test_images_are_read_when_the_pool_looks_different_and_now_and_then(
    gallery: Gallery, monkeypatch: pytest.MonkeyPatch
) -> None:
    gallery.begin(image("a"))
    gallery.scene.turn(0.05)
    assert gallery.reads == 1
    monkeypatch.setattr(module, "REREAD", 0.01)
    gallery.change(image("a"))
    gallery.scene.until(lambda: gallery.reads > 3)


def test_what_the_service_does_itself_is_seen_at_once(gallery: Gallery, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LOOK", 60)
    gallery.begin()
    gallery.images = [image("a")]
    gallery.watch.hint()
    gallery.scene.turn()
    assert gallery.events() == [("added", "a")]


def test_images_survive_a_machined_that_is_not_there(gallery: Gallery) -> None:
    gallery.begin(image("a"))
    gallery.error = Unavailable("away")
    gallery.change()
    gallery.error = None
    gallery.scene.until(lambda: not gallery.watch.state)
    assert gallery.events() == [("removed", "a")]


# --- signals of the bus ---------------------------------------------------------------------------------------------


class Heard:
    """Who is told, as lines."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def added(self, name: str, path: str) -> None:
        self.lines.append(f"added {name} {path}")

    def removed(self, name: str) -> None:
        self.lines.append(f"removed {name}")

    def moved(self, there: bool) -> None:
        self.lines.append(f"moved {there}")

    def broke(self) -> None:
        self.lines.append("broke")


MANAGER = "org.freedesktop.machine1.Manager"
BUS = "org.freedesktop.DBus"


def owner(old: str, new: str, sender: str = BUS) -> Signal:
    return Signal(sender, BUS, "NameOwnerChanged", ("org.freedesktop.machine1", old, new))


def test_only_machined_itself_is_believed(loop: Loop) -> None:
    told = Heard()
    signals = Signals(loop, told)
    new = Signal(":1.5", MANAGER, "MachineNew", ("a", "/m/a"))
    signals.heard(new)
    signals.heard(owner("", ":1.5", sender=":1.6"))
    signals.heard(new)
    assert told.lines == []
    signals.heard(owner("", ":1.5"))
    signals.heard(new)
    signals.heard(Signal(":1.6", MANAGER, "MachineNew", ("forged", "/m")))
    signals.heard(Signal(":1.5", "org.example.Other", "MachineNew", ("other", "/m")))
    signals.heard(Signal(":1.5", MANAGER, "MachineNew", (7,)))
    signals.heard(Signal(":1.5", MANAGER, "MachineRemoved", ("a", "/m/a")))
    signals.heard(owner(":1.5", ":1.7"))
    signals.heard(Signal(":1.5", MANAGER, "MachineNew", ("late", "/m")))
    assert told.lines == ["moved True", "added a /m/a", "removed a", "moved False", "moved True"]


def test_a_connection_that_was_closed_says_nothing_more(loop: Loop) -> None:
    told = Heard()
    signals = Signals(loop, told)
    signals.heard(owner("", ":1.5"))
    signals.close()
    signals.heard(Signal(":1.5", MANAGER, "MachineNew", ("a", "/m/a")))
    signals.broke()
    assert told.lines == ["moved True"]


def test_machined_has_no_connection_for_signals_until_somebody_watches(
    loop: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[Bus] = []
    monkeypatch.setattr(Bus, "_connect", lambda bus: opened.append(bus))
    machined = Machined(loop)
    assert opened == []
    machined.change_rules(Limits())
    machined.close()
    assert opened == []
