"""The report is served on this machine only, refreshes while runs go on, and nothing else of the folder is given away."""

from __future__ import annotations

import http.client
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from vantage.core.errors import UserError
from vantage.study.contest import STUDY
from vantage.study.watch import HOST, server

from .synthetic import build

pytest.importorskip("scipy.stats", reason="the study extra is not installed")


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[Path, int]]:
    """A comparison's folder with its server."""
    with server(tmp_path, 0, 5.0) as running:
        thread = threading.Thread(target=running.serve_forever, daemon=True)
        thread.start()
        yield tmp_path, running.server_address[1]
        running.shutdown()
        thread.join()


def ask(port: int, path: str, method: str = "GET", host: str | None = None) -> tuple[int, dict[str, str], str]:
    connection = http.client.HTTPConnection(HOST, port, timeout=20)
    connection.request(method, path, headers={} if host is None else {"Host": host})
    answer = connection.getresponse()
    found = answer.status, dict(answer.getheaders()), answer.read().decode()
    connection.close()
    return found


def test_the_report_follows_the_study(served: tuple[Path, int]) -> None:
    folder, port = served
    status, _, page = ask(port, "/")
    assert status == 200
    assert 'http-equiv="refresh"' in page
    assert "study.json yet" in page
    going = build(arms=["grpo", "rloo"], seeds=2, running=[("grpo", 1)], waiting=[("rloo", 1)], samples=False)
    going.save(folder / STUDY)
    status, headers, page = ask(port, "/")
    assert status == 200
    assert headers["Cache-Control"] == "no-store"
    assert '"refresh":5.0' in page
    replace(going, runs=build(arms=["grpo", "rloo"], seeds=2).runs).save(folder / STUDY)
    assert '"refresh":null' in ask(port, "/report.html?again")[2]
    assert ask(port, f"/{STUDY}")[2] == (folder / STUDY).read_text()
    (folder / STUDY).write_text("{")
    assert "not JSON" in ask(port, "/")[2]


def test_only_this_machine_is_answered_and_only_these_pages(served: tuple[Path, int]) -> None:
    folder, port = served
    (folder / "secret.txt").write_text("secret")
    assert ask(port, "/", host="evil.example:80")[0] == 403
    assert ask(port, "/", host=f"localhost:{port}")[0] == 200
    for path in ("/secret.txt", "/../secret.txt", "//etc/passwd", "/logs"):
        assert ask(port, path)[0] == 404
    assert ask(port, "/", "POST")[0] == 501
    status, headers, body = ask(port, "/", "HEAD")
    assert (status, body) == (200, "")
    assert int(headers["Content-Length"]) > 100
    assert ask(port, f"/{STUDY}")[0] == 503


def test_a_folder_that_is_not_there_and_a_port_that_is_taken_are_told(served: tuple[Path, int]) -> None:
    folder, port = served
    with pytest.raises(UserError, match="there is no folder"):
        server(folder / "none", 0, 5.0)
    with pytest.raises(UserError, match="cannot be used"):
        server(folder, port, 5.0)
    with pytest.raises(UserError, match="out of range"):
        server(folder, 0, 0.0)
