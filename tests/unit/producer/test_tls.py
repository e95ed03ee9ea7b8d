"""Who may talk: TLS, mTLS and tokens over real Flight on the loopback, and what is said to who may not."""

import dataclasses
import re
import shutil
import subprocess
import time
import tomllib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow.flight as flight
import pytest
from pydantic import ValidationError

from consumer.source.flight import FlightSource
from consumer.source.producers import PullConfig, SourceError
from launch.config import ConfigError, build
from producer.api import tls as tls_module
from producer.api.channel import Access, BindError, Channel, DeniedError, HandshakeError, UnreachableError, gate
from producer.api.protocol import Welcome
from producer.api.tls import Tls, TlsError
from producer.api.unit import UnitId
from producer.coordinator_server import CoordinatorServer
from producer.fleet_config import FleetConfig
from producer.synthetic import SyntheticMaker
from producer.unit_server import Doors, Ring
from producer.worker import Worker, WorkerSetup
from tests.unit.producer.farm import JOB, LIMITS, TOKEN, until
from tests.unit.producer.papers import NAME, Authority


@contextmanager
def served(access: Access) -> Iterator[str]:
    server = CoordinatorServer(Welcome("p", 1, 0, "e"), LIMITS, host="127.0.0.1", port=0, access=access)
    try:
        yield server.address
    finally:
        server.stop()


def call(address: str, tls: Tls | None, token: str = TOKEN) -> bytes:
    channel = Channel(address, Access(token, tls))
    try:
        return channel.ask_raw("status", b"", 60.0)
    finally:
        channel.close()


@pytest.fixture
def ours(tmp_path: Path) -> Authority:
    return Authority(tmp_path / "ours")


@pytest.fixture
def others(tmp_path: Path) -> Authority:
    return Authority(tmp_path / "others")


def test_with_the_right_papers_everybody_talks(ours: Authority) -> None:
    client = ours.tls("trainer", name=NAME)
    for server in (ours.tls(NAME, name=NAME), ours.tls(NAME, name=NAME, require_client=True)):
        with served(Access(TOKEN, server)) as address:
            assert call(address, client)
    with served(Access(TOKEN, ours.tls("127.0.0.1"))) as address:
        # Who asks for no certificate gets none; the name is then the host's.
        assert call(address, ours.tls())


@pytest.mark.parametrize(
    ("server", "client", "said"),
    [
        ({}, lambda ours, others: others.tls(name=NAME), "its certificate is not signed by the authority in tls.ca"),
        ({}, lambda ours, others: ours.tls(name="elsewhere"), "not made out to elsewhere"),
        ({}, lambda ours, others: ours.tls(), "not made out to 127.0.0.1; set tls.name"),
        ({}, lambda ours, others: None, "it speaks TLS, and we do not: set pull.tls"),
        (None, lambda ours, others: ours.tls(name=NAME), "it speaks no TLS, and we do: set fleet.tls"),
        ({"require_client": True}, lambda ours, others: ours.tls(name=NAME), "it asks for a certificate of ours"),
        ({"require_client": True}, lambda ours, others: None, "it speaks TLS, and we do not: set pull.tls"),
        (
            {"require_client": True},
            lambda ours, others: dataclasses.replace(others.tls("trainer", name=NAME), ca=ours.ca),
            "it does not take our certificate, tls.cert: it is not signed by the authority in tls.ca",
        ),
        (
            {"require_client": True},
            lambda ours, others: ours.tls("trainer", expired=True, name=NAME),
            "it does not take our certificate, tls.cert: it has expired",
        ),
    ],
)
def test_wrong_papers_are_refused_at_once_with_what_is_wrong(
    ours: Authority,
    others: Authority,
    server: dict[str, bool] | None,
    client: Callable[[Authority, Authority], Tls | None],
    said: str,
) -> None:
    access = Access(TOKEN) if server is None else Access(TOKEN, ours.tls(NAME, name=NAME, **server))
    with served(access) as address:
        start = time.monotonic()
        with pytest.raises(HandshakeError, match=said) as refused:
            call(address, client(ours, others))
        assert str(refused.value).startswith(f"{address}: ")
        assert time.monotonic() - start < 30.0


