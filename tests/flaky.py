"""A server of OpenAI's protocol that fails in every way an HTTP server can, and then answers; its answers are stubs.

What is tested with it is how answers are fetched. That they are the verifier's is tested with vLLM's own server.
"""

from __future__ import annotations

import asyncio
import email.utils
import json
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from tokenizers import Tokenizer

from specc.core.files import digest_of

FAULTS: Final = (
    "reset", "close", "slow", "busy", "later", "error", "no http", "page", "half", "short", "long", "chunks",
    "zipped", "other", "no choice", "aborted", "array",
)  # fmt: skip
"""What may happen to a request instead of an answer."""
SLOW: Final = 60.0

Fault = Callable[[str, int], str | None]
"""What happens to a request, given what it asks and how often that was asked before; None is an answer."""


def each_in_turn(most: int, faults: Sequence[str] = FAULTS) -> Fault:
    """Let requests fail so many times each, together in every way."""
    order: dict[str, int] = {}

    def fault(asked: str, before: int) -> str | None:
        number = order.setdefault(asked, len(order))
        return faults[(number * most + before) % len(faults)] if before < most else None

    return fault


class Flaky:
    """The server, in a thread of its own.

    `asked` counts requests by what they ask, `served` answers that went out whole. `open` and `most_open` count
    requests that are being answered.
    """

    def __init__(
        self,
        verifier: Path,
        fault: Fault = lambda asked, before: None,
        *,
        model: str = "tiny",
        room: int | None = 4096,
        delay: float = 0.0,
        key: str | None = None,
        port: int = 0,
        salt: str = "",
    ) -> None:
        """Serve, as `model`, a verifier of which the tokenizer is read alone; nothing listens before `with`."""
        self.tokenizer = Tokenizer.from_file(str(verifier / "tokenizer.json"))
        self.fault, self.model, self.room, self.delay, self.key, self.salt = fault, model, room, delay, key, salt
        self.asked, self.served = Counter[str](), Counter[str]()
        self.bodies = list[dict[str, Any]]()
        self.open = self.most_open = 0
        self._socket = socket.socket()
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._socket.bind(("127.0.0.1", port))
        self.port: int = self._socket.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}/v1"
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Flaky:
        started = asyncio.run_coroutine_threadsafe(asyncio.start_server(self._serve, sock=self._socket), self._loop)
        self._thread.start()
        started.result(10)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._socket.close()

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_forever()
        tasks = asyncio.all_tasks(self._loop)
        for task in tasks:
            task.cancel()
        self._loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError, EOFError, asyncio.CancelledError):  # cancelled when the server goes
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                fields = dict(line.lower().split(": ", 1) for line in head.split("\r\n")[1:] if line)
                body = await reader.readexactly(int(fields.get("content-length", 0)))
                verb, path, _ = head.split(" ", 2)
                self.open += 1
                self.most_open = max(self.open, self.most_open)
                try:
                    go_on = await self._answer(f"{verb} {path}", fields, json.loads(body) if body else {}, writer)
                finally:
                    self.open -= 1
                if not go_on:
                    break
        writer.close()

    async def _answer(
        self, what: str, fields: dict[str, str], body: dict[str, Any], writer: asyncio.StreamWriter
    ) -> bool:
        """Answer a request, or fail to; return whether the connection goes on."""
        if self.key is not None and fields.get("authorization") != f"bearer {self.key}".lower():
            return await _send(writer, {"error": {"message": f"Incorrect API key: {self.key}"}}, "401 Unauthorized")
        if what == "GET /v1/models":
            fault = self.fault("models", self.asked["models"])
            self.asked["models"] += 1
            if fault is None:
                row = {"id": self.model, "object": "model", "max_model_len": self.room}
                return await _send(writer, {"object": "list", "data": [row]})
            return await _fail(writer, fault, {})
        if what not in ("POST /v1/completions", "POST /v1/chat/completions"):
            return await _send(writer, {"detail": "Not Found"}, "404 Not Found")
        chat = what.endswith("chat/completions")
        prompt = body["messages"] if chat else body["prompt"]
        asked = digest_of(prompt)
        before = self.asked[asked]
        self.asked[asked] += 1
        self.bodies.append(body)
        await asyncio.sleep(self.delay)
        answer = self._stub(body, prompt, chat=chat)
        fault = self.fault(asked, before)
        if fault is not None:
            return await _fail(writer, fault, answer)
        done = await _send(writer, answer)
        self.served[asked] += 1
        return done

    def _stub(self, body: dict[str, Any], prompt: Any, *, chat: bool) -> dict[str, Any]:
        """Return an answer that follows from what is asked alone."""
        text = prompt if isinstance(prompt, str) else "".join(
            f"<|im_start|>{message['role']}\n{message['content']}<|im_end|>\n" for message in prompt
        ) + "<|im_start|>assistant\n" if chat else None  # fmt: skip
        length = len(prompt) if text is None else len(self.tokenizer.encode(text, add_special_tokens=False).ids)
        drawn = digest_of([prompt, body.get("seed"), body["temperature"]])
        said = f"{self.salt}Bread {drawn[:6]} rises, {drawn[6:12]}."
        return {
            "object": "chat.completion" if chat else "text_completion",
            "choices": [{"index": 0, "finish_reason": "stop",
                         **({"message": {"role": "assistant", "content": said}} if chat else {"text": said})}],
            "usage": {"prompt_tokens": length, "completion_tokens": 1 + int(drawn[0], 16)},
        }  # fmt: skip


