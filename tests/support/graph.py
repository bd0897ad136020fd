"""What a graph that is yet to be computed is made of."""

import re
import tempfile
from collections import Counter

import mlx.core as mx


def node_names(*arrays: mx.array) -> Counter:
    """How many nodes of which name are yet to be computed for these arrays."""
    with tempfile.NamedTemporaryFile("r", suffix=".dot") as file:
        mx.export_to_dot(file.name, *arrays)
        return Counter(re.findall(r'"([^"]+)", shape=rectangle', file.read()))