def test_a_server_whose_certificate_expired_while_it_ran_is_named(
    ours: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tls_module, "rehearse", lambda tls: None)
    with (
        served(Access(TOKEN, ours.tls(NAME, name=NAME, expired=True))) as address,
        pytest.raises(HandshakeError, match="its certificate has expired"),
    ):
        call(address, ours.tls(name=NAME))


def test_nobody_there_is_no_matter_of_tls(ours: Authority) -> None:
    with served(Access(TOKEN)) as address:
        pass
    for tls in (None, ours.tls(name=NAME)):
        with pytest.raises(UnreachableError):
            call(address, tls)


def test_a_token_of_another_fleet_is_refused_over_tls_too(ours: Authority) -> None:
    client = ours.tls("trainer", name=NAME)
    with (
        served(Access(TOKEN, ours.tls(NAME, name=NAME, require_client=True))) as address,
        served(Access("another fleet's token, as long")) as other,
    ):
        assert call(other, None, "another fleet's token, as long")
        for token in (
            "",
            "another fleet's token, as long",
            TOKEN[:-1],
            TOKEN + "x",
            TOKEN.upper(),
            TOKEN.encode().hex(),
        ):
            with pytest.raises(DeniedError, match="does not know our token; both sides must use the same token file"):
                call(address, client, token)


@pytest.mark.parametrize("headers", [[], [b"Bearer " + TOKEN.encode()] * 2, [b""], [TOKEN.encode()], [b"Bearer \xff"]])
def test_a_token_in_another_form_is_refused(headers: list[bytes]) -> None:
    with served(Access(TOKEN)) as address:
        client = flight.FlightClient(f"grpc://{address}")
        options = flight.FlightCallOptions(timeout=10.0, headers=[(b"authorization", value) for value in headers])
        with pytest.raises(flight.FlightError) as refused:
            list(client.do_action(flight.Action("status", b""), options))
        client.close()
        assert "Traceback" not in str(refused.value) and TOKEN not in str(refused.value)
        assert call(address, None)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda tls, other: dataclasses.replace(tls, cert=None, key=None), "fleet.tls.cert: .* needs a certificate"),
        (lambda tls, other: dataclasses.replace(tls, ca=other.ca), "is not signed by the authority"),
        (lambda tls, other: dataclasses.replace(tls, name="elsewhere"), "is not made out to"),
        (lambda tls, other: dataclasses.replace(tls, key=other.tls(NAME).key), "no certificate with its key"),
        (lambda tls, other: dataclasses.replace(tls, ca=tls.key), "holds no certificate in PEM"),
        (lambda tls, other: dataclasses.replace(tls, cert=tls.cert.with_name("none")), "tls.cert: .*No such file"),
        (lambda tls, other: tls.key.chmod(0o644) or tls, "everybody can read"),
        (lambda tls, other: tls.cert.write_text("nonsense") and tls, "no certificate with its key"),
    ],
)
def test_a_fleet_does_not_start_with_papers_that_its_callers_would_refuse(
    ours: Authority, others: Authority, spoil: Callable[[Tls, Authority], Tls], said: str
) -> None:
    tls = spoil(ours.tls(NAME, name=NAME), others)
    with pytest.raises(TlsError, match=said):
        gate("127.0.0.1", 0, Access(TOKEN, tls))


def test_an_expired_certificate_is_said_at_the_start(ours: Authority) -> None:
    with pytest.raises(TlsError, match="has expired"):
        gate("127.0.0.1", 0, Access(TOKEN, ours.tls(NAME, name=NAME, expired=True)))


