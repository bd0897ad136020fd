"""The Hugging Face Hub, from a machine that may not reach it."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Thread
from urllib.parse import urlsplit
from urllib.request import getproxies

_PATIENCE = 2.0  # seconds
_unreachable: list[str] = []


def reach_hub() -> None:
    """Use the Hub's cache alone if the Hub cannot be reached.

    The Hub's own client tries six times, for 23 s, before it looks into its cache. A
    name that does not resolve, or a port that does not answer in time, is asked once.
    """
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE or getproxies():  # a proxy resolves the name itself
        return
    place = urlsplit(constants.ENDPOINT)
    host = place.hostname or constants.ENDPOINT
    port = place.port or (80 if place.scheme == "http" else 443)
    found: list[str] = []

    def ask() -> None:
        try:
            socket.create_connection((host, port), _PATIENCE).close()
            found.append("")
        except OSError as error:
            found.append(str(error))

    asking = Thread(target=ask, daemon=True)  # a name's lookup has no limit of time
    asking.start()
    asking.join(_PATIENCE)
    reason = found[0] if found else f"no answer in {_PATIENCE:.0f} s"
    if reason:
        constants.HF_HUB_OFFLINE = True
        _unreachable[:] = [f"{host} cannot be reached ({reason})"]


@contextmanager
def hub_errors(command: str, what: str = "the model") -> Iterator[None]:
    """Turn the Hub's errors about a model into one line.

    Args:
        command: Command that the error names.
        what: Description of the model.

    Raises:
        OSError: If the Hub does not give us the model.
    """
    from huggingface_hub.errors import (
        HfHubHTTPError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
    )

    try:
        yield
    except (HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled) as error:
        offline = not isinstance(error, HfHubHTTPError) and _unreachable
        reason = offline[0] if offline else " ".join(str(error).split())
        raise OSError(
            f"[{command}] {what} is not a folder here, and could not be had from "
            f"the Hugging Face Hub: {reason.rstrip('.')}."
        ) from error
