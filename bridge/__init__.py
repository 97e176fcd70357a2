# SPDX-License-Identifier: LGPL-2.1-or-later
"""machine1-bridge: systemd-machined for clients that speak Varlink and nothing else."""

__version__ = "0.1.0"

DEFAULT_SOCKET = "/run/machine1/io.machine1"
