"""mlx-lm's server on top of checks: what strangers send is checked first.

It stays on ``http.server``, as mlx-lm's handler of an answer does, which writes to a
blocking file. A framework such as Starlette would need that handler anew; the checks,
limits and deadlines here are smaller.
"""
