"""mlx-lm's ways to generate and to score, unpatched, on accelerated models.

Tokens are compared with those of the same model without acceleration. Differences of a
few units in the last place of float32 do not change them.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import ModuleType, SimpleNamespace

import mlx.core as mx
import numpy as np
import pytest
from mlx_lm.generate import batch_generate, generate_step, speculative_generate_step
from mlx_lm.models.cache import load_prompt_cache, make_prompt_cache, save_prompt_cache
from mlx_lm.perplexity import eval_ppl
from mlx_lm.sample_utils import make_sampler

from tests.support import families, tiny_models

pytestmark = pytest.mark.slow

PROMPT = [(7 * i * i + 3) % 160 for i in range(21)]


@pytest.fixture(scope="module", params=families.FAMILIES)
def pair(request):
    """Return a family's model, stock and accelerated."""
    return families.stock(request.param), families.ours(request.param)


def outcome(run: Callable) -> object:
    """Return the call's result, or the type of its exception; neither may change."""
    try:
        return run()
    except Exception as error:
        return type(error)


def tokens_of(model, count=24, prompt=PROMPT, **options):
    steps = generate_step(mx.array(prompt), model, max_tokens=count, **options)
    return [token for token, _ in steps]


def assert_same(pair, run):
    stock, ours = (outcome(lambda model=model: run(model)) for model in pair)
    assert stock == ours
    return stock


@pytest.mark.parametrize("family", families.FAMILIES)
@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16])
def test_logits_are_nearer_to_the_exact_ones_than_mlxs_own(family, dtype):
    """Compare the ratio of both errors, over models and prompts of six seeds.

    For one model chance decides which is nearer: both are off by a few roundings.
    """
    logs = []
    for seed in range(6):
        stock, ours = families.logit_errors(family, dtype, seed)
        logs.append(np.log(ours / stock))
    # The 95 % interval of the mean, by Student's t with five degrees of freedom.
    most = np.mean(logs) + 2.571 * np.std(logs, ddof=1) / np.sqrt(len(logs))
    assert np.median(logs) <= 0 and most <= 0, np.exp(logs)


def test_greedy(pair):
    assert len(assert_same(pair, tokens_of)) == 24


def test_sampled(pair):
    def run(model):
        mx.random.seed(4)
        return tokens_of(model, sampler=make_sampler(0.8, top_p=0.95))

    assert len(set(assert_same(pair, run))) > 4


def test_a_prompt_cache_saved_and_loaded(pair, tmp_path):
    def run(model):
        cache = make_prompt_cache(model)
        first = tokens_of(model, 4, prompt_cache=cache)
        save_prompt_cache(str(tmp_path / "cache.safetensors"), cache)
        cache = load_prompt_cache(str(tmp_path / "cache.safetensors"))
        return first + tokens_of(model, 8, [5, 6, 7], prompt_cache=cache)

    assert len(assert_same(pair, run)) == 12


def test_a_rotating_cache(pair):
    assert len(assert_same(pair, lambda m: tokens_of(m, max_kv_size=16))) == 24


@pytest.mark.parametrize("bits", [4, 8])
def test_a_quantized_cache(pair, bits):
    options = dict(kv_bits=bits, kv_group_size=32, quantized_kv_start=8)
    made = assert_same(pair, lambda model: tokens_of(model, **options))
    # mlx-lm cannot quantize a rotating cache, nor attend to quantized latents.
    expected = {"gemma3_text": NotImplementedError, "deepseek_v3": AttributeError}
    assert made == expected.get(pair[0].model_type) or len(made) == 24


def test_batches_of_prompts_of_different_lengths(pair):
    prompts = [PROMPT, PROMPT[:3], PROMPT[4:12]]
    tokenizer = SimpleNamespace(eos_token_ids={0}, decode=lambda tokens: str(tokens))

    def run(model):
        return batch_generate(
            model, tokenizer, prompts, max_tokens=[12, 5, 9], return_token_ids=True
        ).token_ids

    batch = assert_same(pair, run)
    assert all(
        0 < len(tokens) <= n for tokens, n in zip(batch, (12, 5, 9), strict=True)
    )


def test_speculation(pair):
    def run(model):
        draft = families.ours("llama", bits=3)
        steps = speculative_generate_step(
            mx.array(PROMPT), model, draft, max_tokens=24, num_draft_tokens=3
        )
        return [token for token, *_ in steps]

    assert len(assert_same(pair, run)) == 24


def test_perplexity(pair):
    data = mx.concatenate(tiny_models.tokens(4, 33))
    (stock, error), ours = (eval_ppl(model, data, 2) for model in pair)
    assert ours == pytest.approx((stock, error), rel=1e-4)
    assert stock > 160  # random weights are worse than a uniform guess


@pytest.fixture
def evaluate(monkeypatch):
    """Run mlx_lm.evaluate, which needs only a base class of lm-eval to score."""
    try:
        import lm_eval  # noqa: F401
    except ModuleNotFoundError:
        for name in ("lm_eval", "lm_eval.api", "lm_eval.api.model"):
            monkeypatch.setitem(sys.modules, name, ModuleType(name))
        registry = ModuleType("lm_eval.api.registry")
        registry.register_model = lambda *_: lambda kind: kind
        monkeypatch.setitem(sys.modules, "lm_eval.api.registry", registry)
        sys.modules["lm_eval.api.model"].LM = object
    from mlx_lm import evaluate

    return evaluate


def test_scores_of_evaluation(pair, evaluate):
    def scores(model):
        lm = object.__new__(evaluate.MLXLM)
        lm._model, lm._max_tokens, lm.use_chat_template = model, None, False
        lm.tokenizer = SimpleNamespace(encode=lambda text, **_: list(text.encode()))
        requests = [
            SimpleNamespace(args=(context, continuation))
            for context, continuation in (("abc", "de"), ("abc", "f"), ("xyz", "xyz"))
        ]
        return lm.loglikelihood(requests)

    stock, ours = (scores(model) for model in pair)
    assert [greedy for _, greedy in stock] == [greedy for _, greedy in ours]
    assert np.allclose([s for s, _ in stock], [s for s, _ in ours], rtol=1e-4)
