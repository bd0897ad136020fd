"""The tests' own comparison fails where it must."""

import numpy as np
import pytest

from tests.support.tolerance import assert_close

INF, NAN = np.inf, np.nan


@pytest.mark.parametrize(
    ("result", "exact", "allowed", "close"),
    [
        (1.0, 1.5, 0.5, True),
        (1.0, 1.6, 0.5, False),
        (0.0, 0.0, 0.0, True),
        (NAN, 1.0, 9.0, False),
        (NAN, 1.0, INF, False),
        # A bound that grows with an infinity would accept any result.
        (-INF, -INF, INF, True),
        (INF, INF, NAN, True),
        (INF, -INF, INF, False),
        (1.0, INF, INF, False),
        (NAN, -INF, INF, False),
    ],
)
def test_closeness(result, exact, allowed, close):
    # The second element is right, and must not be named as the worst.
    arrays = np.float32([result, 0]), np.array([exact, 0]), np.array([allowed, 0])
    if close:
        assert_close(*arrays)
    else:
        with pytest.raises(AssertionError, match=r"1 of 2 elements .* worst at \(0,\)"):
            assert_close(*arrays)
