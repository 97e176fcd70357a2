# SPDX-License-Identifier: LGPL-2.1-or-later
"""Runs a command in a machine through the bridge and prints what came from its PTY: no more than a socket is needed.

    python3 shell_client.py SOCKET MACHINE PROGRAM [ARGUMENT...]

Complete in itself, so that it runs inside a host by `python3 -` as well, and serves as an example of a client.
"""

import array
import json
import os
import socket
import sys


def open_shell(address: str, parameters: dict[str, object]) -> int:
    """Call OpenMachineShell; the file descriptor of the PTY, which is the caller's to close."""
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(address)
        call = {"method": "io.machine1.OpenMachineShell", "parameters": parameters}
        client.sendall(json.dumps(call).encode() + b"\0")
        message, descriptors = b"", array.array("i")
        while not message.endswith(b"\0"):
            # file descriptors come with the first byte of the reply that names them
            data, received, flags, _ = socket.recv_fds(client, 65536, 253, socket.MSG_CMSG_CLOEXEC)
            if flags & socket.MSG_CTRUNC:
                raise OSError("file descriptors were lost on the way")
            if not data:
                raise ConnectionError("the connection was closed before the reply")
            message += data
            descriptors.extend(received)
    reply = json.loads(message[:-1])
    if "error" in reply:
        raise RuntimeError(f"{reply['error']} {json.dumps(reply.get('parameters', {}))}")
    index: int = reply["parameters"]["pty_fd"]
    return descriptors[index]


def main() -> None:
    address, machine, program, *arguments = sys.argv[1:]
    # As in execve(2), the list of arguments begins with the program's own name
    parameters: dict[str, object] = {"name": machine, "user": "root", "path": program, "args": [program, *arguments]}
    terminal = open_shell(address, parameters)
    while True:
        try:
            data = os.read(terminal, 65536)
        except OSError:  # EIO: the program has ended, and the terminal's other side is closed
            break
        if not data:
            break
        sys.stdout.buffer.write(data.replace(b"\r\n", b"\n"))
    os.close(terminal)


if __name__ == "__main__":
    main()
