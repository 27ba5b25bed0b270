"""What may be asked of the page's server, by whom, how large and how slowly.

A server on 127.0.0.1 is still in reach of every page in the same browser: one may send requests
there, or have its own name lead there (DNS rebinding). So the Host must be this machine, and
where the browser says which page asks, it must be ours. What is uploaded is a raw body, counted
while it comes, decoded one at a time, and never written anywhere.
"""

from __future__ import annotations

import asyncio
import re
import traceback
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any, cast, get_args

from starlette.applications import Starlette
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from heptad.classifier import AsDigit, Classifier
from heptad.errors import HeptadError, NoDigitError, is_of_memory
from heptad.pages import PALETTE, templates_in
from heptad.serving.answers import MOST_CLASSES, NUM_LIKELIEST, answer_to
from heptad.serving.worker import Worker
from heptad.text import one_line

PAGE = Path(__file__).parent / "page"
# Of one picture; phones take up to a half of it.
MOST_BYTES = 16 * 2**20
TOO_LARGE = f"a picture may have at most {MOST_BYTES:,} bytes."
# Of all that are coming in at a time.
MOST_BYTES_IN_ALL = 2 * MOST_BYTES
# In which a picture has to arrive; in which it is answered, those before it included; and in which
# the rest of one that is refused may still come, so that the sender gets to read why.
BODY_S, ANSWER_S, REST_S = 10.0, 30.0, 2.0
# Nothing listens at ::1.
THIS_MACHINE = re.compile(r"(127\.0\.0\.1|localhost)(:[0-9]{1,5})?", re.IGNORECASE)
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self';"
    " img-src 'self' blob:; connect-src 'self'; base-uri 'none'; form-action 'none';"
    " frame-ancestors 'none'",
    "Cache-Control": "no-store",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    # No connection outlives its answer: nothing has to be said of how long one may idle.
    "Connection": "close",
}
KINDS = {
    "page.css": "text/css",
    "page.js": "text/javascript",
    "icon.svg": "image/svg+xml",
}


def make_app(classifier: Classifier, *, title: str, said: str) -> ASGIApp:
    """Give the app: the page with its style and script, and `POST /answer` for a picture's bytes.

    said: a sentence on the network.
    """
    files = {
        "/": (_page(classifier, title=title, said=said), "text/html"),
        **{f"/{name}": (_file(name), kind) for name, kind in KINDS.items()},
    }
    files["/page.css"] = (PALETTE + _file("page.css"), KINDS["page.css"])
    routes = [Route(path, _serving(*content)) for path, content in files.items()]
    answering = Answering(classifier)
    return Guarded(
        Starlette(
            routes=[*routes, Route("/answer", answering.answer, methods=["POST"])],
            exception_handlers={
                HTTPException: _refused,
                HeptadError: _unusable,
                Exception: _failed,
            },
        )
    )


class Guarded:
    """Answers for an app: lets in what comes from this machine's own page, and adds the headers."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it with 403."""
        refusal = why_refused(Headers(scope=scope))

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        app = self._app if refusal is None else problem(403, refusal)
        try:
            await app(scope, receive, with_headers)
        # The server ends, and there is nobody to be told; or Starlette raises again what `_failed`
        # has answered to.
        except (asyncio.CancelledError, Exception):
            return


def why_refused(headers: Headers) -> str | None:
    """Say why a request with such headers is none of our page's; None if it may be."""
    host = headers.get("host", "")
    if not THIS_MACHINE.fullmatch(host):
        return f"the Host is {one_line(host)!r}; allowed: 127.0.0.1 or localhost."
    origin = headers.get("origin", f"http://{host}")
    if origin != f"http://{host}":
        return f"the Origin is {one_line(origin)!r}; allowed: this page's own."
    return None


def problem(status: int, message: str, hint: str = "") -> Response:
    """Give an answer that says what went wrong."""
    return JSONResponse({"error": {"message": message, "hint": hint}}, status)


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    await _let_come(request)
    return problem(error.status_code, error.detail)


