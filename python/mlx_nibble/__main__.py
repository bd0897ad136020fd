"""``python -m mlx_nibble``: the ``nibble`` command."""

import sys

from mlx_nibble.cli import main

sys.exit(main())
