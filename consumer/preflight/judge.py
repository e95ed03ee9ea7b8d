"""What the ranks' notes say together: for each check what was found, and what would mend it."""

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from consumer.preflight.note import Note


@dataclass(frozen=True)
class Wanted:
    """What the notes are held against."""

    memory_bytes: float  # a rank's need of its device; 0 asks for nothing
    disk_bytes: Mapping[str, float]  # by the setting that names the folder
    shared: Sequence[str]  # settings whose folders every rank must see as one
    clock_s: float


@dataclass(frozen=True)
class Finding:
    """One line of the report; `fix` is empty where all is well."""

    check: str
    result: str
    fix: str = ""


# Whether rank 0 finds the file of that name in the folder.
Sees = Callable[[str, str], bool]


def judge(notes: Sequence[Note | None], wanted: Wanted, sees: Sees) -> list[Finding]:
    """The report, from every rank's note, rank 0's among them; None stands for a rank that left none."""
    there = [note for note in notes if note is not None]
    silent = [rank for rank, note in enumerate(notes) if note is None]
    hosts = len({note.host for note in there})
    findings = [Finding("ranks", f"{len(there)} on {hosts} host{'s' if hosts > 1 else ''}")]
    if silent:
        hung = f"nothing heard from {named(silent)} of {len(notes)}"
        findings = [Finding("ranks", hung, "look at the end of their logs; start the job again without a broken host")]
    for check in (_versions, _code, _settings, _devices):
        findings += check(there)
    findings += _memory(there, wanted.memory_bytes)
    findings += _folders(there, wanted, sees)
    findings += _clocks(there, wanted.clock_s)
    findings += _groups(there)
    return findings + _own(there)


def named(ranks: Iterable[int]) -> str:
    """Ranks for people: `rank 3`, or `ranks 0-2, 5`."""
    runs: list[list[int]] = []
    for rank in sorted(set(ranks)):
        if runs and runs[-1][-1] == rank - 1:
            runs[-1] = [runs[-1][0], rank]
        else:
            runs.append([rank])
    said = ", ".join("-".join(map(str, run)) for run in runs)
    return f"rank {said}" if len(runs) == 1 and len(runs[0]) == 1 else f"ranks {said}"


def _places(notes: Iterable[Note]) -> str:
    """Whose notes these are, with the host where it is one."""
    chosen = list(notes)
    hosts = {note.host for note in chosen}
    return named(note.rank for note in chosen) + (
        f" on {hosts.pop()}" if len(hosts) == 1 else f" on {len(hosts)} hosts"
    )


def _apart(notes: Sequence[Note], value: Callable[[Note], str]) -> str:
    """`A on ranks 0-2, B on rank 3`, or nothing where all are the same."""
    groups: dict[str, list[Note]] = {}
    for note in notes:
        groups.setdefault(value(note), []).append(note)
    return "" if len(groups) == 1 else ", ".join(f"{said} on {_places(those)}" for said, those in groups.items())


def _versions(notes: Sequence[Note]) -> list[Finding]:
    findings = []
    for name in dict.fromkeys(name for note in notes for name in note.versions):
        apart = _apart(notes, lambda note, name=name: note.versions.get(name, "none"))  # type: ignore[misc]
        if apart:
            findings.append(
                Finding("versions", f"{name}: {apart}", "install the same everywhere: constraints.txt has one set")
            )
    for said in dict.fromkeys(line for note in notes for line in note.lacking):
        at = _places(note for note in notes if said in note.lacking)
        findings.append(Finding("versions", f"{said} ({at})", "run there: pip install -c constraints.txt -e ."))
    first = notes[0].versions
    shown = ", ".join(f"{name} {first[name]}" for name in ("python", "torch", "megatron-core", "cuda") if name in first)
    return findings or [Finding("versions", shown)]


def _code(notes: Sequence[Note]) -> list[Finding]:
    apart = _apart(notes, lambda note: note.code)
    if apart:
        return [Finding("code", apart, "bring the same checkout to every host, and install it there")]
    return [Finding("code", notes[0].code)]


def _settings(notes: Sequence[Note]) -> list[Finding]:
    findings = []
    for path in dict.fromkeys(path for note in notes for path in note.settings):
        apart = _apart(notes, lambda note, path=path: note.settings.get(path, "nothing"))  # type: ignore[misc]
        if apart:
            findings.append(Finding("settings", f"{path}: {apart}", "give every rank the same CONFIG and key=value"))
    digest = hashlib.sha256(json.dumps(notes[0].settings, sort_keys=True).encode()).hexdigest()[:12]
    return findings or [Finding("settings", f"{len(notes[0].settings)} the same everywhere, {digest}")]


def _devices(notes: Sequence[Note]) -> list[Finding]:
    findings = []
    apart = _apart(notes, lambda note: f"{note.device.kind} ({note.device.capability})")
    if apart:
        findings.append(Finding("devices", apart, "start on devices of one kind: others round differently"))
    apart = _apart(notes, lambda note: f"{note.device.count} devices") if notes[0].device.id else ""
    if apart:
        findings.append(Finding("devices", apart, "start on hosts with as many devices each, or hide the others"))
    users: dict[tuple[str, str], list[int]] = {}
    for note in notes:
        users.setdefault((note.host, note.device.id), []).append(note.rank)
    for (host, device), ranks in users.items():
        if device and len(ranks) > 1:
            said = f"{named(ranks)} on {host} share the device {device}"
            findings.append(Finding("devices", said, "start at most one rank a device: --nproc-per-node"))
    first = notes[0].device
    return findings or [Finding("devices", f"{first.kind} ({first.capability}), {first.count} a host")]