async def _unusable(_request: Request, error: Exception) -> Response:
    assert isinstance(error, HeptadError)
    # What it would hint at is a flag.
    return problem(422, error.message, "" if isinstance(error, NoDigitError) else error.hint)


async def _failed(_request: Request, error: Exception) -> Response:
    if isinstance(error, ClientDisconnect):
        return problem(400, "the picture did not come whole.")
    if is_of_memory(error):
        return problem(503, "there is not enough memory for this picture.")
    traceback.print_exception(error)
    return problem(500, "this is a bug of Heptad; the terminal says more.")


async def _let_come(request: Request) -> None:
    """Take and drop what else is sent, for a while: who is cut off does not read why."""
    try:
        async with asyncio.timeout(REST_S):
            async for _ in request.stream():
                pass
    except (TimeoutError, ClientDisconnect, RuntimeError):
        return


class Uploads:
    """Counts the bytes of all pictures that are coming in, or waiting to be decoded."""

    def __init__(self) -> None:
        self._num_bytes = 0

    async def receive(self, request: Request) -> bytearray:
        """Give a request's body, which counts until `release`; raises HTTPException."""
        if int(request.headers.get("content-length", "0")) > MOST_BYTES:
            raise HTTPException(413, TOO_LARGE)
        content = bytearray()
        try:
            async with asyncio.timeout(BODY_S):
                async for part in request.stream():
                    self._take(content, part)
        except BaseException as error:
            self.release(content)
            if isinstance(error, TimeoutError):
                raise HTTPException(408, f"the picture took over {BODY_S:g} s to come.") from None
            raise
        return content

    def _take(self, content: bytearray, part: bytes) -> None:
        if len(content) + len(part) > MOST_BYTES:
            raise HTTPException(413, TOO_LARGE)
        if self._num_bytes + len(part) > MOST_BYTES_IN_ALL:
            raise HTTPException(503, "too many pictures are coming in at a time.")
        self._num_bytes += len(part)
        content += part

    def release(self, content: bytearray) -> None:
        """Count a body no more."""
        self._num_bytes -= len(content)


class Answering:
    """Answers to pictures, one at a time, however many are sent."""

    def __init__(self, classifier: Classifier) -> None:
        self._classifier = classifier
        self._uploads = Uploads()
        self._worker = Worker()

    async def answer(self, request: Request) -> Response:
        """Answer to the picture that is a request's body; raises HTTPException, HeptadError."""
        as_digit = request.query_params.get("as_digit", "auto")
        if as_digit not in get_args(AsDigit):
            raise HTTPException(422, f"as_digit is {one_line(as_digit)}; allowed: auto, yes, no.")
        kind = request.headers.get("content-type", "").split(";")[0].strip().lower()
        if not kind.startswith("image/") and kind != "application/octet-stream":
            raise HTTPException(415, f"{one_line(kind) or 'what was sent'} is no picture.")
        content = await self._uploads.receive(request)
        work = partial(answer_to, self._classifier, content, cast(AsDigit, as_digit))
        try:
            async with asyncio.timeout(ANSWER_S):
                return JSONResponse(await self._worker.do(work))
        except TimeoutError:
            raise HTTPException(503, f"there was no answer within {ANSWER_S:g} s.") from None
        finally:
            self._uploads.release(content)


def _file(name: str) -> str:
    return (PAGE / name).read_text(encoding="utf-8")


def _serving(content: str, kind: str) -> Callable[[Request], Awaitable[Response]]:
    async def serve(_request: Request) -> Response:
        return Response(content, media_type=kind)

    return serve


def _page(classifier: Classifier, *, title: str, said: str) -> str:
    names = classifier.classes
    is_whole = len(names) <= MOST_CLASSES
    values: dict[str, Any] = {
        "title": title,
        "said": said,
        "is_for_digits": classifier.is_for_digits,
        "rows": names if is_whole else [""] * NUM_LIKELIEST,
        "num_classes": len(names),
        "is_whole": is_whole,
        "most_bytes": MOST_BYTES,
        "answer_ms": round(1000 * (ANSWER_S + BODY_S)),
    }
    return templates_in(PAGE).get_template("page.html").render(values)
