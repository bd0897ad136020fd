"""Quantizers: pure functions of arrays, without models and files.

A weight is `[N, K]`, inputs along K. A Hessian `[K, K]` describes a layer's inputs.
"""
