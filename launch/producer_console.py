"""What people watch while producers run: one live view on a terminal, plain lines elsewhere."""

import time
from collections.abc import Mapping

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from producer.metrics import Look, left_out, stages

# Rows of workers that are shown, and of what lately happened.
_WORKERS, _NOTES = 12, 5
# A plain line every so many looks.
_EVERY = 3
_BAR = 20

Numbers = Mapping[str, Mapping[str, float]]


class ProducerView:
    """Shows looks at a fleet and notes about it; `close` leaves the terminal as it was, with the last view on it."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console()
        self._look: Look | None = None
        self._rates: dict[str, dict[str, float]] = {}  # by worker: each of its counters, a second
        self._numbers: tuple[float, Numbers] = (time.monotonic(), {})
        self._notes: dict[str, str] = {}
        self._looks = 0
        self._live: Live | None = None
        if self.console.is_terminal:
            self._live = Live(console=self.console, refresh_per_second=2, get_renderable=self._view)
            self._live.start()

    def __call__(self, look: Look, last: bool = False) -> None:
        """A new look; `last` is shown in any case."""
        now, numbers = time.monotonic(), look.status.get("numbers", {})
        self._rates = rates(self._numbers[1], numbers, now - self._numbers[0])
        self._numbers = now, numbers
        self._look = look
        self._looks += 1
        if not self._live and (last or self._looks % _EVERY == 1):
            self.say(line(look))

    def note(self, about: str, said: str) -> None:
        """Something that happened; the newest about each thing is shown."""
        new = self._notes.pop(about, "") != said
        self._notes[about] = said
        while len(self._notes) > _NOTES:
            del self._notes[next(iter(self._notes))]
        if not self._live and new:
            self.say(f"{about}: {said}" if about else said)

    def say(self, said: str) -> None:
        """A plain line, above the view where there is one."""
        self.console.print(said, markup=False, highlight=False, soft_wrap=True)
        self.console.file.flush()

    def close(self) -> None:
        """No more views."""
        if self._live:
            self._live.stop()

    def _view(self) -> Group:
        """Drawn by rich's thread, twice a second."""
        look = self._look
        if look is None:
            return Group(Text("no answer from the coordinator yet"))
        parts: list[Table | Text] = [_fleet(look)]
        if look.status.get("numbers"):
            parts.append(_workers(look, self._rates))
        parts += [Text(f"{about}: {said}") for about, said in list(self._notes.items())]
        return Group(*parts)


def rates(before: Numbers, now: Numbers, seconds: float) -> dict[str, dict[str, float]]:
    """By worker, how fast each of its counters grows, a second; those that began anew are left out."""
    return {
        worker: {
            name: (count - before[worker][name]) / max(seconds, 1e-3)
            for name, count in counts.items()
            if before[worker].get(name, count + 1.0) <= count
        }
        for worker, counts in now.items()
        if worker in before
    }


def line(look: Look) -> str:
    """One line on how things are."""
    status = look.status
    parts = [
        f"{status['units_ahead']} units ahead ({status['bytes_ahead'] / 1e6:.0f} MB of "
        f"{status['horizon_bytes'] / 1e6:.0f} with what was trained)",
        f"{status['units_kept']}/{status['units_to_keep']} kept",
        f"{status['images_per_s']:.1f} images/s",
        f"{len(status['workers'])} workers{_wanted(look)}",
        f"cache {look.cache_bytes / 1e6:.0f} MB ({look.cache_bytes / look.cache_limit:.0%})"
        if look.cache_limit
        else "no cache",
    ]
    parts += [f"{status[name]} {name}" for name in _TROUBLES if status.get(name)]
    parts += [f"{name} at step {step}" for name, step in status["trainers"].items()]
    return "  ".join(parts)


_TROUBLES = ("rejected", "lost", "failed", "late", "silenced")


def _wanted(look: Look) -> str:
    return f" of {look.wanted} wanted" if look.wanted not in (0, len(look.status["workers"])) else ""


def _fleet(look: Look) -> Table:
    status = look.status
    ring = sum(counts.get("ring_bytes", 0.0) for counts in status.get("numbers", {}).values())
    served = sum(counts.get("served_bytes", 0.0) for counts in status.get("numbers", {}).values())
    rows = Table.grid(padding=(0, 2))
    ahead = f"{status['steps_ahead']} steps, {status['units_ahead']} units, {status['leases']} in work"
    waits = f", {status['waiting']} waited for" if status["waiting"] else ""
    rows.add_row("ahead", ahead + waits + ("" if look.reachable else "  (the coordinator is restarting)"))
    rows.add_row("horizon", _fill(status["bytes_ahead"], status["horizon_bytes"]))
    limit = look.ring_limit * max(1, len(status["workers"]))
    rows.add_row("rings", f"{_fill(ring, limit)}  {_size(served)} served")
    rows.add_row("cache", _fill(look.cache_bytes, look.cache_limit) if look.cache_limit else "none")
    made = f"{status['images_per_s']:.1f} images/s  {len(status['workers'])} workers{_wanted(look)}"
    rows.add_row("made", f"{made}  {status['registered']} units, {status['samples']} images")
    rows.add_row(
        "recipe", f"entry {status.get('entry', 0)} from step {status.get('from_step', 0)}, plan {status['plan']}"
    )
    for name, step in list(status["trainers"].items())[:_NOTES]:
        rows.add_row("trainer", Text(f"{name} at step {step}"))
    troubles = "  ".join(f"{status[name]} {name}" for name in _TROUBLES if status.get(name))
    rows.add_row("troubles", troubles or "none")
    reasons = sorted(left_out(status.get("numbers", {})).items(), key=lambda item: -item[1])
    if reasons:
        rows.add_row("left out", "  ".join(f"{reason} {count:.0f}" for reason, count in reasons[:_NOTES]))
    return rows


def _workers(look: Look, found: dict[str, dict[str, float]]) -> Table:
    """A row a worker: images a second, how busy it is, and images a second through each stage while that works."""
    names = sorted({stage for rate in found.values() for stage in stages(rate, "_samples")})
    table = Table(box=None, padding=(0, 2), pad_edge=False)
    for title in ("worker", "images/s", "busy", *names, "ring", "served/s", "silent"):
        table.add_column(title, justify="left" if title == "worker" else "right")
    silent = look.status["workers"]
    for worker in sorted(silent)[:_WORKERS]:
        rate, counts = found.get(worker, {}), look.status["numbers"].get(worker, {})
        worked, idle = rate.get("making_seconds", 0.0), rate.get("idle_seconds", 0.0)
        speeds = [stages(rate, "_samples").get(name, 0.0) for name in names]
        busy = [stages(rate, "_seconds").get(name, 0.0) for name in names]
        table.add_row(
            Text(worker),
            f"{rate.get('samples', 0.0):.1f}",
            f"{worked / (worked + idle):.0%}" if worked + idle else "",
            *(f"{speed / time_:.1f}" if time_ else "" for speed, time_ in zip(speeds, busy, strict=True)),
            _size(counts.get("ring_bytes", 0.0)),
            _size(rate.get("served_bytes", 0.0)),
            f"{silent[worker]:.0f} s" if silent[worker] > 2 else "",
        )
    if len(silent) > _WORKERS:
        table.add_row(f"and {len(silent) - _WORKERS} more")
    return table


def _fill(used: float, limit: float) -> str:
    share = min(1.0, used / limit) if limit else 0.0
    return f"{'█' * round(share * _BAR):░<{_BAR}} {share:4.0%}  {_size(used)} of {_size(limit)}"


def _size(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"
