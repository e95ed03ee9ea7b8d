"""What a rank finds around it: versions, sources, device, folders."""

import hashlib
import os
import platform
import shutil
import time
from contextlib import suppress
from importlib import metadata
from pathlib import Path

import psutil
import torch
from packaging.requirements import Requirement

from consumer.preflight.note import Device, Folder
from parallel.mesh import Mesh

# Packages whose versions are looked at where this distribution itself is not installed.
_PACKAGES = ("torch", "megatron-core", "numpy", "pyarrow", "pydantic", "safetensors")

# A probe file this old was left by a rank that died.
_STALE_S = 600.0

# How the names of probe files begin.
PROBE = ".preflight-"


def versions() -> dict[str, str]:
    """The versions of Python and of everything that this distribution asks for."""
    found = {"python": platform.python_version(), "cuda": torch.version.cuda or "none"}
    for requirement in _required():
        with suppress(metadata.PackageNotFoundError):
            found[requirement.name] = metadata.version(requirement.name)
    with suppress(metadata.PackageNotFoundError):
        found["transformer-engine"] = metadata.version("transformer-engine")
    return found


def lacking() -> list[str]:
    """Requirements of this distribution that what is installed does not meet."""
    said = []
    for requirement in _required():
        try:
            found = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            said.append(f"{requirement.name} is not installed")
            continue
        if not requirement.specifier.contains(found, prereleases=True):
            said.append(f"{requirement.name} {found} does not meet {requirement.specifier}")
    return said


def _required() -> list[Requirement]:
    try:
        asked = [Requirement(line) for line in metadata.requires("inkstone") or []]
    except metadata.PackageNotFoundError:
        return [Requirement(name) for name in _PACKAGES]
    return [requirement for requirement in asked if requirement.marker is None or requirement.marker.evaluate()]


def code_hash() -> str:
    """A hash of every source file of ours, by path and content: git need not be there, nor a clean checkout."""
    root, digest = Path(__file__).parents[2], hashlib.sha256()
    for package in ("consumer", "launch", "model", "parallel", "producer"):
        for path in sorted((root / package).rglob("*.py")):
            digest.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:12]


def device_of(mesh: Mesh) -> Device:
    """This rank's device. A CPU's capability is the vector width that torch's kernels use: it changes last digits."""
    if mesh.device.type == "cpu":
        width = torch.backends.cpu.get_cpu_capability()
        return Device(f"{platform.machine()} CPU", width, os.cpu_count() or 1, "", psutil.virtual_memory().available)
    known = torch.cuda.get_device_properties(mesh.device)
    free, _ = torch.cuda.mem_get_info(mesh.device)
    return Device(known.name, f"{known.major}.{known.minor}", torch.cuda.device_count(), str(known.uuid), free)


def look_at(path: Path, name: str, left: list[Path]) -> Folder:
    """Whether this rank can write to the folder at `path`, and its free room; the file it leaves goes to `left`."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        for old in path.glob(f"{PROBE}*"):
            with suppress(OSError):
                if time.time() - old.stat().st_mtime > _STALE_S:
                    old.unlink()
        with (path / name).open("wb") as file:
            left.append(path / name)
            file.write(b"a rank of a job that starts can write here")
            file.flush()
            os.fsync(file.fileno())
        return Folder(str(path), shutil.disk_usage(path).free, path.stat().st_dev, name)
    except OSError as error:
        return Folder(str(path), 0, 0, "", error.strerror or str(error))
