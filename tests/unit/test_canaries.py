"""Code hidden in everything that is read from disk or the wire: none of it runs, whatever the reader says of it.

A canary is a payload that makes a file when it is executed. `test_the_canaries_sing` shows that each would.
"""

import contextlib
import io
import json
import shutil
import socket
import subprocess
import sys
import tarfile
import threading
import zipfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.flight as flight
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import save_file

from consumer.pieces import INDEX, INDEX_HASH, CheckpointReader, index_hash
from consumer.released import ReleasedError, _stored, check_released
from consumer.source.flight import FlightSource
from consumer.source.producers import PullConfig
from launch.config import load
from launch.settings import Settings
from model.config import MMDiTConfig
from producer.api import local
from producer.api.channel import gate
from producer.api.parcel import ASK, REQUEST_LIMIT
from producer.api.protocol import Located, Welcome, encode
from producer.api.unit import Header, UnitId, pack, unpack
from producer.cache_file import CacheFile, Layout
from producer.encode import Encoder
from producer.encoder_config import EncoderConfig
from producer.index import Index
from producer.operator.nsfw import Nsfw, NsfwConfig
from producer.operator.pretrained import ModelError
from producer.source.reader import SourceConfig, open_source
from producer.synthetic import SyntheticMaker
from producer.tokens import count_tokens
from tests.unit.producer.farm import JOB, TOKEN, farm, train, until

ROOT = Path(__file__).parents[2]
ENDINGS = ("pyd", "so", "pkl", "pickle", "pth", "pt", "bin", "npy", "npz", "ckpt", "joblib", "py", "metadata")


class Canary:
    """Payloads that make `nest` when they are executed."""

    def __init__(self, nest: Path) -> None:
        self.nest = nest

    @property
    def pickle(self) -> bytes:
        # os.system("touch NEST"), in the oldest of pickle's protocols.
        return f"cos\nsystem\n(S'touch {self.nest}'\ntR.".encode()

    @property
    def code(self) -> bytes:
        return f"open({str(self.nest)!r}, 'w').close()\n".encode()

    @property
    def array(self) -> bytes:
        out = io.BytesIO()
        header = {"descr": "|O", "fortran_order": False, "shape": (1,)}
        np.lib.format.write_array_header_1_0(out, header)
        return out.getvalue() + self.pickle

    @property
    def archive(self) -> bytes:
        """As torch.save writes it."""
        out = io.BytesIO()
        with zipfile.ZipFile(out, "w") as file:
            file.writestr("archive/data.pkl", self.pickle)
            file.writestr("archive/version", "3\n")
        return out.getvalue()

    def of(self, ending: str) -> bytes:
        special = {"py": self.code, "npy": self.array, "npz": self.array, "pt": self.archive, "pth": self.archive}
        return special.get(ending, self.archive if ending in ("bin", "ckpt") else self.pickle)

    def strew(self, folder: Path, *stems: str) -> None:
        """Every payload under every ending, wherever there is no such file."""
        folder.mkdir(parents=True, exist_ok=True)
        for stem in stems:
            for ending in ENDINGS:
                path = folder / f"{stem}.{ending}"
                if not path.exists():
                    path.write_bytes(self.of(ending))
        (folder / ".metadata").write_bytes(self.pickle)

    def extension(self) -> pa.Schema:
        """Arrow's extension type that pickles itself, as its readers once loaded it."""
        said = {b"ARROW:extension:name": b"arrow.py_extension_type", b"ARROW:extension:metadata": self.pickle}
        return pa.schema([pa.field("a", pa.binary(), metadata=said)], {b"pandas": self.pickle, b"ARROW": self.pickle})


@pytest.fixture
def canary(tmp_path: Path) -> Iterator[Canary]:
    bird = Canary(tmp_path / "fired")
    yield bird
    assert not bird.nest.exists(), "a canary fired"


