"""URLs that lead where they should not, and servers that send too much, too slowly, elsewhere, or not at all."""

import contextlib
import io
import json
import socket
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import trustme
from PIL import Image

from producer.source.address import RefusedError, Target, is_public, target
from producer.source.reader import SourceConfig, open_source
from producer.source.remote import RemoteConfig
from producer.source.shard import RawSample, Reader, SourceError, UnreadableError
from producer.source.web import WebStore
from tests.unit.producer.faulty import serving
from tests.unit.producer.test_sources import write_tar

ALLOWED = ("s3", "gs", "https", "http")

# Names as a resolver of the open internet might answer.
NAMES = {
    "good.example": ["93.184.215.14"],
    "six.example": ["2606:2800:21f:cb07:6820:80da:af6b:8b2c"],
    "inside.example": ["10.1.2.3"],
    "both.example": ["93.184.215.14", "127.0.0.1"],
    "metadata.example": ["169.254.169.254"],
    "localhost": ["127.0.0.1"],
    "none.example": [],
}


def resolve(host: str, port: int, **_: Any) -> list[Any]:
    """As getaddrinfo, which takes numbers in every spelling that C's inet_aton does."""
    try:
        found = NAMES[host] if host in NAMES else [socket.inet_ntoa(socket.inet_aton(host))]
    except OSError:
        found = [host] if ":" in host else []
    return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in found]


HOSTILE = [
    "file:///etc/passwd", "file://localhost/etc/passwd", "ftp://good.example/a.tar", "gopher://good.example:70/_x",
    "dict://good.example/d", "ldap://good.example/x", "jar:https://good.example/a!/b", "data:text/plain,hello",
    "javascript:alert(1)", "ssh://good.example/x", "HTTPS://good.example/a", "//good.example/a", "/etc/passwd", "",
    "https:///a.tar", "https://:443/a.tar", "https://good.example:99999/a", "https://good.example:x/a",
    "https://169.254.169.254/latest/meta-data/", "http://metadata.example/computeMetadata/v1/", "https://[::1]/a",
    "https://[::ffff:127.0.0.1]/a", "https://[::ffff:10.0.0.1]/a", "https://[fe80::1%25eth0]/a", "https://[fc00::1]/a",
    "https://[64:ff9b::7f00:1]/a", "https://[2002:7f00:1::]/a", "https://[::]/a", "https://127.0.0.1/a",
    "https://127.1/a", "https://2130706433/a", "https://0177.0.0.1/a", "https://0x7f.0.0.1/a", "https://0x7f000001/a",
    "https://134744072/a", "https://0/a", "https://10.0.0.1/a", "https://172.16.0.1/a", "https://192.168.0.1/a",
    "https://100.64.0.1/a", "https://224.0.0.1/a", "https://255.255.255.255/a", "https://localhost/a",
    "https://inside.example/a", "https://both.example/a", "https://user:secret@good.example/a",
    "https://good.example@127.0.0.1/a", "https://good.example\\@127.0.0.1/a", "https://good.example /a",
    "https://good.example/a\r\nHost: x", "https://good.example\t/a", "https://gооd.example/a", "https://127.0.0.1./a",
    "simplecache::https://good.example/a", "https://good.example/zip://x::file:///etc/passwd",
    "https://good.example/" + "a" * 5_000, "s3://photos/a.tar",
]  # fmt: skip


@pytest.mark.parametrize("url", HOSTILE)
def test_a_url_that_leads_elsewhere_than_the_open_internet_is_refused(url: str) -> None:
    with pytest.raises(RefusedError) as caught:
        target(url, ALLOWED, (), resolve)
    assert "secret" not in str(caught.value)


def test_a_public_host_is_asked_at_the_address_that_was_checked() -> None:
    found = target("https://good.example/a/b.tar?v=2", ALLOWED, (), resolve)
    assert found == Target("https", "good.example", 443, "/a/b.tar?v=2", "93.184.215.14")
    assert target("https://six.example/", ALLOWED, (), resolve).address.startswith("2606:")
    assert target("http://8.8.8.8:81", ALLOWED, (), resolve)[2:] == (81, "/", "8.8.8.8")
    assert target("http://inside.example:81/x", ALLOWED, ("inside.example:81",), resolve).address == "10.1.2.3"
    with pytest.raises(RefusedError, match=r"leads to 10\.1\.2\.3, which is not public; source.remote.hosts may name"):
        target("http://inside.example:82/x", ALLOWED, ("inside.example:81",), resolve)
    with pytest.raises(OSError, match="has no address"):
        target("https://none.example/", ALLOWED, (), resolve)
    assert not is_public("192.0.2.1") and not is_public("2001:db8::1") and is_public("::ffff:8.8.8.8")


