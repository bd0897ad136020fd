"""Quantizers: pure functions of arrays.

They know no model and no file. A weight is `[N, K]`, inputs along K; what the inputs
of a layer say about it comes as a Hessian `[K, K]`.
"""
