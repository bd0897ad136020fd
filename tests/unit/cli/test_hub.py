"""A Hub that cannot be reached is asked once, and then its cache."""

from __future__ import annotations

import socket

import pytest
from huggingface_hub import constants

from mlx_nibble.cli import hub, main

COMMANDS = {
    "inspect": ["inspect", "owner/name"],
    "generate": ["generate", "--model", "owner/name", "--prompt", "a"],
    "convert": ["convert", "-q", "owner/name", "OUT"],
}


@pytest.fixture
def closed(monkeypatch, tmp_path):
    """Let the Hub be a port that nobody listens to, and its cache empty."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{port}")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(hub, "_unreachable", [])
    monkeypatch.setattr(hub, "getproxies", dict)
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_fails_in_one_line(command, closed, capsys):
    assert main(COMMANDS[command]) == 1
    said = capsys.readouterr().err
    assert said.startswith(f"nibble: [{command}] ") and said.count("\n") == 1
    assert "127.0.0.1 cannot be reached" in said and "Retrying" not in said
    assert constants.HF_HUB_OFFLINE


def test_a_hub_that_answers_is_asked(closed, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as server:
        endpoint = f"http://127.0.0.1:{server.getsockname()[1]}"
        monkeypatch.setattr(constants, "ENDPOINT", endpoint)
        hub.reach_hub()
    assert not constants.HF_HUB_OFFLINE


def test_a_proxy_is_asked_by_the_client_alone(closed, monkeypatch):
    monkeypatch.setattr(hub, "getproxies", lambda: {"https": "http://proxy"})
    hub.reach_hub()
    assert not constants.HF_HUB_OFFLINE
