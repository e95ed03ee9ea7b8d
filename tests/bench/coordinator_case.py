"""A coordinator in a process of its own, and the load of a large training's groups and workers on it.

`python tests/bench/coordinator_case.py serve JSON` listens and prints its address. `... load JSON` is one process of
the load: real Flight calls, a thread and a connection for each group and worker; it prints what it measured as JSON.
Groups, workers and units are only names: nothing is encoded or trained.
"""

import json
import math
import os
import random
import subprocess
import sys
import threading
import time
from collections import defaultdict
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

import psutil

from producer.api.channel import Channel, UnreachableError
from producer.api.protocol import Ack, Answer, Granted, Hello, Lease, Locate, Located, Register, Welcome
from producer.api.unit import UnitId
from producer.coordinator import Limits
from producer.coordinator_server import CoordinatorServer
from producer.guard import Traffic

T = TypeVar("T")

TOKEN = "a token as long as a real one is"
SIZE = 30 << 20  # bytes that a unit is said to have
CALL_S = 30.0
SHARES = 3  # processes of the load


@dataclass(frozen=True)
class Case:
    """A training of `groups`, each with `units` a step of `step_s` seconds, and the workers that feed it."""

    groups: int = 1024
    units: int = 1
    step_s: float = 2.0
    prefetch: int = 8
    spread_s: float = 2.0  # over how much of a step the groups come to their first unit
    ahead: int = 12  # steps in the horizon
    workers: int = 256
    speed: float = 1.5  # of all workers together, over what is trained
    ack_steps: int = 5
    warm_s: float = 30.0
    run_s: float = 30.0

    @property
    def a_step(self) -> int:
        return self.groups * self.units


