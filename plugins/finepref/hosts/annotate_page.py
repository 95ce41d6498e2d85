"""The annotator's page, and the server that gives it to the browser of this machine and to nobody else.

The server listens on the loopback interface. Its address has a random token as its path, so that other users and other
pages of the browser cannot guess it. A request is refused unless its Host is that address (which a page of another
name that resolves to this machine has not) and, if it changes anything, its Origin is too.
"""

from __future__ import annotations

import json
import secrets
import sys
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from finepref.formats.marks import SIDES, mark_of, to_lists
from finepref.formats.problems import BadData
from finepref.hosts.token_view import CHARACTERS, SIGNS, Entry, Response, turns_of
from finepref.hosts.view_page import filled, row_of
from finepref.synth.annotation import Annotation, Item

ADDRESS = "127.0.0.1"
MAX_BODY = 10_000
"""Bytes of a step; the page sends a few hundred."""
_HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "frame-ancestors 'none'",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


class Annotator(ThreadingHTTPServer):
    """A server for one annotator.

    Args:
        annotation: entered; its steps are made here.
        output: the file that the page's button writes.
        title: of the page.
        about: lines about the records.
        first, count: the records that the page shows, the first counted from 0.
        port: 0 = a free one, chosen by the system.

    Attributes:
        url: the page's address, with its token.
    """

    daemon_threads = True
    block_on_close = False

    def __init__(
        self,
        annotation: Annotation,
        output: Path,
        *,
        title: str,
        about: Sequence[str],
        first: int,
        count: int,
        port: int = 0,
    ) -> None:
        self.annotation, self.output, self.title, self.about = annotation, output, title, about
        self.numbers = range(first, min(first + count, len(annotation.items)))
        self.token = secrets.token_urlsafe(32)
        super().__init__((ADDRESS, port), _Handler)
        self.url = f"http://{ADDRESS}:{self.server_port}/{self.token}/"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A browser that ends its connection is no error."""
        if not isinstance(sys.exception(), ConnectionError | TimeoutError):
            super().handle_error(request, client_address)

    def page(self) -> str:
        """The page, with the marks as they are now."""
        rows = [self._row(number) for number in self.numbers]
        data = {"about": [*self.about], "steps": self.annotation.steps, "records": rows}
        return filled("annotate.html", data, title=self.title, connects="'self'")

    def _row(self, number: int) -> dict[str, object]:
        marks, done, waits = self._state(number)[1:]
        return row_of(_entry(self.annotation.items[number])) | {"marks": marks, "done": done, "open": waits}

    def _state(self, number: int) -> list[Any]:
        """A record as the page keeps it: its number there, marks, whether it is done and whether it waits."""
        state = self.annotation.state(number)
        return [number - self.numbers.start, to_lists(state.marks), state.done, state.open]

    def step(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        """Do what the page asks, and tell what has changed.

        Raises:
            BadData: a mark that cannot be.
            ValueError: what is asked is not understood.
            OSError: it could not be written.
        """
        kind = asked.get("do")
        if kind == "write":
            outcome = self.annotation.write(self.output)
            return self._reply([], told="; ".join(outcome.told(self.output)))
        if kind == "undo":
            return self._undone(self.annotation.undo())
        number = asked.get("record")
        if type(number) is not int or not 0 <= number < len(self.numbers):
            raise ValueError(f"there is no record {number!s:.20}")
        number = self.numbers[number]
        if kind == "done":
            self.annotation.finish(number)
            return self._reply([number])
        side = asked.get("side")
        if kind not in ("mark", "clear") or side not in SIDES:
            raise ValueError("the step is not understood")
        length = len(self.annotation.items[number].texts()[side])
        mark = mark_of(
            *(asked.get(name) for name in ("start", "end")),
            *((asked.get("kind"), asked.get("weight")) if kind == "mark" else ("good", 1)),
            length=length,
            file=self.annotation.items[number].place,
            field=side,
        )
        if kind == "mark":
            self.annotation.mark(number, side, mark)
        else:
            self.annotation.clear(number, side, mark.start, mark.end)
        return self._reply([number])

    def _undone(self, number: int | None) -> dict[str, Any]:
        if number is None:
            return self._reply([], record=None, told="There is nothing to undo.")
        if number not in self.numbers:
            name = self.annotation.items[number].record.id
            return self._reply([], record=None, told=f"Undone, in {name}, which is not on this page.")
        return self._reply([number], record=number - self.numbers.start, told="Undone.")

    def _reply(self, numbers: Sequence[int], **more: object) -> dict[str, Any]:
        return {"steps": self.annotation.steps, "records": [*map(self._state, numbers)], **more}


def _entry(item: Item) -> Entry:
    """A record as the pages read it, without marks."""
    texts = item.texts()
    sides = [Response(side, "", SIGNS[side], CHARACTERS, [texts[side]]) for side in SIDES]
    return Entry(item.record.id, item.place, turns_of(item.record.prompt), sides)


class _Handler(BaseHTTPRequestHandler):
    server: Annotator
    protocol_version = "HTTP/1.1"
    timeout = 60  # seconds for a connection that says nothing

    def do_GET(self) -> None:
        """The page."""
        if self._refused(changes=False):
            return
        if self.path != f"/{self.server.token}/":
            self._answer(HTTPStatus.NOT_FOUND, {"error": "there is no such page"})
            return
        self._send(HTTPStatus.OK, "text/html; charset=utf-8", self.server.page().encode())

    def do_POST(self) -> None:
        """A step."""
        if self._refused(changes=True):
            return
        length = self.headers.get("Content-Length", "")
        if not length.isdecimal() or int(length) > MAX_BODY:
            self.close_connection = True  # as below
            self._answer(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, {"error": f"a step has {MAX_BODY} bytes at most"})
            return
        body = self.rfile.read(int(length))
        if self.path != f"/{self.server.token}/step":
            self._answer(HTTPStatus.NOT_FOUND, {"error": "there is no such page"})
            return
        self._answer(*self._done(body))

    def _done(self, body: bytes) -> tuple[HTTPStatus, dict[str, Any]]:
        try:
            asked = json.loads(body)
            if not isinstance(asked, dict):
                raise ValueError("a step is an object")
            with self.server.annotation.alone():
                if asked.get("steps") != self.server.annotation.steps:
                    text = "another page of this annotator has made steps; load this page again"
                    return HTTPStatus.CONFLICT, {"error": text}
                return HTTPStatus.OK, self.server.step(asked)
        except BadData as error:
            return HTTPStatus.BAD_REQUEST, {"error": str(error.problems[0])}
        except (ValueError, RecursionError) as error:
            return HTTPStatus.BAD_REQUEST, {"error": str(error)}
        except OSError as error:
            return HTTPStatus.INTERNAL_SERVER_ERROR, {"error": str(error)}

    def _refused(self, *, changes: bool) -> bool:
        """Refuse a request that does not come from the page; whether it was."""
        host = self.headers.get("Host", "")
        known = [f"{name}:{self.server.server_port}" for name in (ADDRESS, "localhost")]
        token = self.path.split("/")[1] if self.path.startswith("/") else ""
        if host not in known:
            text = f"the annotator answers to {known[0]} only"
        elif not secrets.compare_digest(token.encode(), self.server.token.encode()):
            text = "the address has no token, or another one: open the one that the command has printed"
        elif changes and self.headers.get("Origin") != f"http://{host}":
            text = "steps are taken from the annotator's own page only"
        else:
            return False
        self.close_connection = True  # a body may follow that is not read
        self._answer(HTTPStatus.FORBIDDEN, {"error": text})
        return True

    def _answer(self, status: HTTPStatus, value: Mapping[str, Any]) -> None:
        self._send(status, "application/json", json.dumps(value).encode())

    def _send(self, status: HTTPStatus, kind: str, body: bytes) -> None:
        self.send_response(status)
        if self.close_connection:
            self.send_header("Connection", "close")
        for name, value in {"Content-Type": kind, "Content-Length": str(len(body)), **_HEADERS}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def version_string(self) -> str:
        """Nothing about the machine."""
        return "finepref"

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: the token would be in it."""