class Site(ThreadingHTTPServer):
    """Files by path, and paths that misbehave."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Site)
        self.files: dict[str, bytes] = {}
        self.asked: list[str] = []
        self.sent = 0

    @property
    def place(self) -> str:
        return f"127.0.0.1:{self.server_port}"


class _Site(BaseHTTPRequestHandler):
    server: Site

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        name, _, rest = self.path[1:].partition("/")
        # The client goes early, as it should.
        with contextlib.suppress(OSError):
            getattr(self, f"_{name}", self._file)(rest)

    def _file(self, rest: str) -> None:
        raw = self.server.files.get(self.path)
        if raw is None:
            self.send_error(404)
            return
        first, last = (int(n) for n in self.headers["Range"].removeprefix("bytes=").split("-"))
        part = raw[first : last + 1]
        self.send_response(206)
        self.send_header("Content-Range", f"bytes {first}-{first + len(part) - 1}/{len(raw)}")
        self.send_header("Content-Length", str(len(part)))
        self.send_header("ETag", '"one"')
        self.end_headers()
        self.wfile.write(part)

    def _endless(self, rest: str) -> None:
        self.send_response(200)
        self.end_headers()
        while True:
            self.server.sent += self.wfile.write(bytes(1 << 16))

    def _drip(self, rest: str) -> None:
        self.send_response(206)
        self.send_header("Content-Range", "bytes 0-99999/100000")
        self.end_headers()
        while True:
            self.wfile.write(b"x")
            time.sleep(0.05)

    def _headers(self, rest: str) -> None:
        self.wfile.write(b"HTTP/1.1 200 OK\r\n")
        while True:
            self.wfile.write(b"X-More: and more\r\n")
            self.server.sent += 1

    def _to(self, rest: str) -> None:
        self.send_response(302)
        place = unquote(rest)
        self.send_header("Location", place if "://" in place else f"/{place}")
        self.end_headers()

    def _again(self, rest: str) -> None:
        self.send_response(307)
        self.send_header("Location", f"/again/{len(self.server.asked)}")
        self.end_headers()

    def _whole(self, rest: str) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "5000")
        self.end_headers()
        self.wfile.write(bytes(5000))

    def _packed(self, rest: str) -> None:
        self.send_response(206)
        self.send_header("Content-Range", "bytes 0-9/10")
        self.send_header("Content-Encoding", "gzip")
        self.end_headers()

    def _silent(self, rest: str) -> None:
        time.sleep(6)


@pytest.fixture
def site() -> Iterator[Site]:
    with serving(Site()) as server:
        yield server


def store(site: Site, path: str = "list.txt", **remote: Any) -> WebStore:
    said = {"schemes": ("http",), "hosts": (site.place,), "tries": 2, "request_s": 1.0} | remote
    return WebStore(f"http://{site.place}/{path}", RemoteConfig.model_validate(said))


def samples(reader: Reader) -> dict[str, RawSample]:
    return {sample.key: sample for shard in reader.shards() for sample in reader.samples(shard)}


def jpeg() -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (40, 40), "teal").save(out, "JPEG")
    return out.getvalue()


def test_byte_time_and_redirect_caps_hold(site: Site) -> None:
    site.files["/good"] = bytes(range(200))
    assert store(site).read("good", 10, 5) == bytes(range(10, 15))
    assert store(site).read("good", 190, 50) == bytes(range(190, 200))
    assert store(site).read("to/good", 10, 5) == bytes(range(10, 15))
    assert store(site).read("endless/x", 0, 70_000) == bytes(70_000)
    time.sleep(0.2)
    # What a socket's buffers hold, and not more.
    assert site.sent < 32 << 20
    with pytest.raises(UnreadableError, match="does not answer ranges"):
        store(site).read("whole/x", 10, 5)
    with pytest.raises(UnreadableError, match="gzip is no answer"):
        store(site).read("packed/x", 0, 10)
    for redirects in (0, 2):
        site.asked.clear()
        with pytest.raises(UnreadableError, match=f"refused: more than {redirects} redirects"):
            store(site, redirects=redirects).read("again/0", 0, 5)
        assert len(site.asked) == redirects + 1


@pytest.mark.parametrize("path", ["drip/x", "silent/x", "headers/x"])
def test_what_comes_too_slowly_or_without_end_is_cut_off(site: Site, path: str) -> None:
    """Nothing else answers here either, but for the list, which shows that it is this file's fault."""
    site.files["/list.txt"] = b"x"
    site.files["/good"] = b"x"
    client = store(site, request_s=1.5, tries=1)
    assert client.read("good", 0, 1) == b"x"
    began = time.monotonic()
    with pytest.raises(UnreadableError, match=r"1 try|refused"):
        client.read(path, 0, 99_999)
    assert time.monotonic() - began < 30


@pytest.mark.parametrize(
    "place",
    ["http://127.0.0.1:1/x", "http://[::1]:1/x", "http://169.254.169.254/latest/meta-data", "file:///etc/passwd",
     "https://127.0.0.1/x", "gopher://127.0.0.1:1/x", "http://2130706433:1/x", "ftp://good.example/x"],
)  # fmt: skip
def test_a_redirect_to_anywhere_else_is_not_followed(site: Site, place: str) -> None:
    with pytest.raises(UnreadableError, match="refused: "):
        store(site).read(f"to/{place}", 0, 5)
    assert len(site.asked) == 1


