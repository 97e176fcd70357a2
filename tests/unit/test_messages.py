# SPDX-License-Identifier: LGPL-2.1-or-later
"""A client as the kernel knows it."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator

import pytest
from jeepney.fds import FileDescriptor

from bridge.loop import Future, Loop
from bridge.messages import Peer


@pytest.fixture
def loop() -> Iterator[Loop]:
    loop = Loop()
    yield loop
    loop.close()


def test_whether_a_client_lives_is_known_with_many_descriptors_open(loop: Loop) -> None:
    """select(2) takes none from 1024 on; a service with a thousand clients has more."""
    child = os.fork()
    if child == 0:
        os.read(os.pipe()[0], 1)
    low = os.pidfd_open(child)
    high = fcntl.fcntl(low, fcntl.F_DUPFD_CLOEXEC, 1500)
    os.close(low)
    peer = Peer(child, 1000, 1000, Future(loop), FileDescriptor(high))
    assert peer.lives()
    os.kill(child, 9)
    os.waitpid(child, 0)
    assert not peer.lives()
    peer.close()


def test_a_client_without_a_pidfd_may_be_anybody_by_now(loop: Loop) -> None:
    assert not Peer(os.getpid(), 0, 0, Future(loop)).lives()
