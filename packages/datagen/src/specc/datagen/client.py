"""A client of a server that may fail in any way: requests are sent again, later, as long as that may help.

| what comes back | what is done |
|---|---|
| no connection, one that breaks, half a body, no JSON, no answer in time, 408, 409, 425, 5xx | again, after a pause |
| 429, or a pause that the server asks for (`Retry-After`, RFC 9110, section 10.2.3) | all requests pause |
| 400, 413, 422, or what is answered by nothing but failures while the server is there | the request is refused |
| 401, 403, 404 and whatever else | nothing more is asked |

A request fails for good after a number of failures in a row: if the server is there, it is the request's fault.
"""

from __future__ import annotations

import asyncio
import email.utils
import json
import time
from collections.abc import Callable, Mapping
from typing import Any, Final, TypeVar

import httpx2

from specc.core.errors import Exit, SpeccError
from specc.core.files import digest_of

FIRST_PAUSE: Final = 0.5
LONGEST_PAUSE: Final = 60.0
"""Seconds between a failure and the next try: the first, doubled with each failure up to the longest."""
LONGEST_WAIT: Final = 600.0
"""Seconds that a server may ask for."""
CONNECT: Final = 10.0
"""Seconds that a connection may take."""
LONGEST_BODY: Final = 64 << 20
"""Bytes of an answer that are read."""
AGAIN: Final = frozenset({408, 409, 425, 429})
NOT_THIS: Final = frozenset({400, 413, 422})
T = TypeVar("T")


class AgainError(Exception):
    """No answer this time. `wait` is for how many seconds the server asks, `busy` whether it has too much to do."""

    def __init__(self, reason: str, wait: float | None = None, *, busy: bool = False) -> None:
        super().__init__(reason)
        self.wait = wait
        self.busy = busy


class RefusedError(Exception):
    """The server will not answer this request, whatever is done."""


class AwayError(Exception):
    """The server answers nothing any more."""


