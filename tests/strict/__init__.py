# SPDX-License-Identifier: LGPL-2.1-or-later
"""What comes in, and what exactly comes of it: `table.py`. Held against the service here, and in the lab against it
and sd-varlink.
"""