def test_a_name_that_answers_differently_the_second_time_is_asked_at_the_first_address(site: Site) -> None:
    """DNS rebinding: one resolution, checked, and that address is connected to; the next is checked again."""
    site.files["/x"] = b"inside"
    answers = iter(["93.184.215.14", "127.0.0.1"])

    def rebinding(host: str, port: int, **_: Any) -> list[Any]:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (next(answers), port))]

    config = RemoteConfig(schemes=("http",), tries=1, connect_s=0.2, request_s=0.2)
    client = WebStore(f"http://good.example:{site.server_port}/list.txt", config, rebinding)
    with pytest.raises(SourceError):
        client.read("x", 0, 6)
    assert not site.asked


@pytest.mark.parametrize("kind", ["tars", "parquet"])
def test_a_list_over_http_is_a_source_and_names_nothing_but_files_beside_it(
    site: Site, kind: str, tmp_path: Path
) -> None:
    ending = "tar" if kind == "tars" else kind
    path = write_tar(tmp_path / "a.tar", [("x.jpg", jpeg()), ("x.txt", b"words")])
    if kind == "parquet":
        path = tmp_path / "a.parquet"
        pq.write_table(pa.table({"image": [jpeg()], "caption": ["words"]}), path, compression="NONE")
    site.files[f"/set/a.{ending}"] = site.files[f"/set/b c.{ending}"] = path.read_bytes()
    hostile = [
        "file:///etc/passwd",
        "http://169.254.169.254/x",
        "../x",
        "/etc/passwd",
        "a/../../x",
        "//host/x",
        "%2e/x",
    ]
    lines = ["# a comment", "", f"a.{ending}", *(f"{line}.{ending}" for line in hostile), f"missing.{ending}"]
    site.files["/set/list.txt"] = "\n".join(lines).encode() + b"\n\xff\xfe.tar\n\xff\xfe.parquet\n"
    said = {"kind": kind, "path": f"http://{site.place}/set/list.txt"}
    remote = {"schemes": ["http"], "hosts": [site.place], "tries": 2}
    config = SourceConfig.model_validate_json(json.dumps(said | {"remote": remote}))
    reader = open_source(config)
    found = samples(reader)
    assert [sample.captions for sample in found.values() if not sample.fault] == [{"raw": "words"}]
    faults = [sample.fault for sample in found.values() if sample.fault]
    assert len(faults) == len(hostile) + 2 and sum("the list names" in fault for fault in faults) == len(hostile) + 1
    assert any("HTTP 404" in fault for fault in faults)
    assert all(path.startswith("/set/") for path in site.asked)
    (good,) = (sample for sample in found.values() if not sample.fault)
    site.asked.clear()
    image = open_source(config).read(good.shard, good.member, good.offset, good.size)
    assert image == jpeg()
    alone = config.model_copy(update={"path": f"http://{site.place}/set/a.{ending}"})
    assert len(samples(open_source(alone))) == 1


def test_https_is_read_where_its_certificate_is_trusted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import ssl

    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    server = Site()
    server.files["/x"] = b"words"
    server.socket = context.wrap_socket(server.socket, server_side=True)
    with serving(server):
        config = RemoteConfig(hosts=(server.place,), tries=1)
        with pytest.raises(SourceError, match="certificate verify failed"):
            WebStore(f"https://{server.place}/list.txt", config).read("x", 0, 5)
        authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
        assert WebStore(f"https://{server.place}/list.txt", config).read("x", 0, 5) == b"words"


def test_plain_http_and_folders_over_it_are_refused_with_the_reason(site: Site) -> None:
    for said, message in (
        ({"path": f"http://{site.place}/a.tar"}, "scheme 'http' is not among source.remote.schemes s3, gs, https"),
        ({"path": "https://good.example/x", "kind": "folder"}, "cannot be listed"),
        ({"path": f"https://{site.place}/a.tar"}, "is not public; source.remote.hosts may name it"),
        ({"path": "memory://x"}, "scheme 'memory' is not among"),
        ({"path": "file:///etc"}, "scheme 'file' is not among"),
    ):
        with pytest.raises(SourceError, match=message):
            open_source(SourceConfig.model_validate(said)).shards()
    assert not site.asked


def test_any_filesystem_that_the_config_allows_is_read(tmp_path: Path) -> None:
    import fsspec

    files = fsspec.filesystem("memory")
    files.pipe_file("/photos/a.tar", write_tar(tmp_path / "a.tar", [("x.jpg", jpeg()), ("x.txt", b"w")]).read_bytes())
    files.pipe_file("/photos/deep/y.jpg", jpeg())
    files.pipe_file("/photos/deep/y.txt", b"words")
    remote = RemoteConfig(schemes=("memory",))
    for kind, key in (("tars", "a/x"), ("folder", "deep/y.jpg")):
        config = SourceConfig.model_validate({"kind": kind, "path": "memory://photos", "remote": remote})
        (sample,) = samples(open_source(config)).values()
        assert sample.key == key and len(sample.captions) == 1
        assert open_source(config).read(sample.shard, sample.member, sample.offset, sample.size) == jpeg()
