# SPDX-License-Identifier: LGPL-2.1-or-later
"""Text for terminals."""


def printable(text: str, keep: str = "") -> str:
    """The text so that it can do no more on a terminal than be read, but for the characters to `keep`.

    Control characters, and those that turn a line around or hide it, are shown as Python writes them.
    """
    return "".join(c if c.isprintable() or c in keep else ascii(c)[1:-1] for c in text)
