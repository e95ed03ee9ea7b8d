"""A real server on the loopback that answers well, late, in halves, with errors and lies; and what is made of it."""

import base64
import io
import json
import logging
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trustme
from PIL import Image
from pydantic import ValidationError

from producer.annotate.config import AnnotateConfig, AnnotateError, ServerConfig
from producer.annotate.model import Said, Talk, Unanswered
from producer.annotate.server import Server
from tests.unit.producer.chat import Chat, Reply, completion, good, serving

KEY = "sk-very-secret-0123456789"
PICTURE = Image.fromarray(np.full((40, 60, 3), (200, 30, 60), np.uint8))


def config(url: str, **changes: Any) -> AnnotateConfig:
    server = {"url": url, "model": "captioner", "tries": 3, "wait_s": 0.01, "request_s": 30.0} | changes
    return AnnotateConfig.model_validate({"server": server})


@contextmanager
def asking(answer: Callable[[dict[str, Any]], Reply], **changes: Any) -> Iterator[tuple[Chat, Server]]:
    with serving(answer) as chat:
        server = Server(config(chat.url, **changes))
        try:
            yield chat, server
        finally:
            server.close()


def after(*replies: Reply) -> Callable[[dict[str, Any]], Reply]:
    """These in turn, the last one for ever."""
    left = list(replies)
    lock = threading.Lock()

    def answer(_: dict[str, Any]) -> Reply:
        with lock:
            return left.pop(0) if len(left) > 1 else left[0]

    return answer


def test_question_picture_and_settings_arrive_as_any_such_server_takes_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CAPTION_KEY", KEY)
    extra = {"chat_template_kwargs": {"enable_thinking": False}}
    with asking(good, key="CAPTION_KEY", extra=extra) as (chat, server):
        (said,) = server.ask([Talk(("What is this?",), PICTURE).again("no idea", "Look again.")])
    assert isinstance(said, Said) and (said.finish, said.prompt_tokens, said.answer_tokens) == ("stop", 100, 20)
    (request,), (headers,) = chat.requests, chat.headers
    assert headers["path"] == "/v1/chat/completions" and headers["Authorization"] == f"Bearer {KEY}"
    assert (request["model"], request["max_tokens"], request["temperature"]) == ("captioner", 1024, 0.0)
    assert request["chat_template_kwargs"] == extra["chat_template_kwargs"]
    assert [message["role"] for message in request["messages"]] == ["user", "assistant", "user"]
    assert request["messages"][0]["content"][1] == {"type": "text", "text": "What is this?"}
    kind, _, content = chat.pictures()[0].partition(",")
    assert kind == "data:image/jpeg;base64"
    seen = np.asarray(Image.open(io.BytesIO(base64.b64decode(content))))
    assert seen.shape == (40, 60, 3) and np.abs(seen.astype(int) - (200, 30, 60)).max() < 8


@pytest.mark.parametrize(
    "first",
    [
        Reply(b'{"error": {"message": "overloaded"}}', 503),
        Reply(b"slow down", 429, {"Retry-After": "0"}),
        Reply(b"slow down", 429, {"Retry-After": "86400"}),  # bounded by wait_s
        Reply(completion("x"), cut=20),
        Reply(b"<html>a proxy speaks</html>"),
        Reply(b'{"choices": []}'),
        Reply(b"[" * 100_000),
        Reply(completion("x"), headers={"Content-Encoding": "gzip"}),
    ],
    ids=["500s", "429", "429 for a day", "cut off", "no JSON", "no choice", "deep JSON", "packed"],
)
def test_what_may_pass_is_tried_again(first: Reply) -> None:
    with asking(after(first, first, Reply(completion("a flag")))) as (chat, server):
        assert server.ask([Talk(("?",))]) == [Said("a flag", prompt_tokens=100, answer_tokens=20)]
    assert len(chat.requests) == 3


def test_what_does_not_pass_is_given_up_after_so_many_tries_with_the_reason() -> None:
    with asking(after(Reply(b'{"error": {"message": "no \\u001b[31mGPU"}}', 500))) as (chat, server):
        (said,) = server.ask([Talk(("?",))])
    assert isinstance(said, Unanswered) and said.reason == "unanswered"
    assert said.detail.startswith("HTTP 500: no  [31mGPU (3 tries in ")
    assert len(chat.requests) == 3


def test_a_server_that_does_not_answer_in_time_is_left_waiting() -> None:
    release = threading.Event()

    def never(_: dict[str, Any]) -> Reply:
        release.wait(60)
        return Reply(completion("late"))

    with asking(never, request_s=0.2, tries=2) as (chat, server):
        (said,) = server.ask([Talk(("?",))])
        release.set()
    assert isinstance(said, Unanswered) and said.detail.startswith("no whole answer within 0.2 s (2 tries")
    assert len(chat.requests) == 2


