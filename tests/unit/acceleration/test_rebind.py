"""Rebinding: the same code, with its names bound to other functions."""

from functools import partial

import mlx.core as mx
import mlx.nn as nn

from mlx_nibble.acceleration.rebind import Rebinding, original

REBINDING = Rebinding(
    {
        "mlx.core.abs": lambda x: ("our abs", x),
        "mlx.core.fast.rope": lambda x: ("our rope", x),
    }
)
plain_abs = mx.abs


def helper(x):
    return mx.abs(x)


def calls_itself(x):
    return calls_itself(x - 1) if x else mx.abs(x)


class Base(nn.Module):
    def __call__(self, x):
        return mx.abs(x)

    def other(self, x):
        return mx.fast.rope(x)

    def unaffected(self, x):
        return mx.square(x)


def rebound(kind, rebinding=REBINDING):
    module = kind()
    subclass = rebinding.subclass(kind)
    assert subclass is not None
    module.__class__ = subclass.kind
    return module, subclass


def test_names_mean_ours_in_the_subclass_and_theirs_elsewhere():
    module, subclass = rebound(Base)
    assert module(1) == ("our abs", 1)
    assert module.other(1) == ("our rope", 1)
    assert module.unaffected(mx.array(3)).item() == 9
    assert Base()(mx.array(-1)).item() == 1
    assert subclass.methods == {
        "__call__": frozenset({"abs"}),
        "other": frozenset({"rope"}),
    }
    assert subclass.operations == {"abs", "rope"}


def test_it_is_the_class_in_everything_else():
    module, subclass = rebound(Base)
    assert isinstance(module, Base)
    assert (type(module).__name__, type(module).__module__) == ("Base", __name__)
    assert original(subclass.kind) is Base and original(Base) is Base
    assert REBINDING.subclass(Base) is subclass
    assert type(module).other.__qualname__ == "Base.other"


def test_super_finds_the_rebound_method():
    class Derived(Base):
        def __call__(self, x):
            return super().__call__(x + 1)

    class Again(Derived):
        def __call__(self, x):
            return super().__call__(x + 1)

        def as_linear(self, x):
            return super().__call__(x)

    module, subclass = rebound(Again)
    assert module(1) == ("our abs", 3)
    assert module.as_linear(1) == ("our abs", 2)
    assert module.other(1) == ("our rope", 1)
    assert subclass.operations == {"abs", "rope"}


def test_two_bases():
    class Mixin(nn.Module):
        def mixed(self, x):
            return mx.abs(x), self(x)

    class Both(Mixin, Base):
        pass

    module, _ = rebound(Both)
    assert module.mixed(1) == (("our abs", 1), ("our abs", 1))


def test_a_hidden_method_counts_for_nothing():
    class Hides(Base):
        def __call__(self, x):
            return 2 * x

        def other(self, x):
            return 3 * x

    assert REBINDING.subclass(Hides) is None


def test_functions_by_another_name_in_helpers_and_nested():
    class Module(nn.Module):
        def by_name(self, x):
            return plain_abs(x)

        def in_helper(self, x):
            return helper(x)

        def recursive(self, x):
            return calls_itself(x)

        def nested(self, xs):
            return [(lambda y: mx.abs(y))(x) for x in xs]

    module, _ = rebound(Module)
    assert module.by_name(1) == ("our abs", 1)
    assert module.in_helper(1) == ("our abs", 1)
    assert module.recursive(0) == ("our abs", 0)
    assert module.recursive(2) == ("our abs", 0)
    assert module.nested([1]) == [("our abs", 1)]
    assert helper(mx.array(-1)).item() == 1


def test_defaults_keywords_and_closures_stay():
    step = 5

    class Module(nn.Module):
        def __call__(self, x, y=2, *, z=3):
            return mx.abs((x, y, z, step))

    module, _ = rebound(Module)
    assert module(1) == ("our abs", (1, 2, 3, 5))


def test_a_written_class_takes_the_place_of_one_that_would_be_made():
    class Written(Base):
        def __call__(self, x):
            return "written"

    class Derived(Base):
        def __call__(self, x):
            return super().__call__(x)

    made = REBINDING.subclass(Base)
    assert made is not None
    rebinding = Rebinding({}, {Base: type(made)(Written, made.methods)})
    module, subclass = rebound(Derived, rebinding)
    assert module(1) == "written"
    assert isinstance(module, Written) and subclass.operations == {"abs", "rope"}


def test_what_is_compiled_or_no_function_is_left_alone():
    class Module(nn.Module):
        compiled = mx.compile(lambda x: mx.abs(x))
        bound = partial(helper, 1)

    assert REBINDING.subclass(Module) is None
    assert REBINDING.subclass(dict) is None


def test_the_replacement_of_a_function_is_not_its_copy():
    assert REBINDING.function(mx.abs)(3) == ("our abs", 3)
    assert REBINDING.function(helper)(3) == ("our abs", 3)


def test_a_method_is_replaced_by_its_name():
    class Layer(nn.Module):
        def __call__(self, x):
            return x

        def twice(self, x):
            return self(self(x))

    def ours(layer, x):
        return x + 1

    full = f"{Layer.__module__}.{Layer.__qualname__}.__call__"
    module, subclass = rebound(Layer, Rebinding({full: ours}))
    assert module.twice(1) == 3
    assert Layer()(1) == 1
    assert subclass.operations == {"ours"}


def test_functions_in_a_closure_are_replaced():
    """As those of the layers that MLX makes of its activations."""
    Silu = type(nn.SiLU())
    module, subclass = rebound(Silu, Rebinding({"mlx.nn.silu": lambda x: ("ours", x)}))
    assert module(1) == ("ours", 1)
    assert subclass.operations == {"silu"}
    assert nn.SiLU()(mx.array(0.0)).item() == 0
