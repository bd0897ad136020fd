"""An answer that is an error, in the form of OpenAI's API."""

from __future__ import annotations

import json
from dataclasses import dataclass

# Longer messages quote what a client sent.
_LONGEST = 400


@dataclass
class Refusal(Exception):
    """The status and the reason of an error.

    Attributes:
        status: HTTP status.
        message: Reason, for the client.
        param: Field of the request that the reason concerns.
        code: Name for programs, such as "model_not_found".
    """

    status: int
    message: str
    param: str | None = None
    code: str | None = None

    def __str__(self) -> str:
        """Return the message as one line."""
        return " ".join(self.message.split())[:_LONGEST]

    def body(self) -> bytes:
        """Return the answer's body: one line of JSON."""
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        error = {"message": str(self), "type": kind}
        error |= {"param": self.param, "code": self.code}
        return json.dumps({"error": error}).encode() + b"\n"


def internal_error() -> Refusal:
    """Return the answer to a request that failed inside the server."""
    return Refusal(500, "the request failed inside the server; its log says why")
