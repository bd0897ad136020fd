"""Our operations behind the names that layers call on the CPU.

Each function has the signature of the one that it stands for. Where no kernel of ours
computes a call, as inside a function transformation, it is the function itself that
computes it. The names are those of :mod:`mlx_nibble.acceleration.route`; nothing here
imports the modules that they belong to.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import reduce
from typing import Any

import mlx.core as mx
import mlx.nn as mlx_nn

from mlx_nibble import _native, fast

# Recordings follow names (reach.py), and modules of MLX have a method `modules`.
_IMPORTED = sys.modules


def stock(full: str) -> Callable[..., Any]:
    """Return the function of this full name. Its module has been imported."""
    names = full.split(".")
    count = next(
        n for n in range(len(names), 0, -1) if ".".join(names[:n]) in _IMPORTED
    )
    return reduce(getattr, names[count:], _IMPORTED[".".join(names[:count])])


def activation(full: str, kind: str | None = None) -> Callable[..., mx.array]:
    """Return the stand-in for an activation of one argument."""
    kind = kind or full.rpartition(".")[2]

    def activated(x: Any, *more: Any, **options: Any) -> mx.array:
        y = None
        if isinstance(x, mx.array) and not more and not options:
            y = _native.ext.activation(kind, x)  # type: ignore[union-attr]
        return stock(full)(x, *more, **options) if y is None else y

    return activated


def gated(full: str, kind: str) -> Callable[..., mx.array]:
    """Return the stand-in for an activation of one argument, times another."""

    def product(gate: mx.array, x: mx.array) -> mx.array:
        y = _native.ext.activation(kind, gate, x)  # type: ignore[union-attr]
        return stock(full)(gate, x) if y is None else y

    return product


SWIGLU_OAI = "mlx_lm.models.activations.swiglu_oai"


def swiglu_oai(
    gate: mx.array, x: mx.array, alpha: float = 1.702, limit: float = 7.0
) -> mx.array:
    """Return the clipped SwiGLU of gpt-oss."""
    y = _native.ext.activation(  # type: ignore[union-attr]
        "swiglu_oai", gate, x, alpha, limit
    )
    return stock(SWIGLU_OAI)(gate, x, alpha, limit) if y is None else y


PRECISE_SWIGLU = "mlx_lm.models.activations.precise_swiglu"


def precise_swiglu(h: mx.array, gate: mx.array, x: mx.array) -> mx.array:
    """Return SwiGLU that is rounded once; ours always is."""
    if h.dtype == gate.dtype == x.dtype:
        return fast.swiglu(gate, x)
    return stock(PRECISE_SWIGLU)(h, gate, x)


def linear(layer: Any, x: mx.array) -> mx.array:
    """Return ``x @ w.T + bias`` of a layer that is not quantized."""
    return _native.ext.dense_linear(  # type: ignore[union-attr]
        x, layer["weight"], layer.get("bias")
    )


def as_linear(layer: Any, x: mx.array) -> mx.array:
    """Return ``x @ w.T``, the output of tied weights."""
    return _native.ext.dense_linear(x, layer["weight"])  # type: ignore[union-attr]


def multi_linear(layer: Any, x: mx.array, transpose: bool = True) -> mx.array:
    """Return the products of heads with a matrix each, of latent attention."""
    if not transpose:
        return x @ layer.weight
    w = layer.weight.swapaxes(-1, -2)
    return _native.ext.gather_mm(x, w)  # type: ignore[union-attr]


def gated_delta(full: str) -> Callable[..., Any]:
    """Return the stand-in for a gated delta rule, its results and its state."""

    def update(
        q: mx.array,
        k: mx.array,
        v: mx.array,
        g: mx.array,
        beta: mx.array,
        state: mx.array | None = None,
        mask: mx.array | None = None,
        *more: Any,
        **options: Any,
    ) -> tuple[mx.array, ...]:
        ours = None
        if all(value is None for value in (*more, *options.values())):
            ours = _native.ext.gated_delta(  # type: ignore[union-attr]
                q, k, v, g, beta, state, mask
            )
        return ours or stock(full)(q, k, v, g, beta, state, mask, *more, **options)

    return update


def state_space(full: str) -> Callable[..., Any]:
    """Return the stand-in for a state-space model (Mamba 2) and its state."""

    def update(
        x: mx.array,
        A_log: mx.array,
        B: mx.array,
        C: mx.array,
        D: mx.array,
        dt: mx.array,
        dt_bias: mx.array,
        state: mx.array | None = None,
        time_step_limit: tuple[float, float] = (0.001, 100.0),
        mask: mx.array | None = None,
        lengths: mx.array | None = None,
        step: int = 256,
    ) -> tuple[mx.array, mx.array]:
        ours = None
        if lengths is None or mask is not None:  # the mask ends where the lengths do
            limits = tuple(time_step_limit)
            ours = _native.ext.state_space(  # type: ignore[union-attr]
                x, A_log, B, C, D, dt, dt_bias, limits, state, mask
            )
        return ours or stock(full)(
            x, A_log, B, C, D, dt, dt_bias, state, time_step_limit, mask, lengths, step
        )

    return update


RWKV7 = "mlx_lm.models.rwkv7.Rwkv7TimeMixing._wkv7"


def rwkv7(
    layer: Any,
    r: mx.array,
    w: mx.array,
    k: mx.array,
    v: mx.array,
    a: mx.array,
    b: mx.array,
    state: mx.array | None,
) -> tuple[mx.array, mx.array]:
    """Return the results of RWKV-7's recurrence, and its state in float32."""
    wide = None if state is None else state.astype(mx.float32)
    ours = _native.ext.rwkv7(r, w, k, v, a, b, wide)  # type: ignore[union-attr]
    return ours or stock(RWKV7)(layer, r, w, k, v, a, b, state)


