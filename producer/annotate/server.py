"""A server that speaks OpenAI's chat completions: bounded requests, deadlines, tries, and no secret in any message."""

import asyncio
import base64
import concurrent.futures
import io
import json
import os
import ssl
import threading
import time
from collections.abc import Coroutine, Sequence
from http import HTTPStatus
from typing import Any

import aiohttp
from PIL import Image

from producer.annotate.config import AnnotateConfig, AnnotateError, ServerConfig
from producer.annotate.model import Said, Talk, Unanswered
from producer.source.retry import TransientError, pause_s

QUALITY = 92  # of the JPEG that a picture travels as, colours not halved
_BODY = 4 << 20  # bytes of an answer, headers apart
_DETAIL = 300  # characters of what a server says of an error
_CLOSE_S = 5.0
_BUSY = (408, 425, 429)
_OURS = {
    401: "annotate.server.key: {url} does not take the key: {why}",
    403: "annotate.server.key: {url} refuses the key: {why}",
    404: "annotate.server.url: {url} knows no such place or model {model!r}: {why}",
}


class _RefusedError(Exception):
    """The server will not answer this request, however often it is asked."""


class Server:
    """Asks `config.server`. Any number of threads may; what is on its way ends with `close`."""

    def __init__(self, config: AnnotateConfig) -> None:
        assert config.server is not None
        self._server, self._config = config.server, config
        self._key = _key(config.server)
        self._tls = _context(config.server)
        self._loop = asyncio.new_event_loop()
        self._session: aiohttp.ClientSession | None = None
        self._thread = threading.Thread(target=self._loop.run_forever, name="annotate-server", daemon=True)
        self._thread.start()

    def ask(self, talks: Sequence[Talk]) -> list[Said | Unanswered]:
        """An answer for each of `talks`, all asked at once; AnnotateError if the server takes nothing from us."""
        bodies = [self._body(talk) for talk in talks]
        return self._run(self._all(bodies))

    def close(self) -> None:
        """Cut what is on its way."""
        if not self._loop.is_closed():
            self._run(self._end())
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(_CLOSE_S)
            self._loop.close()

    def _run(self, work: Coroutine[Any, Any, Any]) -> Any:
        try:
            future = asyncio.run_coroutine_threadsafe(work, self._loop)
        except RuntimeError:
            work.close()
            raise AnnotateError("annotate: the connection to the server was ended") from None
        # Every wait inside has a deadline.
        try:
            return future.result()
        except (asyncio.CancelledError, concurrent.futures.CancelledError):
            raise AnnotateError("annotate: the connection to the server was ended") from None

    async def _end(self) -> None:
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        if self._session:
            await self._session.close()

    async def _all(self, bodies: Sequence[bytes]) -> list[Said | Unanswered]:
        return list(await asyncio.gather(*(self._answer(body) for body in bodies)))

    def _body(self, talk: Talk) -> bytes:
        config = self._config
        request = {
            **self._server.extra,
            "model": self._server.model,
            "messages": _messages(talk),
            "max_tokens": config.max_tokens,
            "temperature": config.temperature,
        }
        return json.dumps(request).encode()

    async def _answer(self, body: bytes) -> Said | Unanswered:
        server, why = self._server, ""
        began = time.monotonic()
        for number in range(1, server.tries + 1):
            least = 0.0
            try:
                async with asyncio.timeout(server.request_s):
                    return await self._try(body)
            except _RefusedError as error:
                return Unanswered("refused", str(error))
            except _BusyError as error:
                why, least = str(error), error.after_s
            except TransientError as error:
                why = str(error)
            except aiohttp.ServerTimeoutError:
                why = f"no connection within {server.connect_s:g} s"
            except TimeoutError:
                why = f"no whole answer within {server.request_s:g} s"
            except aiohttp.ClientSSLError as error:
                raise AnnotateError(
                    f"annotate.server.ca: the certificate of {server.url} is not one that can be trusted "
                    f"({self._plain(str(error))}); name the authority that signed it"
                ) from None
            except (aiohttp.ClientError, OSError) as error:
                why = self._plain(str(error)) or type(error).__name__
            if number < server.tries:
                await asyncio.sleep(min(server.wait_s, max(least, pause_s(number))))
        return Unanswered("unanswered", f"{why} ({server.tries} tries in {time.monotonic() - began:.1f} s)")

    async def _try(self, body: bytes) -> Said:
        if self._session is None:
            self._session = self._open()
        headers = {"Content-Type": "application/json", "Accept-Encoding": "identity"}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        url = f"{self._server.url}/chat/completions"
        # Followed to another place, a redirect would take key and picture there.
        async with self._session.post(url, data=body, headers=headers, allow_redirects=False) as response:
            raw = await _read(response)
        if response.status != HTTPStatus.OK:
            self._not_ok(response, raw)
        try:
            return _understood(json.loads(raw))
        except (ValueError, RecursionError, KeyError, TypeError, IndexError, AttributeError):
            raise TransientError(f"HTTP 200 with what is no chat completion: {self._plain(_text(raw))}") from None

    def _not_ok(self, response: aiohttp.ClientResponse, raw: bytes) -> None:
        status, why = response.status, self._plain(_error(raw))
        if status in _BUSY or status >= 500:
            raise _BusyError(f"HTTP {status}: {why}", _after_s(response.headers.get("Retry-After", "")))
        if status in _OURS:
            raise AnnotateError(_OURS[status].format(url=self._server.url, model=self._server.model, why=why))
        if status < 400:
            raise AnnotateError(
                f"annotate.server.url: {self._server.url} answers HTTP {status}, which is no chat completion; "
                "give the address that answers itself, up to and with /v1"
            )
        raise _RefusedError(f"HTTP {status}: {why}")

    def _open(self) -> aiohttp.ClientSession:
        """Where no environment variable and no .netrc says where requests go and with what."""
        server = self._server
        connector = aiohttp.TCPConnector(limit=server.concurrency, ssl=self._tls)
        timeout = aiohttp.ClientTimeout(total=None, connect=None, sock_connect=server.connect_s)
        return aiohttp.ClientSession(connector=connector, timeout=timeout, trust_env=False, auto_decompress=False)

    def _plain(self, text: str) -> str:
        """What a server says, fit for a log: printable, short, and without the key."""
        hidden = text.replace(self._key, "***") if self._key else text
        return "".join(char if char.isprintable() else " " for char in hidden)[:_DETAIL]


