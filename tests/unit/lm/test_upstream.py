"""mlx-lm whose internals are others than the patches know."""

from __future__ import annotations

import importlib
import warnings

import mlx.core as mx
import mlx_lm
import pytest
import tomllib
from mlx_lm import sample_utils, server
from mlx_lm import utils as mlx_lm_utils
from packaging.requirements import Requirement

from mlx_nibble import lm
from mlx_nibble.cli import serve
from mlx_nibble.lm import patches, upstream
from mlx_nibble.lm.serving import expected
from tests.support.graph import node_names
from tests.support.paths import ROOT


def test_the_installed_mlx_lm_is_as_every_patch_expects():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(2):
            with lm.accelerated_loading(), lm.accelerated_generation():
                with lm.accelerated_loading(), lm.accelerated_generation():
                    pass
        importlib.reload(patches)
    expected.require(server)


def test_the_requirement_ends_before_internals_that_nobody_has_read():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = [Requirement(r) for r in project["optional-dependencies"]["lm"]]
    (wanted,) = [r.specifier for r in extras if r.name == "mlx-lm"]
    assert upstream.READ_AGAINST in wanted
    assert mlx_lm.__version__ in wanted
    major, minor, _ = upstream.READ_AGAINST.split(".")
    assert f"{major}.{int(minor) + 1}.0" not in wanted


@pytest.mark.parametrize("change", ["missing", "other parameters", "no function"])
def test_loading_does_without_what_has_changed(monkeypatch, change):
    if change == "missing":
        monkeypatch.delattr(mlx_lm_utils, "load_model")
    else:
        other = (lambda where: None) if change == "other parameters" else 5
        monkeypatch.setattr(mlx_lm_utils, "load_model", other)
    before = vars(mlx_lm_utils).get("load_model")
    with pytest.warns(RuntimeWarning, match="load_model.*0.32.2 is known") as found:
        with lm.accelerated_loading():
            assert vars(mlx_lm_utils).get("load_model") is before
    assert len(found) == 1 and "\n" not in str(found[0].message)


def test_generation_does_without_what_has_changed(monkeypatch):
    monkeypatch.delattr(lm.loops, "mx")
    with pytest.warns(RuntimeWarning, match="logsumexp"), lm.accelerated_generation():
        assert not hasattr(lm.loops, "mx")


def test_the_likeliest_token_is_found_by_our_kernel_inside_the_context_alone():
    logits = mx.random.normal((2, 50))

    def nodes() -> list[int]:
        samplers = [sample_utils.make_sampler(temp=0), lm.loops.greedy_sampler]
        return [node_names(f(logits))["NibbleArgMax"] for f in samplers]

    with lm.accelerated_generation():
        assert nodes() == [1, 1]
    assert nodes() == [0, 0]


def test_generation_does_without_a_greedy_sampler(monkeypatch):
    monkeypatch.delattr(sample_utils, "greedy_sampler")
    with pytest.warns(RuntimeWarning, match="argmax"), lm.accelerated_generation():
        assert not hasattr(sample_utils, "greedy_sampler")


@pytest.mark.parametrize("name", ["generate_step", "stream_generate"])
def test_a_loop_with_other_parameters_is_mlx_lms_own(monkeypatch, name):
    def other(text):
        return text

    monkeypatch.setattr(lm.loops, name, other)
    with pytest.warns(RuntimeWarning, match=f"{name} has no parameter model"):
        assert patches._faster(name) is other


def names():
    yield from (("", name) for name in expected._MODULE)
    yield from (("ResponseGenerator", name) for name in expected._ENGINE)
    yield from (("APIHandler", name) for name in expected._HANDLER)


@pytest.mark.parametrize(("owner", "name"), [*names(), ("", "ResponseGenerator")])
def test_the_server_is_refused_in_one_line(monkeypatch, capsys, tmp_path, owner, name):
    where = getattr(server, owner) if owner else server
    if name == "__init__":
        monkeypatch.setattr(where, name, lambda self: None)
    else:
        monkeypatch.delattr(where, name)
    with pytest.raises(RuntimeError, match=f"{name}.* is known to work") as error:
        serve._checked(None, server)  # pyright: ignore[reportArgumentType]
    assert "\n" not in str(error.value)