MAMBA = "mlx_lm.models.mamba.MambaBlock._process_sequence"
JAMBA = "mlx_lm.models.jamba.JambaMambaMixer._process_sequence"


def mamba(
    layer: Any, x: mx.array, conv_cache: mx.array | None, state: mx.array | None
) -> tuple[mx.array, tuple[mx.array, mx.array]]:
    """Return the results of a Mamba layer, its last inputs and its state."""
    return _mamba(layer, x, conv_cache, state, _mamba_steps) or stock(MAMBA)(
        layer, x, conv_cache, state
    )


def jamba(
    layer: Any, x: mx.array, conv_cache: mx.array | None, state: mx.array | None
) -> tuple[mx.array, tuple[mx.array, mx.array]]:
    """Return the same of Jamba's layer, which normalizes its gates."""
    return _mamba(layer, x, conv_cache, state, _jamba_steps) or stock(JAMBA)(
        layer, x, conv_cache, state
    )


def _mamba_steps(layer: Any, steps: list[mx.array]) -> list[mx.array]:
    if not layer.use_bcdt_rms:
        return steps
    return [fast.rms_norm(s, None, layer.args.mixer_rms_eps) for s in steps]


def _jamba_steps(layer: Any, steps: list[mx.array]) -> list[mx.array]:
    norms = (layer.dt_layernorm, layer.b_layernorm, layer.c_layernorm)
    return [norm(step) for norm, step in zip(norms, steps, strict=True)]


def _mamba(
    layer: Any,
    inputs: mx.array,
    conv_cache: mx.array | None,
    state: mx.array | None,
    normalized: Callable[[Any, list[mx.array]], list[mx.array]],
) -> tuple[mx.array, tuple[mx.array, mx.array]] | None:
    """Return what a Mamba layer does; None if no kernel of ours computes it."""
    x, z = layer.in_proj(inputs).split(indices_or_sections=2, axis=-1)
    before = layer.conv_kernel_size - 1
    if conv_cache is None:
        whole = mx.pad(x, [(0, 0), (before, 0), (0, 0)])
    else:
        whole = mx.concatenate([conv_cache, x], axis=1)
    conv = _native.ext.conv1d(  # type: ignore[union-attr]
        whole, layer.conv1d.weight, groups=layer.intermediate_size
    )
    if (bias := layer.conv1d.get("bias")) is not None:
        conv = conv + bias
    x = activation("mlx.nn.silu")(conv)
    N, rank = layer.ssm_state_size, layer.time_step_rank
    parts: Any = mx.split(layer.x_proj(x), [rank, rank + N], axis=-1)
    delta, b, c = normalized(layer, parts)
    delta = mlx_nn.softplus(layer.dt_proj(delta))
    wide = None if state is None else state.astype(mx.float32)
    rates = -mx.exp(layer.A_log)
    found = _native.ext.selective_scan(  # type: ignore[union-attr]
        delta, x, b, c, rates, layer.D, wide
    )
    if found is None:
        return None
    y, after = found
    return layer.out_proj(fast.swiglu(z, y)), (whole[:, -before:, :], after)


