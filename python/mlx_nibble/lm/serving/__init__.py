"""mlx-lm's server on top of checks: what strangers send reaches no engine unchecked."""