class Load:
    """One process's share of the groups and workers."""

    def __init__(self, case: Case, address: str, share: int, begin: float) -> None:
        self.case, self.address, self.begin = case, address, begin
        self.random = random.Random(share)
        self.taken: dict[str, list[float]] = defaultdict(list)
        self.counts = dict.fromkeys(("not_ready", "late", "errors", "made", "trained"), 0)
        self.warm = begin + case.warm_s
        self.end = self.warm + case.run_s
        self.threads = [
            *(threading.Thread(target=self.group, args=(n,)) for n in range(share, case.groups, SHARES)),
            *(threading.Thread(target=self.worker, args=(n,)) for n in range(share, case.workers, SHARES)),
        ]

    def run(self) -> dict[str, object]:
        """All until the end; the answers' times in seconds by kind of message."""
        for thread in self.threads:
            thread.start()
        for thread in self.threads:
            thread.join()
        return {"taken": self.taken, **self.counts}

    def ask(self, channel: Channel, kind: str, message: object, answer: type[T]) -> T | None:
        """The answer, timed unless it is a question that was held."""
        start = time.perf_counter()
        try:
            said = channel.ask(kind, message, answer, CALL_S)
        except UnreachableError:
            self.counts["errors"] += 1
            time.sleep(0.2)
            return None
        if time.time() >= self.warm and not (isinstance(said, Located) and not said.address):
            self.taken[kind].append(time.perf_counter() - start)
        return said

    def group(self, number: int) -> None:
        """What a model-parallel group does: keep `prefetch` units located, while steps take them one by one."""
        case, channel = self.case, Channel(self.address, TOKEN)
        time.sleep(max(0.0, self.begin - time.time()) + self.random.random())
        first = self.begin + 0.7 * case.warm_s + self.random.random() * case.spread_s
        period = case.step_s / case.units
        pulled = acked = lately = 0
        while (now := time.time()) < self.end:
            taken = max(0, math.ceil((now - first) / period))
            if now >= self.warm:
                # Units that a step wanted and that were not there yet.
                self.counts["late"] += max(0, taken - max(pulled, lately))
                lately = max(taken, lately)
            step = taken // case.units
            if step // case.ack_steps > acked:
                acked = step // case.ack_steps
                self.ask(channel, "ack", Ack("t", 1, acked * case.ack_steps - 1), Answer)
            if pulled >= taken + case.prefetch:
                time.sleep(max(0.0, first + taken * period - time.time()) + 1e-4)
                continue
            wanted = UnitId("train", pulled // case.units, number * case.units + pulled % case.units)
            found = self.ask(channel, "locate", Locate("t", 1, step, wanted, 1.0), Located)
            if found and found.address:
                pulled += 1
            elif found and now >= self.warm:
                self.counts["not_ready"] += 1
        self.counts["trained"] += pulled

    def worker(self, number: int) -> None:
        """What a worker does: ask, make, register, ask again; a heartbeat while there is nothing to do."""
        case, channel = self.case, Channel(self.address, TOKEN)
        name, address = f"w{number}", f"10.{number >> 8}.{number & 255}.1:4000"
        make_s = case.workers * case.step_s / (case.a_step * case.speed)
        holds: set[UnitId] = set()
        queue: list[UnitId] = []
        time.sleep(max(0.0, self.begin - time.time()) + self.random.random())
        due = time.time()
        while time.time() < self.end:
            mine = {"holding": tuple(holds), "encoding": tuple(queue), "bytes": SIZE * len(holds)}
            granted = self.ask(channel, "lease", Lease(name, address, "p", "e", 2 - len(queue), **mine), Granted)
            if granted is None:
                continue
            holds -= set(granted.forget)
            queue = [unit for unit in queue if unit not in granted.forget] + list(granted.units)
            if not queue:
                time.sleep(granted.wait_s)
                due = time.time()
                continue
            due = max(due, time.time() - make_s) + make_s * self.random.uniform(0.7, 1.3)
            time.sleep(max(0.0, due - time.time()))
            unit = queue.pop(0)
            holds.add(unit)
            answer = self.ask(channel, "register", Register(name, address, "p", unit, SIZE, 16, 0), Answer)
            self.counts["made"] += time.time() >= self.warm
            if answer and not answer.accepted:
                holds.discard(unit)


def serve(case: Case) -> None:
    """A coordinator until standard input closes; then its counters."""
    offer, limits = Welcome("p", case.a_step, 16, "e"), Limits(horizon_bytes=case.ahead * case.a_step * SIZE)
    # All callers are one host here.
    traffic = Traffic(per_s=1e6, burst=1e6)
    server = CoordinatorServer(offer, limits, host="127.0.0.1", port=0, access=TOKEN, traffic=traffic)
    channel = Channel(server.address, TOKEN)
    channel.ask("hello", Hello("t", 1, 0), Welcome, CALL_S)
    channel.close()
    print(server.address, flush=True)
    sys.stdin.read()
    print(json.dumps(server.status()), flush=True)


def measure(case: Case) -> dict[str, Any]:
    """Seconds by kind of message, sorted; cores that the coordinator used; its memory; and what became of the units."""
    cores = sorted(os.sched_getaffinity(0))
    server = _start("serve", {"case": asdict(case)}, cores[:1], stdin=subprocess.PIPE)
    assert server.stdin and server.stdout
    address = server.stdout.readline().strip()
    begin = time.time() + 5.0
    told = [{"case": asdict(case), "address": address, "share": share, "begin": begin} for share in range(SHARES)]
    load = [_start("load", said, cores[1:] or cores) for said in told]
    process = psutil.Process(server.pid)
    time.sleep(begin + case.warm_s - time.time())
    before, since = process.cpu_times(), time.time()
    time.sleep(case.run_s - 1.0)
    after, until = process.cpu_times(), time.time()
    memory, threads = process.memory_info().rss, process.num_threads()
    said = [json.loads(part.communicate(timeout=120)[0]) for part in load]
    status = json.loads(server.communicate(timeout=60)[0])
    kinds = {kind for part in said for kind in part["taken"]}
    return {
        "taken": {kind: sorted(x for part in said for x in part["taken"].get(kind, [])) for kind in sorted(kinds)},
        "cores": (after.user + after.system - before.user - before.system) / (until - since),
        "memory": memory,
        "threads": threads,
        "counts": {name: sum(part[name] for part in said) for name in said[0] if name != "taken"},
        "status": {name: value for name, value in status.items() if isinstance(value, int | float)},
    }


def _start(what: str, said: dict[str, Any], cores: list[int], stdin: int | None = None) -> "subprocess.Popen[str]":
    environment = os.environ | {"PYTHONPATH": os.getcwd(), "OMP_NUM_THREADS": "1"}
    line = ["taskset", "-c", ",".join(map(str, cores)), sys.executable, __file__, what, json.dumps(said)]
    return subprocess.Popen(line, stdin=stdin, stdout=subprocess.PIPE, text=True, env=environment)


if __name__ == "__main__":
    told = json.loads(sys.argv[2])
    told["case"] = Case(**told["case"])
    if sys.argv[1] == "serve":
        serve(told["case"])
    else:
        # A thread that has its answer is to note the time at once.
        sys.setswitchinterval(0.0005)
        print(json.dumps(Load(**told).run()), flush=True)
    sys.stdout.flush()
    os._exit(0)
