# SPDX-License-Identifier: LGPL-2.1-or-later
"""What machined lists: nobody changes it, and what is made of it is true for as long as it is.

`replies` are those, by the policy that filtered them (Machined.rules) and what they are about.
"""

from collections.abc import Iterable
from typing import TypeAlias

from .messages import Reply

# Name, class, service, object path.
Machine: TypeAlias = tuple[str, str, str, str]
# Name, type, read-only, ctime, mtime, usage, object path.
Image: TypeAlias = tuple[str, str, bool, int, int, int, str]


class Machines(dict[str, Machine]):
    """Machines by name, in its order."""

    def __init__(self, entries: Iterable[Machine] = ()) -> None:
        super().__init__((entry[0], entry) for entry in sorted(entries))
        self.replies: dict[tuple[int, str | bool], Reply] = {}


class Images(list[Image]):
    """Images, in the order of their names."""

    def __init__(self, entries: Iterable[Image] = ()) -> None:
        super().__init__(sorted(entries))
        self.replies: dict[tuple[int, str | bool], Reply] = {}
