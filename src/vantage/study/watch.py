"""Local web server for the report of a running comparison; the page reloads itself."""

from __future__ import annotations

import html
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from vantage.core.errors import UserError
from vantage.study.contest import STUDY
from vantage.study.report import render
from vantage.study.results import Study

HOST = "127.0.0.1"
NAMES = frozenset({HOST, "localhost"})
"""Host names that requests may use, so that pages of other sites cannot read the report by DNS rebinding."""


class Served:
    """Report of a folder's study, rendered again when its file has changed.

    Args:
        folder: of the comparison.
        every: seconds between refreshes of a page whose study is not finished.
    """

    def __init__(self, folder: Path, every: float) -> None:
        self.path, self.every = folder / STUDY, every
        self._made: tuple[int, str] = (-1, "")

    def page(self) -> str:
        """Return the present page."""
        try:
            changed = self.path.stat().st_mtime_ns
        except OSError:
            return self._waiting(f"There is no {self.path} yet.")
        if self._made[0] != changed:
            try:
                study = Study.load(self.path)
            except UserError as error:
                return self._waiting(str(error))
            over = len(study.runs) == len(study.arms) * len(study.seeds)
            over &= not any(run.status == "running" for run in study.runs)
            self._made = (changed, render(study, refresh=None if over else self.every))
        return self._made[1]

    def study(self) -> str:
        """Return the study's JSON.

        Raises:
            OSError: the file does not exist yet.
        """
        return self.path.read_text(encoding="utf-8")

    def _waiting(self, text: str) -> str:
        return (
            f'<!doctype html><html lang="en"><meta charset="utf-8"><meta http-equiv="refresh" content="{self.every:g}">'
            f"<title>Waiting</title><p>{html.escape(text)}</p></html>"
        )


def server(folder: Path, port: int, every: float) -> ThreadingHTTPServer:
    """Return a server of a comparison's report, bound to 127.0.0.1 and not yet running.

    Raises:
        UserError: the port is taken or out of range, or the folder does not exist.
    """
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}: give the --out folder of a comparison")
    if not 0.5 <= every <= 3600:
        raise UserError(f"--every {every:g} is out of range: 0.5 to 3600 seconds")
    served = Served(folder, every)
    pages: dict[str, tuple[Callable[[], str], str]] = {
        "/": (served.page, "text/html; charset=utf-8"),
        "/report.html": (served.page, "text/html; charset=utf-8"),
        f"/{STUDY}": (served.study, "application/json; charset=utf-8"),
    }

    class Handler(BaseHTTPRequestHandler):
        """Answers GET and HEAD for the pages that there are."""

        def do_GET(self) -> None:
            self._answer(True)

        def do_HEAD(self) -> None:
            self._answer(False)

        def _answer(self, body: bool) -> None:
            if self.headers.get("Host", "").rpartition(":")[0] not in NAMES:
                self.send_error(HTTPStatus.FORBIDDEN, "this server answers to localhost alone")
                return
            found = pages.get(self.path.partition("?")[0])
            if found is None:
                self.send_error(HTTPStatus.NOT_FOUND)
                return
            make, kind = found
            try:
                content = make().encode()
            except OSError:
                self.send_error(HTTPStatus.SERVICE_UNAVAILABLE, "the study is not there yet")
                return
            self.send_response(HTTPStatus.OK)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(content)))
            self.send_header("Cache-Control", "no-store")
            self.send_header("X-Content-Type-Options", "nosniff")
            self.send_header("X-Frame-Options", "DENY")
            self.end_headers()
            if body:
                self.wfile.write(content)

        def log_message(self, format: str, *args: Any) -> None:
            """Print nothing: a page that refreshes would fill the terminal."""

    try:
        return ThreadingHTTPServer((HOST, port), Handler)
    except (OSError, OverflowError) as error:
        raise UserError(f"--port {port} cannot be used: {getattr(error, 'strerror', None) or error}") from error


def serve(folder: Path, port: int, every: float) -> None:
    """Serve a comparison's report until interrupted."""
    with server(folder, port, every) as running:
        print(f"http://{HOST}:{running.server_address[1]}/  (Ctrl-C ends it)", flush=True)
        try:
            running.serve_forever()
        except KeyboardInterrupt:
            print()
