"""How much of the bench runs: all of it before a release and each night."""

from __future__ import annotations

import os

FULL = os.environ.get("NIBBLE_SIMT") == "all"
