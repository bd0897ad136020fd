"""Random calls of every public operation, compared with MLX's own form.

``python -m tests.differential --help`` says how to run it; ``make differential`` runs
the full number. The generator shares nothing with the strategies of tests/property.
"""
