# SPDX-License-Identifier: LGPL-2.1-or-later
"""Tests on a real systemd-machined: hosts in namespaces, made by `host`, given to tests by `conftest`."""
