"""The tensors of a GGUF file, assigned to the parameters of mlx-lm's model."""

from __future__ import annotations

from dataclasses import replace

from mlx_nibble.conversion.gguf_architectures import Model, Place
from mlx_nibble.conversion.gguf_rope import FREQUENCIES, LONG, SHORT
from mlx_nibble.io.gguf.errors import fail
from mlx_nibble.io.gguf.reader import GGUF

# Tensors that `gguf_rope` reads, and that are no parameters.
_OF_ROPE = {FREQUENCIES, LONG, SHORT}


def assign_tensors(file: GGUF, model: Model) -> list[tuple[str, Place]]:
    """Find and check the tensor of each parameter.

    Args:
        file: A file that ``read_gguf`` returned.
        model: Its model.

    Returns:
        Names of tensors (``blk.0.attn_q.weight``), with places whose paths are those of
        the whole model (``model.layers.0.self_attn.q_proj.weight``).

    Raises:
        ValueError: If a tensor is missing, has a shape that the configuration
            does not give it, or has no place in the model.
    """
    places = dict(model.row.outside)
    for layer in range(model.config["num_hidden_layers"]):
        for name, place in model.layer(layer).items():
            path = f"model.layers.{layer}.{place.path}"
            places[name] = replace(place, path=path)
    places = {
        name: replace(place, plain=place.plain is True or place.plain in model.facts)
        for name, place in places.items()
        if place.needs is None or place.needs in model.facts
    }
    for name, place in places.items():
        shape = tuple(model.sizes[dimension] for dimension in place.shape)
        if name not in file.tensors:
            fail(f"tensor {name!r} is required but is missing.")
        if file.tensors[name].shape != shape:
            got = file.tensors[name].shape
            fail(f"tensor {name!r} must have shape {shape} but has {got}.")
    if strangers := file.tensors.keys() - places.keys() - _OF_ROPE:
        kind, stranger = model.row.name, min(strangers)
        fail(f"a tensor of a {kind} model is required but {stranger!r} has no place.")
    found = list(places.items())
    if not model.row.tied and "head" not in model.facts:
        # llama.cpp takes the embedding for a missing head.
        embedding = places["token_embd.weight"]
        found.append(("token_embd.weight", replace(embedding, path="lm_head.weight")))
    return found
