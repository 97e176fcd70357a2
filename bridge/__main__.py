# SPDX-License-Identifier: LGPL-2.1-or-later
"""The command: the service, and what people and ssh run beside it, which load little."""

import sys


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit status."""
    if arguments is None:
        arguments = sys.argv[1:]
    if arguments[:1] == ["shell"]:
        from .shell import main as shell

        return shell(arguments[1:])
    if arguments[:1] == ["report"]:
        from .report import main as report

        return report(arguments[1:])
    if arguments[:1] == ["--stdio"]:
        from .stdio import main as stdio

        return stdio(arguments[1:])
    from .service import main as service

    return service(arguments)


if __name__ == "__main__":
    sys.exit(main())