@pytest.mark.parametrize("ending", ["pkl", "py", "npy", "pt"])
def test_the_canaries_sing(tmp_path: Path, ending: str) -> None:
    bird = Canary(tmp_path / "sang")
    path = tmp_path / f"song.{ending}"
    path.write_bytes(bird.of(ending))
    run = {
        "pkl": "import pickle; pickle.load(open(PATH, 'rb'))",
        "py": "import runpy; runpy.run_path(PATH)",
        "npy": "import numpy; numpy.load(PATH, allow_pickle=True)",
        "pt": "import io, pickle, zipfile; pickle.loads(zipfile.ZipFile(PATH).read('archive/data.pkl'))",
    }[ending]
    subprocess.run([sys.executable, "-c", run.replace("PATH", repr(str(path)))], capture_output=True, timeout=60)
    assert bird.nest.exists()


def refused(call: Callable[[], object]) -> None:
    """Runs `call`, which may say no in any words of an ordinary error."""
    with suppress(ValueError, OSError, KeyError, TypeError, RuntimeError, NotImplementedError):
        call()


def test_checkpoints(tmp_path: Path, canary: Canary) -> None:
    for raw in (canary.pickle, json.dumps({"_target_": "os.system", "args": [f"touch {canary.nest}"]}).encode()):
        folder = tmp_path / "step-00000001"
        canary.strew(folder, "index", "model", "optimizer", "common", "rank-0")
        (folder / INDEX).write_bytes(raw)
        (folder / INDEX_HASH).write_bytes(index_hash(raw))
        refused(partial(CheckpointReader, folder))


def test_released_weights(tmp_path: Path, canary: Canary) -> None:
    config = MMDiTConfig()
    folder = tmp_path / "transformer"
    canary.strew(folder, "diffusion_pytorch_model", "pytorch_model", "modeling_canary")
    hostile = {"auto_map": {"AutoModel": "modeling_canary.Model"}, "_target_": "os.system"}
    (folder / "config.json").write_text(json.dumps(config.released() | hostile))
    with pytest.raises(ValueError, match="not a config of this model"):
        check_released(tmp_path, config)
    (folder / "config.json").write_text(json.dumps(config.released()))
    folder = check_released(tmp_path, config)
    with pytest.raises(ReleasedError, match="safetensors"):
        _stored(folder)
    (folder / "diffusion_pytorch_model.safetensors").write_bytes(canary.pickle)
    with pytest.raises(ReleasedError, match="safetensors"):
        _stored(folder)


REMOTE = {
    "AutoConfig": "modeling_canary.Config",
    "AutoModel": "modeling_canary.Model",
    "AutoTokenizer": ["modeling_canary.Tokenizer", None],
    "AutoImageProcessor": "modeling_canary.Processor",
    "AutoModelForImageClassification": "modeling_canary.Model",
}


@pytest.mark.parametrize("weights", ["kept", "gone"])
def test_encoders_of_a_repository_with_code_of_its_own(
    tmp_path: Path, canary: Canary, encoders: Path, weights: str
) -> None:
    root = tmp_path / "encoders"
    shutil.copytree(encoders, root)
    for folder in (folder for folder in root.iterdir() if folder.is_dir()):
        for path in folder.glob("*.json"):
            said = json.loads(path.read_text())
            if "config" in path.name and isinstance(said, dict):
                path.write_text(json.dumps(said | {"auto_map": REMOTE, "_target_": "os.system"}))
        if weights == "gone":
            for path in folder.glob("*.safetensors"):
                path.unlink()
        canary.strew(folder, "modeling_canary", "pytorch_model", "diffusion_pytorch_model", "model", "__init__")
    if weights == "gone":
        with pytest.raises((ValueError, OSError), match="safetensors"):
            Encoder(EncoderConfig(root=root, dtype="float32"))
    else:
        Encoder(EncoderConfig(root=root, dtype="float32"))
    assert count_tokens(root / "tokenizer", ["three words here"])[0] > 0


def test_a_tokenizer_that_is_only_code_is_refused_and_nobody_is_asked(tmp_path: Path, canary: Canary) -> None:
    canary.strew(tmp_path / "t", "modeling_canary", "tokenizer")
    said = {"tokenizer_class": "CanaryTokenizer", "auto_map": REMOTE}
    (tmp_path / "t" / "tokenizer_config.json").write_text(json.dumps(said))
    (tmp_path / "t" / "config.json").write_text(json.dumps({"model_type": "canary", "auto_map": REMOTE}))
    refused(lambda: count_tokens(tmp_path / "t", ["x"]))