async def _send(writer: asyncio.StreamWriter, answer: Any, status: str = "200 OK", *more: str) -> bool:
    body = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
    lines = [f"HTTP/1.1 {status}", "Content-Type: application/json", f"Content-Length: {len(body)}", *more]
    writer.write("\r\n".join([*lines, "", ""]).encode() + body)
    await writer.drain()
    return True


async def _fail(writer: asyncio.StreamWriter, fault: str, answer: dict[str, Any]) -> bool:
    body = json.dumps(answer).encode()
    match fault:
        case "reset":  # without a word, and with RST instead of FIN
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            return False
        case "close":
            return False
        case "slow":
            await asyncio.sleep(SLOW)
            return False
        case "busy":
            return await _send(writer, {}, "429 Too Many Requests", "Retry-After: 0")
        case "later":
            date = email.utils.formatdate(time.time(), usegmt=True)
            return await _send(writer, b"later", "503 Service Unavailable", f"Retry-After: {date}")
        case "error":
            return await _send(writer, b"<h1>oops</h1>", "500 Internal Server Error")
        case "no http":
            writer.write(b"\x16\x03\x01 what is this?\r\n\r\n")
        case "page":
            return await _send(writer, b"<html>a proxy's page</html>")
        case "half":
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body[: len(body) // 2])
        case "short":
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % (len(body) - 9) + body)
        case "long":
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % (len(body) + 9) + body)
        case "chunks":
            writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n" + body[:5] + b"\r\nzz\r\n")
        case "zipped":
            return await _send(writer, body, "200 OK", "Content-Encoding: gzip")
        case "other":  # the answer to another request
            return await _send(writer, {**answer, "usage": {"prompt_tokens": 1, "completion_tokens": 1}})
        case "no choice":
            return await _send(writer, {**answer, "choices": []})
        case "aborted":
            (choice,) = answer.get("choices", [{}])
            return await _send(writer, {**answer, "choices": [{**choice, "finish_reason": "abort"}]})
        case "array":
            return await _send(writer, [1, 2])
        case _ if fault.startswith("wait "):
            return await _send(writer, {}, "429 Too Many Requests", f"Retry-After: {fault[5:]}")
        case _:
            status, _, words = fault.partition(" ")
            return await _send(writer, {"error": {"message": words}}, f"{status} Said So")
    with suppress(OSError):
        await writer.drain()
    return False