def identity(server: ServerConfig) -> dict[str, Any]:
    """What answers depend on, besides the question. The same model at another address is the same."""
    return {"server": server.model, "quality": QUALITY, "extra": server.extra}


class _BusyError(Exception):
    """The server asks for patience: `after_s` seconds, if it says."""

    def __init__(self, message: str, after_s: float) -> None:
        super().__init__(message)
        self.after_s = after_s


def _key(server: ServerConfig) -> str:
    if not server.key:
        return ""
    key = os.environ.get(server.key, "")
    if not key:
        raise AnnotateError(f"annotate.server.key: the environment has no {server.key}; export it with the API key")
    if not key.isascii() or not key.isprintable() or " " in key:
        raise AnnotateError(f"annotate.server.key: {server.key} holds blanks or characters that no API key has")
    return key


def _context(server: ServerConfig) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=server.ca)
    except OSError as error:
        raise AnnotateError(
            f"annotate.server.ca: {server.ca} holds no certificate in PEM ({error.strerror or error})"
        ) from None


def _messages(talk: Talk) -> list[dict[str, Any]]:
    messages: list[dict[str, Any]] = []
    for number, turn in enumerate(talk.turns):
        content: Any = turn
        if number == 0 and talk.picture is not None:
            image = {"type": "image_url", "image_url": {"url": _data_url(talk.picture)}}
            content = [image, {"type": "text", "text": turn}]
        messages.append({"role": "assistant" if number % 2 else "user", "content": content})
    return messages


def _data_url(picture: Image.Image) -> str:
    out = io.BytesIO()
    picture.save(out, "JPEG", quality=QUALITY, subsampling=0)
    return f"data:image/jpeg;base64,{base64.b64encode(out.getvalue()).decode()}"


async def _read(response: aiohttp.ClientResponse) -> bytes:
    if response.headers.get("Content-Encoding", "identity") != "identity":
        raise TransientError(f"HTTP {response.status} with an encoding that was not asked for")
    body = bytearray()
    async for part in response.content.iter_any():
        body += part
        if len(body) > _BODY:
            raise _RefusedError(f"an answer of more than {_BODY} bytes")
    return bytes(body)


def _understood(said: Any) -> Said:
    choice = said["choices"][0]
    message, usage = choice["message"], said.get("usage") or {}
    finish = {"length": "length", "content_filter": "filter"}.get(choice.get("finish_reason") or "", "stop")
    thought = message.get("reasoning_content") or message.get("reasoning") or ""
    text = message.get("content") or message.get("refusal") or ""
    if not isinstance(text, str) or not isinstance(thought, str):
        raise TypeError
    counts = [usage.get(name) or 0 for name in ("prompt_tokens", "completion_tokens")]
    if not all(type(count) is int and 0 <= count < 1 << 40 for count in counts):
        raise TypeError
    return Said(text, finish, len(thought), *counts)  # type: ignore[arg-type]


def _error(raw: bytes) -> str:
    """What the body of an error says: OpenAI's form, or as it is."""
    try:
        said = json.loads(raw)
        error = said.get("error", said)
        message = error.get("message", "") if isinstance(error, dict) else error
    except (ValueError, RecursionError, AttributeError):
        message = ""
    return message if isinstance(message, str) and message else _text(raw)


def _text(raw: bytes) -> str:
    return raw[: 4 * _DETAIL].decode("utf-8", "replace") or "nothing"


def _after_s(text: str) -> float:
    """Seconds of a Retry-After header; dates are not obeyed."""
    return float(text) if text.isascii() and text.isdigit() and len(text) < 10 else 0.0