def test_a_classifier_that_is_only_code_is_refused(tmp_path: Path, canary: Canary) -> None:
    canary.strew(tmp_path / "c", "modeling_canary", "pytorch_model")
    said = {"model_type": "canary", "architectures": ["CanaryForImageClassification"], "id2label": {"0": "nsfw"}}
    for name in ("config.json", "preprocessor_config.json"):
        (tmp_path / "c" / name).write_text(json.dumps(said | {"auto_map": REMOTE, "image_processor_type": "Canary"}))
    (tmp_path / "c" / "model.safetensors").write_bytes(canary.pickle)
    with pytest.raises(ModelError, match="damaged"):
        Nsfw(NsfwConfig(model=tmp_path / "c", unsafe=("nsfw",)))
    save_file({}, tmp_path / "c" / "model.safetensors")
    operator = Nsfw(NsfwConfig(model=tmp_path / "c", unsafe=("nsfw",)))
    with pytest.raises((ValueError, OSError, KeyError)):
        operator._load()


def test_tars(tmp_path: Path, canary: Canary) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as file:
        for stem in ("0", "1"):
            for ending in (*ENDINGS, "jpg", "txt", "json", "cls", "pyd.jpg"):
                info = tarfile.TarInfo(f"{stem}.{ending}")
                raw = canary.of(ending)
                info.size = len(raw)
                file.addfile(info, io.BytesIO(raw))
    source = open_source(SourceConfig(kind="tars", path=tmp_path))
    assert [len(list(source.samples(shard))) for shard in source.shards()] == [2]


def test_folders(tmp_path: Path, canary: Canary) -> None:
    canary.strew(tmp_path / "raw", "a", "b")
    for ending in ("jpg", "txt", "json"):
        (tmp_path / "raw" / f"a.{ending}").write_bytes(canary.pickle)
    source = open_source(SourceConfig(kind="folder", path=tmp_path / "raw"))
    assert [len(list(source.samples(shard))) for shard in source.shards()] == [1]


def test_parquet_sources_and_indexes(tmp_path: Path, canary: Canary) -> None:
    schema = canary.extension()
    table = pa.table({"a": [canary.pickle]}, schema=schema)
    image = table.append_column("image", pa.array([canary.pickle])).append_column("text", pa.array(["x"]))
    (tmp_path / "rows").mkdir()
    pq.write_table(image, tmp_path / "rows" / "a.parquet")

    def read() -> None:
        source = open_source(SourceConfig(kind="parquet", path=tmp_path / "rows"))
        for shard in source.shards():
            list(source.samples(shard))

    refused(read)
    generation = tmp_path / "index" / "gen-00001"
    canary.strew(generation, "rows", "generation")
    pq.write_table(table, generation / "rows.parquet")
    (generation / "generation.json").write_bytes(canary.pickle)
    with pytest.raises(ValueError):
        Index.open(tmp_path / "index")


