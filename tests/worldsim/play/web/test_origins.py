"""Names of this machine, and origins of pages."""

from __future__ import annotations

import pytest

from worldsim.play.web.origins import is_loopback, is_own_origin, names_loopback


def test_addresses_to_listen_on_are_told_apart() -> None:
    assert all(map(is_loopback, ("127.0.0.1", "127.1.2.3", "::1", "[::1]", "::ffff:127.0.0.1", "localhost")))
    assert not any(map(is_loopback, ("0.0.0.0", "192.168.1.2", "::", "::ffff:10.0.0.1", "example.com", "")))
    assert not is_loopback("game.localhost"), "where it leads is for the system's resolver to say"


@pytest.mark.parametrize(
    "host",
    [
        "localhost",
        "localhost:9000",
        "LocalHost:8765",
        "localhost.:8765",
        "game.localhost:9000",
        "127.0.0.1",
        "127.0.0.1:1",
        "[::1]",
        "[::1]:9000",
        "[0:0:0:0:0:0:0:1]:9000",
    ],
)
def test_this_machine_is_named_with_any_port(host: str) -> None:
    assert names_loopback(host)


@pytest.mark.parametrize(
    "host",
    [
        "",
        "evil.example:8765",
        "localhost.evil.example",
        "evillocalhost",
        "localhost@evil.example",
        "localhost/x",
        "localhost:port",
        "localhost:80:80",
        "localhost..",
        "[::1",
        "::1",
        "192.168.1.2:8765",
        "0.0.0.0",
        "localhost\x1b[2J",
    ],
)
def test_any_other_name_is_not_this_machine(host: str) -> None:
    assert not names_loopback(host)


@pytest.mark.parametrize(
    ("origin", "headers"),
    [
        ("http://localhost:9000", {"Host": "localhost:9000"}),
        ("http://LOCALHOST:9000", {"Host": "localhost.:9000"}),
        ("http://localhost", {"Host": "localhost:80"}),
        ("http://[::1]:9000", {"Host": "[::1]:9000"}),
        ("https://play.example", {"Host": "play.example"}),
        ("https://play.example", {"Host": "play.example:443"}),
        ("https://play.example", {"Host": "localhost:8765", "X-Forwarded-Host": "play.example"}),
        ("https://play.example", {"Host": "a:8765", "X-Forwarded-Host": "play.example:443, b"}),
    ],
)
def test_a_page_from_here_is_known_by_what_was_asked_for(origin: str, headers: dict[str, str]) -> None:
    assert is_own_origin(origin, headers)


@pytest.mark.parametrize(
    ("origin", "headers"),
    [
        ("http://evil.example", {"Host": "localhost:8765"}),
        ("http://localhost:3000", {"Host": "localhost:8765"}),
        ("https://localhost", {"Host": "localhost:80"}),
        ("null", {"Host": "localhost:8765"}),
        ("http://[", {"Host": "localhost:8765"}),
        ("http://", {}),
        ("file://", {"Host": ""}),
        ("chrome-extension://localhost:8765", {"Host": "localhost:8765"}),
        ("http://evil.example", {"Host": "localhost:8765", "X-Forwarded-Host": "play.example"}),
    ],
)
def test_a_page_of_another_site_is_known_by_its_origin(origin: str, headers: dict[str, str]) -> None:
    assert not is_own_origin(origin, headers)
