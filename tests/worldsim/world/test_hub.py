"""Whatever goes wrong with the hub is one sentence: which repository, why, and what to do."""

from __future__ import annotations

import errno
import http.server
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub import constants

from tests.fakes import save_tiny_world
from worldsim.errors import WorldError
from worldsim.storage.tensors import CONFIG_FILE
from worldsim.world.world import World, find_world

PORTAL = b"<html>please log in</html>"


@dataclass
class Hub:
    """What a hub on this machine answers: files of a repository, or a status."""

    files: dict[str, bytes] = field(default_factory=dict)
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    page: bytes = b""
    drops: bool = False
    breaks: bool = False


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """Run a hub on loopback, and let downloads go there."""
    hub = Hub()

    class Handler(http.server.BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

        def do_GET(self) -> None:
            if hub.drops:
                self.connection.close()
                return
            body = hub.page or self.answer()
            length = len(body) * (2 if hub.breaks and "/api/" not in self.path else 1)
            about = {"ETag": f'"{abs(hash(self.path)):040d}"', "X-Repo-Commit": "a" * 40}
            self.send_response(hub.status)
            for name, value in {**about, "Content-Length": str(length), **hub.headers}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        do_HEAD = do_GET

        def answer(self) -> bytes:
            if "/api/" not in self.path:
                return hub.files.get(self.path.rpartition("a" * 40 + "/")[2], b"")
            if "/tree/" in self.path:
                sizes = {name: len(data) for name, data in hub.files.items()}
                entries = [
                    {"type": "file", "path": name, "size": size, "oid": "c"} for name, size in sizes.items()
                ]
                return json.dumps(entries).encode()
            siblings = [{"rfilename": name} for name in hub.files]
            return json.dumps({"id": "o/n", "sha": "a" * 40, "siblings": siblings}).encode()

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(constants, "ENDPOINT", address)
    template = "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + template)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("time.sleep", lambda _: None)  # between attempts
    yield hub
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ({"status": 401}, "no such repository, or it is private: .*`hf auth login`"),
        ({"status": 404}, "no such repository, or it is private: .*`hf auth login`"),
        ({"status": 404, "headers": {"X-Error-Code": "RevisionNotFound"}}, "no branch main"),
        ({"status": 403, "headers": {"X-Error-Code": "GatedRepo"}}, "access is restricted: .*page of o/n"),
        ({"status": 403}, "access is restricted: .*`hf auth login`"),
        ({"status": 429}, r"too many requests from here \(429\): try again"),
        ({"status": 503}, r"out of order \(503\): try again later"),
        ({"status": 418}, r"refused the request \(418\)"),
        ({"drops": True}, "connection failed: check the network"),
        ({"page": PORTAL}, "no answer of the hub: a network that asks to log in"),
        ({"page": b"{}"}, "no answer of the hub"),
    ],
)
def test_an_answer_that_brings_no_world_is_told_with_its_cause(
    hub: Hub, answer: dict[str, object], reason: str
) -> None:
    for name, value in answer.items():
        setattr(hub, name, value)
    with pytest.raises(WorldError, match=f"no folder o/n, and the hub gives no such world: .*{reason}"):
        find_world("o/n")


def test_an_unreachable_hub_is_told(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(WorldError, match="o/n.*connection failed: check the network"):
        find_world("o/n")


def test_without_the_network_only_what_was_downloaded_is_there(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(WorldError, match="o/n.*not downloaded before, and HF_HUB_OFFLINE forbids it"):
        find_world("o/n")


def test_a_repository_without_a_world_is_told(hub: Hub) -> None:
    hub.files = {"pytorch_model.bin": b"1"}
    with pytest.raises(WorldError, match=r"repository o/n of the hub holds no world: it has no config\.json"):
        find_world("o/n")


def test_a_download_that_breaks_off_is_told(hub: Hub) -> None:
    hub.files = {CONFIG_FILE: b"{}" * 100}
    hub.breaks = True
    with pytest.raises(WorldError, match="o/n.*connection failed: check the network"):
        find_world("o/n")


@pytest.mark.parametrize(
    ("number", "reason"), [(errno.ENOSPC, "the disk is full: make room"), (errno.EACCES, "cannot be written")]
)
def test_a_disk_that_takes_nothing_is_told(monkeypatch: pytest.MonkeyPatch, number: int, reason: str) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(number, "as the system says", "/cache")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(WorldError, match=f"o/n.*{reason}"):
        find_world("o/n")


@pytest.mark.parametrize("name", ["o/n?", "o/..", "-o/n", "o/" + "n" * 200])
def test_a_name_that_no_repository_can_have_is_told(name: str) -> None:
    with pytest.raises(WorldError, match="a repository is OWNER/NAME"):
        find_world(name)


def test_a_world_of_the_hub_is_loaded_from_its_cache(hub: Hub, tmp_path: Path) -> None:
    folder = save_tiny_world(tmp_path / "world")
    paths = [path for path in folder.rglob("*") if path.is_file()]
    hub.files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}
    world = World.from_pretrained("o/n")
    assert world.config.name == World.from_pretrained(folder).config.name
    assert len(world.starts) == 3
