# SPDX-License-Identifier: LGPL-2.1-or-later
"""The bridge under load, for long, and its answers held against the truth: on real hosts of the lab."""
