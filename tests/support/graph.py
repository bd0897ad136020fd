"""Counts the nodes of a graph that is not computed yet."""

import re
import tempfile
from collections import Counter

import mlx.core as mx


def node_names(*arrays: mx.array) -> Counter:
    """Return how many nodes of each name these arrays still depend on."""
    with tempfile.NamedTemporaryFile("r", suffix=".dot") as file:
        mx.export_to_dot(file.name, *arrays)
        return Counter(re.findall(r'"([^"]+)", shape=rectangle', file.read()))