def test_nobody_there_is_no_answer() -> None:
    server = Server(config("http://127.0.0.1:1/v1", tries=2))
    (said,) = server.ask([Talk(("?",))])
    server.close()
    assert isinstance(said, Unanswered) and "Cannot connect" in said.detail


def test_a_request_that_is_refused_is_not_sent_again() -> None:
    with asking(after(Reply(b'{"error": {"message": "image too large"}}', 400))) as (chat, server):
        assert server.ask([Talk(("?",))]) == [Unanswered("refused", "HTTP 400: image too large")]
    assert len(chat.requests) == 1


def test_an_endless_answer_is_cut() -> None:
    with asking(after(Reply(completion("a" * (5 << 20))))) as (chat, server):
        (said,) = server.ask([Talk(("?",))])
    assert isinstance(said, Unanswered) and said.detail == "an answer of more than 4194304 bytes"
    assert len(chat.requests) == 1


@pytest.mark.parametrize(
    ("status", "setting"), [(401, r"server\.key"), (403, r"server\.key"), (404, r"server\.url"), (307, r"server\.url")]
)
def test_what_no_question_would_change_ends_the_run_and_never_shows_the_key(
    status: int, setting: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("CAPTION_KEY", KEY)
    caplog.set_level(logging.DEBUG)
    body = json.dumps({"error": {"message": f"Incorrect API key provided: {KEY}"}}).encode()
    with serving(good) as other:
        reply = Reply(body, status, {"Location": f"{other.url}/chat/completions"})
        said = rf"annotate\.{setting}: "
        asked = asking(after(reply), key="CAPTION_KEY")
        with asked as (chat, server), pytest.raises(AnnotateError, match=said) as caught:
            server.ask([Talk(("?",))])
        assert not other.requests
    assert len(chat.requests) == 1
    assert KEY not in str(caught.value) and KEY not in caplog.text


def test_a_key_stays_in_its_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    named = config("https://captions.example/v1", key="CAPTION_KEY")
    monkeypatch.delenv("CAPTION_KEY", raising=False)
    with pytest.raises(AnnotateError, match=r"annotate\.server\.key: the environment has no CAPTION_KEY"):
        Server(named)
    monkeypatch.setenv("CAPTION_KEY", f"{KEY}\r\nX-Other: 1")
    with pytest.raises(AnnotateError, match="CAPTION_KEY holds blanks") as caught:
        Server(named)
    assert KEY not in str(caught.value) and KEY not in named.model_dump_json()


def test_certificates_are_checked(tmp_path: Path) -> None:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    with serving(good, context) as chat:
        trusting = Server(config(chat.url, ca=tmp_path / "ca.pem"))
        (said,) = trusting.ask([Talk(("?",), PICTURE)])
        trusting.close()
        assert isinstance(said, Said)
        suspicious = Server(config(chat.url))
        with pytest.raises(AnnotateError, match=r"annotate\.server\.ca: the certificate of https.* cannot|trusted"):
            suspicious.ask([Talk(("?",), PICTURE)])
        suspicious.close()
        assert len(chat.requests) == 1
    with pytest.raises(AnnotateError, match=r"annotate\.server\.ca: .*absent\.pem holds no certificate"):
        Server(config("https://captions.example/v1", ca=tmp_path / "absent.pem"))


def test_closing_ends_what_is_on_its_way() -> None:
    asked, release = threading.Event(), threading.Event()

    def held(_: dict[str, Any]) -> Reply:
        asked.set()
        release.wait(60)
        return Reply(completion("late"))

    caught: list[BaseException] = []

    def ask(server: Server) -> None:
        try:
            server.ask([Talk(("?",))])
        except AnnotateError as error:
            caught.append(error)

    with serving(held) as chat:
        server = Server(config(chat.url))
        thread = threading.Thread(target=ask, args=(server,))
        thread.start()
        assert asked.wait(60)
        server.close()
        thread.join(60)
        release.set()
    assert not thread.is_alive() and "was ended" in str(caught[0])
    with pytest.raises(AnnotateError, match="was ended"):
        server.ask([Talk(("?",))])


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"url": "ftp://host/v1"}, "write it as http"),
        ({"url": "https://user:word@host/v1"}, "without user, password"),
        ({"url": "https://host:99999/v1"}, "write it as http"),
        ({"url": "http://captions.example/v1"}, "without TLS; use https"),
        ({"key": "sk-1234"}, "NAME of an environment variable"),
        ({"extra": {"model": "another"}}, "set by other settings"),
    ],
)
def test_wrong_settings_of_a_server_say_what_is_right(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        ServerConfig.model_validate({"url": "https://host/v1", "model": "m"} | changes)


def test_plain_http_to_this_machine_or_where_it_is_allowed_is_taken() -> None:
    assert ServerConfig(url="http://localhost:8000/v1/", model="m").url == "http://localhost:8000/v1"
    assert ServerConfig(url="http://gpu7:8000/v1", model="m", plaintext=True).plaintext