def test_beyond_loopback_a_server_needs_both_tls_and_a_token(ours: Authority) -> None:
    tls = ours.tls(NAME, name=NAME)
    for host in ("0.0.0.0", "192.0.2.7", "::", "trainer.example"):
        for access in (Access(TOKEN), Access("", tls), Access("", None, plaintext=True), Access("")):
            with pytest.raises(BindError, match=f"fleet.host: {host} is open to other machines"):
                gate(host, 0, access)
            with pytest.raises(BindError):
                Doors(Ring(), host=host, port=0, access=access)
        assert gate(host, 0, Access(TOKEN, tls)) and gate(host, 0, Access(TOKEN, plaintext=True))
    with pytest.raises(BindError, match=r"set fleet.tls and pull.tls .* or use 127.0.0.1; .* fleet.plaintext = true"):
        gate("0.0.0.0", 0, Access(TOKEN))


def test_a_token_is_not_shown_with_what_holds_it() -> None:
    assert TOKEN not in repr(Access(TOKEN))


def test_settings_name_the_files_and_take_no_others(tmp_path: Path, ours: Authority) -> None:
    tls = {"ca": "ca.pem", "cert": "c.pem", "key": "k.pem", "name": NAME, "require_client": True}
    fleet = build(FleetConfig, {"registry": "r.json", "tls": tls})
    assert fleet.tls == Tls(Path("ca.pem"), Path("c.pem"), Path("k.pem"), NAME, True)
    assert FleetConfig.model_validate_json(fleet.model_dump_json(), strict=True) == fleet
    assert fleet.tls.absolute().key == Path("k.pem").absolute()
    with pytest.raises(ConfigError, match=r"tls\.colour"):
        build(FleetConfig, {"registry": "r.json", "tls": tls | {"colour": 1}})
    with pytest.raises(ConfigError, match="belong together"):
        build(FleetConfig, {"registry": "r.json", "tls": {"ca": "ca.pem", "cert": "c.pem"}})
    with pytest.raises(ValidationError):
        PullConfig(address="h:1", tls={"ca": 3})  # type: ignore[arg-type]


def test_a_whole_training_pulls_over_mtls(tmp_path: Path, ours: Authority) -> None:
    (tmp_path / "token").write_text(TOKEN)
    fleet = Access(TOKEN, ours.tls(NAME, name=NAME, require_client=True))
    maker = SyntheticMaker(JOB)
    server = CoordinatorServer(maker.offer, LIMITS, host="127.0.0.1", port=0, access=fleet)
    worker = Worker(WorkerSetup("w0", lambda: server.address, fleet), maker)
    try:
        for tls in (ours.tls("trainer", name=NAME), ours.tls(name=NAME)):
            pull = PullConfig(address=server.address, token=tmp_path / "token", tls=tls, start_s=10, wait_s=30)
            source = FlightSource(pull, "t", 1)
            try:
                if tls.cert is None:
                    with pytest.raises(SourceError, match=r"it asks for a certificate of ours: set tls\.cert"):
                        source.hello(0)
                else:
                    source.hello(0)
                    unit = UnitId("train", 0, 0)
                    assert source.fetch(unit).equals(maker(unit)[0])
            finally:
                source.close()
        until(lambda: "w0" in server.status()["workers"])  # type: ignore[operator]
    finally:
        worker.stop()
        server.stop()


@pytest.mark.skipif(not shutil.which("openssl"), reason="needs openssl")
def test_the_papers_of_the_manual_work_as_it_says(tmp_path: Path) -> None:
    manual = (Path(__file__).parents[3] / "docs" / "security.md").read_text()
    commands = re.search(r"```sh\n(mkdir -p papers.*?)```", manual, re.DOTALL)
    settings = re.search(r"```toml\n(.*?)```", manual, re.DOTALL)
    assert commands and settings
    subprocess.run(["bash", "-euc", commands[1]], cwd=tmp_path, check=True, capture_output=True, timeout=60)
    said = tomllib.loads(settings[1].replace("papers/", f"{tmp_path}/papers/"))
    fleet = build(FleetConfig, {"registry": "r.json", **said["fleet"]}).tls
    trainer = build(PullConfig, {"address": "h:1", **said["pull"]}).tls
    with served(Access(TOKEN, fleet)) as address:
        assert call(address, trainer)
        with pytest.raises(HandshakeError, match="it asks for a certificate of ours"):
            call(address, dataclasses.replace(trainer, cert=None, key=None))  # type: ignore[type-var]