class Client:
    """A server's address and how it is asked; used inside one event loop."""

    def __init__(self, address: str, key: str | None, *, concurrency: int, retries: int, timeout: float) -> None:
        """Ask nothing yet. `key` is the server's; `timeout` are seconds for a whole answer."""
        key = key.strip() if key else None
        if key and not (key.isascii() and key.isprintable()):
            raise SpeccError("`OPENAI_API_KEY` has letters that no key has", hint="set it anew", code=Exit.STAGE)
        self._key = key
        self._retries = retries
        self._timeout = timeout
        self._closed_until = 0.0
        self.answered = 0
        """Answers so far."""
        self.failures = 0
        """Requests that were sent again."""
        self._http = httpx2.AsyncClient(
            base_url=address.rstrip("/") + "/",
            headers={"Authorization": f"Bearer {key}"} if key else {},
            limits=httpx2.Limits(max_connections=concurrency, max_keepalive_connections=concurrency),
            timeout=httpx2.Timeout(None, connect=CONNECT),
        )

    async def ask(self, path: str, body: Mapping[str, Any] | None, read: Callable[[Any], T], name: object) -> T:
        """Return what `read` makes of the answer to a GET, or to a POST of `body`.

        `read` raises `AgainError` for what is no answer. `name` decides how long pauses are, so that not all requests
        come back at once. Raises `RefusedError`, `AwayError`, and `SpeccError` for what no request will get past.
        """
        failed, answered = 0, self.answered
        while True:
            while (pause := self._closed_until - time.monotonic()) > 0:
                await asyncio.sleep(pause)
            try:
                found = read(await self._once(path, body))
            except AgainError as error:
                failed += 1
                self.failures += 1
                if failed > self._retries:
                    if error.busy and self.answered > answered:
                        failed, answered = 0, self.answered  # it is slow, and goes on
                    elif error.busy or not await self._is_there():
                        raise AwayError(str(error)) from error
                    else:
                        raise RefusedError(f"{error}, {failed} times") from error
                pause = pause_after(failed, name) if error.wait is None else min(error.wait, LONGEST_WAIT)
                if error.wait is not None or error.busy:
                    self._closed_until = max(self._closed_until, time.monotonic() + pause)
                await asyncio.sleep(pause)
            else:
                self.answered += body is not None
                return found

    async def _is_there(self) -> bool:
        try:
            await self._once("models", None)
        except (AgainError, RefusedError):
            return False
        return True

    async def _once(self, path: str, body: Mapping[str, Any] | None) -> Any:
        """Send one request and return the JSON of its answer."""
        try:
            async with asyncio.timeout(self._timeout):
                request = self._http.build_request("GET" if body is None else "POST", path, json=body)
                response = await self._http.send(request, stream=True)
                try:
                    content = bytearray()
                    async for chunk in response.aiter_bytes():
                        content += chunk
                        if len(content) > LONGEST_BODY:
                            raise AgainError(f"an answer of more than {LONGEST_BODY >> 20} MiB")
                finally:
                    await response.aclose()
        except TimeoutError:
            raise AgainError(f"no answer within {self._timeout:g} s") from None
        except httpx2.ConnectError as error:
            raise AgainError("no connection") from error
        except (httpx2.TransportError, httpx2.DecodingError) as error:
            raise AgainError(f"a broken connection: {type(error).__name__}") from error
        self._look(response, bytes(content))
        try:
            return json.loads(content)
        except (ValueError, RecursionError) as error:
            raise AgainError("an answer that is no JSON") from error

    def _look(self, response: httpx2.Response, content: bytes) -> None:
        """Raise what a response's status stands for; nothing if it is an answer."""
        status = response.status_code
        if response.is_success:
            return
        wait = seconds_of(response.headers.get("retry-after"), time.time())
        if status in AGAIN or status >= 500:
            raise AgainError(f"HTTP {status}", wait, busy=status == 429)
        if status in NOT_THIS:
            raise RefusedError(f"HTTP {status}: {self._words(content)}")
        if status in (401, 403):  # the server's words may have the key in them
            raise SpeccError(
                f"the endpoint {'refuses the key' if self._key else 'wants a key'} (HTTP {status})",
                hint="`OPENAI_API_KEY` in the environment of `specc build` is the server's key",
                code=Exit.STAGE,
            )
        raise SpeccError(
            f"the endpoint has no `{response.request.url.path}` (HTTP {status})",
            hint="the address ends in `/v1` with most servers: look at `runtime.datagen.endpoint` or `SPECC_ENDPOINT`",
            code=Exit.STAGE,
        )

    def _words(self, content: bytes) -> str:
        """Return what a server says of an error, on one line, without the key."""
        try:
            found: Any = json.loads(content)
            error = found.get("error", found)
            text = str(error.get("message", error) if isinstance(error, dict) else error)
        except (ValueError, AttributeError, RecursionError):
            text = content[:1000].decode(errors="replace")
        line = "".join(letter for letter in " ".join(text.split()) if letter.isprintable())
        return (line.replace(self._key, "…") if self._key else line)[:200]

    async def close(self) -> None:
        """Close all connections."""
        await self._http.aclose()


def pause_after(failures: int, name: object) -> float:
    """Return the seconds to wait after so many failures: half of it is drawn from the counted stream of `name`."""
    drawn = int(digest_of([name, failures])[:12], 16) / 16**12
    return min(LONGEST_PAUSE, FIRST_PAUSE * 2 ** (failures - 1 if failures < 30 else 30)) * (0.5 + drawn / 2)


def seconds_of(value: str | None, now: float) -> float | None:
    """Return the seconds that a `Retry-After` asks for (RFC 9110, section 10.2.3): a number of them, or a date.

    `now` are seconds since 1970. None if there is no such header, or one that says nothing.
    """
    if value is None:
        return None
    if value.strip().isdecimal():
        return float(value)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - now)
    except (ValueError, OverflowError):
        return None