GEMMA2 = "mlx_lm.models.gemma2.Attention.__call__"


def gemma2_attention(batch_invariant: bool) -> Callable[..., mx.array]:
    """Return the stand-in for Gemma 2's attention, whose scores have a cap."""

    def capped_attention(
        layer: Any, x: mx.array, mask: mx.array | None = None, cache: Any = None
    ) -> mx.array:
        B, L, _ = x.shape
        q, k, v = (
            part(x).reshape(B, L, heads, -1).transpose(0, 2, 1, 3)
            for part, heads in (
                (layer.q_proj, layer.n_heads),
                (layer.k_proj, layer.n_kv_heads),
                (layer.v_proj, layer.n_kv_heads),
            )
        )
        offset = 0 if cache is None else cache.offset
        q, k = layer.rope(q, offset=offset), layer.rope(k, offset=offset)
        options = {
            "scale": layer.scale,
            "mask": mask,
            "cap": layer.attn_logit_softcapping,
            "batch_invariant": batch_invariant,
        }
        ext: Any = _native.ext
        attend = ext.scaled_dot_product_attention
        if cache is not None:
            k, v = cache.update_and_fetch(k, v)
            if isinstance(k, (list, tuple)):  # codes, scales and biases
                attend = ext.quantized_scaled_dot_product_attention
                options |= {"group_size": cache.group_size, "bits": cache.bits}
        y = attend(q, k, v, **options)
        return layer.o_proj(y.transpose(0, 2, 1, 3).reshape(B, L, -1))

    return capped_attention


SOFTCAP = "mlx_lm.models.gear._softcap_attention"


def softcap_attention(batch_invariant: bool) -> Callable[..., mx.array]:
    """Return the stand-in for a function of attention whose scores have a cap."""

    def capped_attention(
        queries: mx.array,
        keys: mx.array,
        values: mx.array,
        scale: float,
        softcap: float,
        mask: mx.array | str | None,
    ) -> mx.array:
        return _native.ext.scaled_dot_product_attention(  # type: ignore[union-attr]
            queries,
            keys,
            values,
            scale=scale,
            mask=mask,
            cap=softcap,
            batch_invariant=batch_invariant,
        )

    return capped_attention


WHISPER = "mlx_whisper.whisper.MultiHeadAttention.qkv_attention"


def whisper_attention(
    layer: Any, q: mx.array, k: mx.array, v: mx.array, mask: mx.array | None = None
) -> tuple[mx.array, mx.array]:
    """Return attention of mlx-whisper's layer, and its scores.

    The scores are MLX's. They are computed only if somebody reads them, as for the
    times of words.
    """
    B, L, width = q.shape
    q, k, v = (a.reshape(B, -1, layer.n_head, width // layer.n_head) for a in (q, k, v))
    q, k, v = (a.transpose(0, 2, 1, 3) for a in (q, k, v))
    scale = q.shape[-1] ** -0.25
    scores = (q * scale) @ (k * scale).swapaxes(-1, -2)
    if mask is not None:
        mask = mask[:L, :L]
        scores = scores + mask
    out = fast.scaled_dot_product_attention(q, k, v, scale=scale**2, mask=mask)
    return out.transpose(0, 2, 1, 3).reshape(B, L, width), scores


BERT = "mlx_embeddings.models.bert.BertSelfAttention.__call__"


def bert_attention(
    layer: Any, x: mx.array, attention_mask: mx.array | None = None
) -> mx.array:
    """Return the attention of BERT's layer in mlx-embeddings."""
    if layer.training:  # it drops some probabilities
        return stock(BERT)(layer, x, attention_mask)
    q, k, v = (
        layer.transpose_for_scores(part(x))
        for part in (layer.query, layer.key, layer.value)
    )
    out = fast.scaled_dot_product_attention(
        q, k, v, scale=layer.attention_head_size**-0.5, mask=attention_mask
    )
    return out.transpose(0, 2, 1, 3).flatten(2)