def _memory(notes: Sequence[Note], needed: float) -> list[Finding]:
    findings = []
    for host in dict.fromkeys(note.host for note in notes):
        there = [note for note in notes if note.host == host]
        # Ranks without a device of their own share the host's memory.
        share = [note.device.free_bytes / (1 if note.device.id else len(there)) for note in there]
        short = [note for note, free in zip(there, share, strict=True) if free < needed]
        if short:
            said = f"{_places(short)}: {gb(min(share))} free of the {gb(needed)} that each needs"
            fix = "end what else runs there, raise mesh.tp, start more ranks, or recompute more of the model"
            findings.append(Finding("memory", said, fix))
    least = min(note.device.free_bytes for note in notes)
    return findings or [Finding("memory", f"{gb(least)} free, each needs {gb(needed)} or more")]


def _folders(notes: Sequence[Note], wanted: Wanted, sees: Sees) -> list[Finding]:
    findings = []
    faults: dict[tuple[str, str, str], list[Note]] = {}
    for note in notes:
        for name, folder in note.folders.items():
            if folder.error:
                faults.setdefault((name, folder.path, folder.error), []).append(note)
    for (name, path, error), those in faults.items():
        said = f"{name}: {path}: {error} ({_places(those)})"
        findings.append(Finding("folders", said, f"make it a folder that this user may write to, or set {name} to one"))
    for name in wanted.shared:
        mine = notes[0].folders[name]
        written = [note for note in notes if not (note.folders[name].error or mine.error)]
        apart = [note for note in written if not sees(mine.path, note.folders[name].probe)]
        if apart:
            said = f"{name}: {mine.path}: {_places(notes[:1])} does not see what {_places(apart)} wrote there"
            findings.append(Finding("folders", said, f"set {name} to a folder that all hosts mount"))
    paths = dict.fromkeys(folder.path for folder in notes[0].folders.values())
    return (findings or [Finding("folders", f"written to {', '.join(paths)}")]) + _room(notes, wanted.disk_bytes)


def _room(notes: Sequence[Note], needed: Mapping[str, float]) -> list[Finding]:
    """One finding for each file system that is too small for the folders on it, from the first rank that sees it so."""
    findings: dict[str, Finding] = {}
    for note in notes:
        disks: dict[int, list[str]] = {}
        for name, folder in note.folders.items():
            if not folder.error and name in needed:
                disks.setdefault(folder.disk, []).append(name)
        for names in disks.values():
            wanted, free = sum(needed[name] for name in names), min(note.folders[name].free_bytes for name in names)
            where = ", ".join(f"{name} ({note.folders[name].path})" for name in names)
            if free < wanted and where not in findings:
                said = f"{where}: {gb(free)} free of the {gb(wanted)} that will be written there ({_places([note])})"
                findings[where] = Finding("disk", said, "free some, keep fewer checkpoints, or use a larger disk")
    return list(findings.values()) or [Finding("disk", f"room for {gb(sum(needed.values()))}")]


def _clocks(notes: Sequence[Note], most: float) -> list[Finding]:
    """The clocks were read when one all-reduce was through, so within moments of each other."""
    read = {note.rank: reach.clock for note in notes for reach in note.groups if reach.group == "world" and reach.clock}
    if not read:
        return []
    middle = sorted(read.values())[len(read) // 2]
    off = [note for note in notes if abs(read.get(note.rank, middle) - middle) > most]
    if not off:
        spread = max(read.values()) - min(read.values())
        return [Finding("clocks", f"within {spread:.1g} s")]
    worst = max(abs(read[note.rank] - middle) for note in off)
    return [
        Finding(
            "clocks", f"{_places(off)}: {worst:.0f} s from the others'", "set them by NTP, or raise preflight.clock_s"
        )
    ]


def _groups(notes: Sequence[Note]) -> list[Finding]:
    broken: dict[tuple[str, tuple[int, ...]], str] = {}
    for note in notes:
        for reach in note.groups:
            if reach.error:
                broken.setdefault((reach.group, reach.ranks), f"{reach.error}, after {reach.seconds:.1f} s")
    if broken:
        fix = "test the network between their hosts (nccl-tests, ping), and that nothing else holds their devices"
        return [
            Finding("collectives", f"{group} group of {named(ranks)}: {error}", fix)
            for (group, ranks), error in broken.items()
        ]
    slowest = max((reach.seconds for note in notes for reach in note.groups), default=0.0)
    return [Finding("collectives", f"tp, dp, bytes and world answer within {slowest:.1g} s")]


def _own(notes: Sequence[Note]) -> list[Finding]:
    """What single ranks checked by themselves: equal faults are one finding."""
    findings = []
    for name in dict.fromkeys(name for note in notes for name in note.checks):
        asked = [note for note in notes if name in note.checks]
        faults: dict[str, list[Note]] = {}
        for note in asked:
            if not note.checks[name][0]:
                faults.setdefault(note.checks[name][1], []).append(note)
        if not faults:
            findings.append(Finding(name, asked[0].checks[name][1]))
        for said, those in faults.items():
            where = "" if len(those) == len(notes) else f" ({_places(those)})"
            # The fix is what comes last: libraries' words in between have semicolons of their own.
            wrong, found, fix = said.rpartition("; ")
            findings.append(Finding(name, (wrong or said) + where, fix if found else "change what it names"))
    return findings


def gb(count: float) -> str:
    """Bytes for people."""
    return f"{count / 1e9:,.1f} GB" if count >= 1e8 else f"{count / 1e6:,.1f} MB"
