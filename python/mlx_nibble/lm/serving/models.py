"""The names of models: those of the command line, and those of the Hub's cache."""

from __future__ import annotations

from pathlib import Path

# mlx-lm's name for the model of the command line.
DEFAULT_MODEL = "default_model"


def names_of(model: str | None) -> list[str]:
    """Return the names of a model, best last: as given, and the whole path."""
    if model is None:
        return []
    path = Path(model)
    return [model, str(path.resolve())] if path.exists() else [model]


def hub_models() -> list[str]:
    """Return the models in the Hub's cache; there may be no cache."""
    from huggingface_hub import scan_cache_dir
    from huggingface_hub.errors import CacheNotFound

    try:
        repos = scan_cache_dir().repos
    except CacheNotFound:
        return []
    return sorted(repo.repo_id for repo in repos if repo.repo_type == "model")