def test_cache_files(tmp_path: Path, canary: Canary) -> None:
    schema = canary.extension()
    with pa.OSFile(str(tmp_path / "raw"), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
        writer.write_batch(pa.record_batch([pa.array([canary.pickle])], schema=schema))
    for raw in ((tmp_path / "raw").read_bytes(), canary.pickle, canary.array, canary.archive):
        path = tmp_path / f"w-0-0-{len(raw):x}-{'0' * 24}.arrow"
        path.write_bytes(raw)
        with pytest.raises(ValueError):
            CacheFile(path, Layout("x", ("mean",)))


def test_the_readers_of_arrow_do_not_know_the_type_that_pickles_itself(canary: Canary) -> None:
    batch = pa.record_batch([pa.array([canary.pickle])], schema=canary.extension())
    with pa.ipc.open_stream(stream_of(batch)) as reader:
        refused(lambda: unpack(reader.read_next_batch()))


def stream_of(batch: pa.RecordBatch) -> pa.Buffer:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    return sink.getvalue()


class Hostile(flight.FlightServerBase):  # type: ignore[misc]
    """A coordinator and worker whose units are `batch`, and whose other answers are `said` once a trainer is in."""

    def __init__(self, batch: pa.RecordBatch, said: bytes | None) -> None:
        self.batch, self.said = batch, said
        super().__init__(**gate("127.0.0.1", 0, TOKEN))
        self.address = f"127.0.0.1:{self.port}"

    def do_action(self, context: object, action: flight.Action) -> list[bytes]:
        answers = {"hello": Welcome("p", 1, 0, "e"), "locate": Located(self.address)}
        return [self.said or (encode(answers[action.type]) if action.type in answers else b'{"accepted": true}')]

    def do_get(self, context: object, ticket: flight.Ticket) -> flight.RecordBatchStream:
        return flight.RecordBatchStream(pa.RecordBatchReader.from_batches(self.batch.schema, [self.batch]))


@pytest.mark.parametrize("what", ["a type", "a sound unit's metadata", "an answer"])
def test_units_and_answers_of_a_hostile_fleet(tmp_path: Path, canary: Canary, what: str) -> None:
    sound = pack(Header("p", train(0, 0), "e"), [])
    metadata = {key: canary.pickle for key in (sound.schema.metadata or {})}
    batch = {
        "a type": pa.record_batch([pa.array([canary.pickle])], schema=canary.extension()),
        "a sound unit's metadata": sound.replace_schema_metadata(metadata),
        "an answer": sound,
    }[what]
    server = Hostile(batch, canary.pickle if what == "an answer" else None)
    (tmp_path / "token").write_text(TOKEN)
    pull = PullConfig(address=server.address, token=tmp_path / "token", start_s=1.0, wait_s=1.0)
    source = FlightSource(pull, "t", 1)
    with pytest.raises(ValueError):
        source.hello(0)
        source.fetch(train(0, 0))
    source.close()
    server.shutdown()


def test_tickets_messages_and_what_a_worker_says_of_its_failures(tmp_path: Path, canary: Canary) -> None:
    class CryError(Exception):
        def __reduce__(self) -> tuple[object, ...]:
            return (Path.touch, (canary.nest,))

    class Crying(SyntheticMaker):
        def __call__(self, unit: UnitId) -> tuple[pa.RecordBatch, int]:
            raise CryError(canary.pickle.decode())

    with farm(tmp_path) as running:
        worker = running.worker("w0", Crying(JOB))
        until(lambda: running.status()["failed"] > 0)
        assert "touch" not in json.dumps(running.status()["troubles"])
        for address in (running.coordinator.address, worker.address):
            client = flight.FlightClient(f"grpc://{local.far(address)}")
            options = flight.FlightCallOptions(timeout=10.0, headers=[(b"authorization", f"Bearer {TOKEN}".encode())])
            for raw in (canary.pickle, canary.array, canary.code):
                for kind in ("hello", "lease", "register", raw.decode(errors="ignore")[:60]):
                    with pytest.raises(flight.FlightServerError):
                        list(client.do_action(flight.Action(kind, raw), options))
                with pytest.raises(flight.FlightServerError):
                    client.do_get(flight.Ticket(raw), options).read_all()
            client.close()
        plain = local.raw(worker.address)
        assert plain is not None
        for raw in (canary.pickle, canary.array, canary.code):
            with socket.create_connection(plain, 10.0) as line, contextlib.suppress(ConnectionResetError):
                line.sendall(ASK.pack(len(raw[:REQUEST_LIMIT])) + raw[:REQUEST_LIMIT])
                assert line.recv(1000) == b""


def test_configs(tmp_path: Path, canary: Canary) -> None:
    for text in (
        f'[run]\n_target_ = "os.system"\ndir = "touch {canary.nest}"\n',
        f'[run]\ndir = "!!python/object/apply:os.system [touch {canary.nest}]"\n',
        f"[run]\ndir = \"${{__import__('os').system('touch {canary.nest}')}}\"\n",
        f'extends = "{tmp_path}/other.pkl"\n',
        canary.pickle.decode(),
    ):
        (tmp_path / "c.toml").write_text(text)
        (tmp_path / "other.pkl").write_bytes(canary.pickle)
        with pytest.raises((ValueError, OSError)):
            load(Settings, tmp_path / "c.toml", [])
    assert threading.active_count() < 200
