"""The operators' two doors: four-letter words on the client port, and HTTP.

Owns what is allowed and the order of things: the allow list of words, the routes, the question to
the disk before an answer that shows sizes. It knows no text and no value of an answer.

Nobody is authenticated here, so that HTTP listens on loopback unless --insecure, no header that a
proxy may add is looked at (CVE-2024-51504), what changes something is refused to a web page, and
no answer is longer, or costs more, than `max_listed` allows (CVE-2017-5637).
"""

from __future__ import annotations

import json
from collections.abc import Callable
from http import HTTPStatus
from typing import Any, Final

from duolog_runtime.disk import DiskClosedError, DiskExecutor, DiskQueueFullError
from duolog_runtime.http_server import (
    HttpRequest,
    HttpResponse,
    HttpServer,
    Respond,
    Route,
    method_refused,
)
from duolog_runtime.logs import Logger
from duolog_runtime.metrics_http import health_route, metrics_route
from zkserver.metrics import collect
from zkserver.storage.recovery import DataDirectory

from .client_link import Reply
from .commands import BY_NAME, COMMANDS, Command, CommandRefused
from .view import DirectorySizes, ServerView
from .words import NOT_ALLOWED, NOT_SERVING, WORDS, Word

_PREFIX: Final = "/commands"
_JSON: Final = "application/json"


class Admin:
    """Answers operators of one server."""

    def __init__(
        self,
        view: ServerView,
        data: DataDirectory,
        disk: DiskExecutor,
        log: Logger,
        ready: Callable[[], bool],
    ) -> None:
        """`ready` tells whether clients are served at this moment."""
        self.view: Final = view
        self._data = data
        self._disk = disk
        self._log = log
        allowed = view.config.four_letter_words
        self._allowed = frozenset(WORDS if "*" in allowed else allowed)
        self._waiting: list[Callable[[], None]] = []
        """Answers that wait for the sizes; asking the disk once does for all of them."""
        routes = {
            "/health": health_route(),
            "/ready": health_route(ready),
            "/metrics": metrics_route(lambda: collect(view)),
            _PREFIX: Route(_list_commands),
            f"{_PREFIX}/*": Route(self._on_command, ("GET", "POST")),
        }
        self._http = HttpServer(routes, log)

    async def start(self) -> None:
        """Serve HTTP where that is wanted. Raises ConfigError."""
        config = self.view.config
        if config.http_port < 0:
            return
        host, port = config.http_host, config.http_port
        self.view.http_port = await self._http.start(host, port, "http_port")
        self._log.info("http_served", host=host, port=self.view.http_port)

    async def close(self) -> None:
        """Serve HTTP no more. Idempotent."""
        await self._http.close()

    # Four-letter words

    def argument_bytes(self, word: str) -> int:
        """Bytes that belong to the word and follow it."""
        return WORDS[word].argument_bytes if word in self._allowed else 0

    def answer_word(self, word: str, argument: bytes, reply: Reply) -> None:
        """Answer a word; `reply(None)` for one that nobody knows."""
        known = WORDS.get(word)
        if known is None:
            reply(None)
        elif word not in self._allowed:
            reply(NOT_ALLOWED.format(word=word))
        elif known.measured:
            self._measure(lambda: reply(self._text(known, word, argument)))
        else:
            reply(self._text(known, word, argument))

    def _text(self, known: Word, word: str, argument: bytes) -> str | None:
        """What a word is answered; None where it fails."""
        if not self.view.mode and not known.always:
            return NOT_SERVING
        try:
            return known.text(self.view, argument)
        except Exception as error:  # the end of a request: the answers behind it are still given
            self._log.error("word_failed", word=word, exc_info=error)
            return None

    # HTTP

    def _on_command(self, request: HttpRequest, respond: Respond) -> None:
        name = request.path.removeprefix(f"{_PREFIX}/")
        command = BY_NAME.get(name)
        method = "GET" if request.method == "HEAD" else request.method
        if command is None:
            values = {"command": name, "error": f"Unknown command: {name}"}
            respond(_json(values, HTTPStatus.NOT_FOUND))
        elif method not in command.methods:
            respond(method_refused(command.methods))
        elif "POST" in command.methods and _is_from_a_web_page(request):
            values = {"command": command.names[0], "error": "a web page may not ask for this"}
            respond(_json(values, HTTPStatus.FORBIDDEN))
        elif command.measured:
            self._measure(lambda: respond(self._carry_out(command, request)))
        else:
            respond(self._carry_out(command, request))

    def _carry_out(self, command: Command, request: HttpRequest) -> HttpResponse:
        name = command.names[0]
        try:
            values = command.answer(self.view, request.query)
        except CommandRefused as refusal:
            return _json({"error": str(refusal), "command": name}, refusal.status)
        except Exception as error:  # the end of a request: the answers behind it are still given
            self._log.error("command_failed", command=name, exc_info=error)
            values = {"error": "see the log", "command": name}
            return _json(values, HTTPStatus.INTERNAL_SERVER_ERROR)
        if "POST" in command.methods:
            self._log.info("admin_command", command=name)
        return _json({**values, "command": name, "error": None})

    # The disk

    def _measure(self, then: Callable[[], None]) -> None:
        """Ask the disk for the sizes of its files, then answer."""
        self._waiting.append(then)
        if len(self._waiting) > 1:
            return
        try:
            self._disk.submit(self._data.sizes, self._measured)
        except (DiskClosedError, DiskQueueFullError):  # the sizes of last time must do
            self._measured(None, None)

    def _measured(self, sizes: tuple[int, int] | None, error: BaseException | None) -> None:
        if sizes is not None:
            self.view.sizes = DirectorySizes(*sizes)
        elif error is not None:
            self._log.warning("sizes_unknown", reason=str(error))
        waiting, self._waiting = self._waiting, []
        for answer in waiting:
            answer()


def _list_commands(_request: HttpRequest, respond: Respond) -> None:
    """A page with a link to each, as in ZooKeeper."""
    names = [command.names[0] for command in COMMANDS]
    lines = [f'<a href="{_PREFIX}/{name}">{name}</a>\n<br/>\n' for name in names]
    respond(HttpResponse("".join(lines).encode(), kind="text/html; charset=utf-8"))


def _is_from_a_web_page(request: HttpRequest) -> bool:
    """A browser says so; a page of somebody else must not reach through it to this machine."""
    site = request.headers.get("sec-fetch-site", "none")
    return "origin" in request.headers or site not in {"none", "same-origin"}


def _json(values: dict[str, Any], status: HTTPStatus = HTTPStatus.OK) -> HttpResponse:
    return HttpResponse(json.dumps(values, indent=2).encode() + b"\n", status, _JSON)
