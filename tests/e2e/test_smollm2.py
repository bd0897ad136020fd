"""A real 4-bit model in our layers, against an evaluation in float64.

The error of a float32 evaluation depends on the whole network. Hence our error is
compared with that of another float32 evaluation, NumPy's, which sums in another order.
`_SIZE` is the allowed ratio: some orders of summation are better than others.
"""

from __future__ import annotations

import os
from pathlib import Path
from pydoc_data.topics import topics

import mlx.core as mx
import numpy as np
import pytest
from filelock import FileLock
from mlx.utils import tree_flatten
from mlx_lm import load

from mlx_nibble import lm
from mlx_nibble.bench import side_by_side
from mlx_nibble.evaluation.reference import llama_logits
from mlx_nibble.formats import Quantized, pack
from mlx_nibble.io.gguf.reader import read_gguf
from mlx_nibble.io.gguf.tensors import read_rows
from tests.e2e.llama_oracle import Llama
from tests.support.tolerance import relative_rms

_SIZE = 4
_TOKENS = 160
_FLOAT32_TOKENS = 64


@pytest.fixture(scope="session")
def model(smollm2_folder: Path):
    return lm.load(str(smollm2_folder))


@pytest.fixture(scope="session")
def text(model) -> list[int]:
    """Return technical English that every CPython has."""
    words = "".join(topics[topic] for topic in ("assert", "lambda", "for", "while"))
    return model[1].encode(words)[:_TOKENS]


@pytest.fixture(scope="session")
def oracle(smollm2_gguf: Path, text, tmp_path_factory) -> np.ndarray:
    """Return the text's logits in float64, computed once for all xdist workers."""
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent
    path = folder / "smollm2-oracle.npy"
    with FileLock(f"{path}.lock"):
        if not path.exists():
            np.save(path, Llama(smollm2_gguf, np.float64).logits(text))
    return np.load(path, mmap_mode="r")


@pytest.fixture(scope="session")
def float32_error(smollm2_gguf: Path, oracle, text) -> float:
    """Return the relative RMS error of NumPy's logits."""
    got = Llama(smollm2_gguf, np.float32).logits(text[:_FLOAT32_TOKENS])
    return relative_rms(got, oracle[:_FLOAT32_TOKENS])


def negative_log_likelihood(logits: np.ndarray, tokens: list[int]) -> np.ndarray:
    """Return the value of each token after the first, given the tokens before it."""
    logits = logits.astype(np.float64)[:-1]
    logits -= logits.max(axis=-1, keepdims=True)
    chosen = logits[np.arange(len(logits)), tokens[1:]]
    return np.log(np.exp(logits).sum(axis=-1)) - chosen


def test_import_is_bit_exact(smollm2_gguf, smollm2_folder):
    """Compare every stored bit with the arrays of MLX's reader."""
    file = read_gguf(smollm2_gguf)
    theirs = mx.load(str(smollm2_gguf))
    assert isinstance(theirs, dict)
    compared = 0
    for name in file.tensors:
        (tensor,) = read_rows(file, name, most=1 << 40)
        parts = {"weight": tensor}
        if isinstance(tensor, Quantized):
            parts = {"weight": pack(tensor.codes, tensor.bits)}
            parts |= {"scales": tensor.scales, "biases": tensor.biases}
        for part, ours in parts.items():
            expected = np.array(theirs[f"{name.removesuffix('.weight')}.{part}"])
            # float32 holds the values of float16.
            ours = ours.astype(expected.dtype).reshape(expected.shape)
            assert ours.tobytes() == expected.tobytes(), f"{name} {part}"
            compared += 1
    assert compared == len(theirs)
    weights = mx.load(str(smollm2_folder / "model.safetensors"))
    assert isinstance(weights, dict) and len(weights) == len(theirs)
    for name, ours in (
        ("token_embd", "model.embed_tokens"),
        ("blk.29.ffn_down", "model.layers.29.mlp.down_proj"),
        ("blk.7.attn_v", "model.layers.7.self_attn.v_proj"),
    ):
        for part in ("weight", "scales", "biases"):
            assert mx.array_equal(theirs[f"{name}.{part}"], weights[f"{ours}.{part}"])


def test_tokens_are_the_models(smollm2_folder):
    """Known ids: digits one by one, words with their space, special tokens."""
    _, tokenizer = load(str(smollm2_folder))
    assert tokenizer.encode("What is the capital of France?") == [
        1780, 314, 260, 3575, 282, 4649, 47,
    ]  # fmt: skip
    assert tokenizer.eos_token_ids == {0, 2}  # as in llama.cpp, which knows their texts
    text = "In 1984, 3.14159 ≈ π; naïve 日本語\n\n\tfn(x) -> y"
    assert tokenizer.decode(tokenizer.encode(text)) == text
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hi"}], add_generation_prompt=True, tokenize=False
    )
    assert prompt.endswith("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n")


def test_every_layer_is_ours(model):
    kinds = {
        type(module).__module__
        for _, module in model[0].named_modules()
        if "scales" in module
    }
    assert kinds == {"mlx_nibble.nn"}


def test_logits_of_a_prompt(model, text, oracle, float32_error):
    error = relative_rms(side_by_side.logits(model[0], text), oracle)
    assert error <= _SIZE * float32_error


def test_logits_one_token_at_a_time(model, text, oracle, float32_error):
    tokens = text[:16]
    cache = lm.make_prompt_cache(model[0])
    steps = [model[0](mx.array([[token]]), cache=cache)[0, 0] for token in tokens]
    error = relative_rms(np.array(mx.stack(steps)), oracle[:16])
    assert error <= _SIZE * float32_error


def test_perplexity(model, text, oracle):
    exact = np.array(oracle)
    got = side_by_side.logits(model[0], text)
    # Log-softmax changes by at most twice the largest change of a logit.
    allowed = 2 * abs(got - exact).max(axis=-1)[:-1]
    expected = negative_log_likelihood(exact, text)
    assert (abs(negative_log_likelihood(got, text) - expected) <= allowed).all()
    # The text is English, which the model has learned.
    assert 10 < np.exp(expected.mean()) < 30


def test_greedy_text_is_the_dequantized_models(model, smollm2_gguf):
    prompt = model[1].apply_chat_template(
        [{"role": "user", "content": "What is the capital of France?"}],
        add_generation_prompt=True,
    )
    steps = lm.stream_generate(*model, prompt, max_tokens=24)
    answer = list(steps)
    assert "".join(step.text for step in answer) == "The capital of France is Paris."
    tokens = [step.token for step in answer]
    dequantized = Llama(smollm2_gguf, np.float32).logits([*prompt, *tokens])
    expected = dequantized[len(prompt) - 1 : -1]
    assert expected.argmax(axis=-1).tolist() == tokens


def test_the_demos_reference_is_the_oracle(smollm2_folder, text, oracle, float32_error):
    """Both compute in float64, but the reference's weights are rounded to float32."""
    got = llama_logits(smollm2_folder, text[:16])
    assert got is not None
    assert relative_rms(got, oracle[:16]) < float32_error / 4


def test_parameters_are_the_checkpoints(model, smollm2_folder):
    """Acceleration neither adds nor changes saved parameters."""
    stock = dict(tree_flatten(load(str(smollm2_folder), lazy=True)[0].parameters()))
    ours = dict(tree_flatten(model[0].parameters()))
    assert ours.keys() == stock.keys()
    for name, array in ours.items():
        assert mx.array_equal(array, stock[name]), name  # float16 is exact in float32
