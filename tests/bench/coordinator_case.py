"""A coordinator in a process of its own, and the load of a large training on it from another, each on its own core.

`python tests/bench/coordinator_case.py serve JSON` listens and prints its address; `... load JSON` makes the load and
prints what it measured as JSON. Both take the cores they keep to, and end by themselves.
"""

import json
import os
import subprocess
import sys
import time
from collections import defaultdict
from dataclasses import asdict
from typing import Any

import psutil
import pyarrow.flight as flight

from producer.api.channel import Channel
from producer.api.protocol import Hello, Welcome
from producer.coordinator import Limits
from producer.coordinator_server import CoordinatorServer
from producer.guard import Traffic
from tests.bench.coordinator_load import CALL_S, SIZE, TOKEN, Case, Load


class TimedServer(CoordinatorServer):
    """Notes how long each answer takes once Flight has brought its question: when it is given, and seconds."""

    inside: dict[str, list[tuple[float, float]]]

    def do_action(self, context: flight.ServerCallContext, action: flight.Action) -> list[bytes]:
        """As the coordinator's."""
        start = time.monotonic()
        answer = super().do_action(context, action)
        now = time.monotonic()
        self.inside[action.type].append((now, now - start))
        return answer


def serve(case: Case) -> None:
    """A coordinator until standard input closes, having said which seconds are wanted; then its times and counters."""
    offer, limits = Welcome("p", case.a_step, 16, "e"), Limits(horizon_bytes=case.ahead * case.a_step * SIZE)
    # All callers are one host here.
    traffic = Traffic(per_s=1e6, burst=1e6)
    server = TimedServer(offer, limits, host="127.0.0.1", port=0, access=TOKEN, traffic=traffic)
    server.inside = defaultdict(list)
    channel = Channel(server.address, TOKEN)
    channel.ask("hello", Hello("t", 1, 0), Welcome, CALL_S)
    channel.close()
    print(server.address, flush=True)
    since, until = json.loads(sys.stdin.read())
    inside = {kind: [took for at, took in seen if since <= at < until] for kind, seen in server.inside.items()}
    print(json.dumps({"status": server.status(), "inside": inside}), flush=True)


def measure(case: Case) -> dict[str, Any]:
    """Seconds by way of measuring and kind of message, sorted; both sides' cores; the coordinator's memory; counts."""
    cores = sorted(os.sched_getaffinity(0))
    started: list[subprocess.Popen[str]] = []
    try:
        server = _start("serve", {"case": asdict(case), "cores": cores[:1]}, subprocess.PIPE)
        started.append(server)
        assert server.stdin and server.stdout
        address = server.stdout.readline().strip()
        # The load first opens all its connections.
        begin = time.monotonic() + 5.0 + case.groups / 500
        told = {"case": asdict(case), "address": address, "begin": begin, "cores": cores[1:] or cores}
        load = _start("load", told, None)
        started.append(load)
        time.sleep(begin + case.warm_s - time.monotonic())
        before, since = [_cpu_s(side) for side in started], time.monotonic()
        time.sleep(case.run_s - 1.0)
        after, until = [_cpu_s(side) for side in started], time.monotonic()
        used = [(later - earlier) / (until - since) for earlier, later in zip(before, after, strict=True)]
        process = psutil.Process(server.pid)
        memory, threads, lines = process.memory_info().rss, process.num_threads(), process.num_fds()
        found = json.loads(load.communicate(timeout=120)[0])
        inside = json.loads(server.communicate(json.dumps([since, until]), timeout=60)[0])
    finally:
        for side in started:
            side.kill()
            side.wait()
    times = {way: found[way] for way in ("answers", "lateness", "whole")} | {"inside": inside["inside"]}
    return {
        "times": {way: {kind: sorted(seen) for kind, seen in kinds.items()} for way, kinds in times.items()},
        "cores": used[0],
        "load_cores": used[1],
        "memory": memory,
        "threads": threads,
        "descriptors": lines,
        "counts": found["counts"],
        "status": {name: value for name, value in inside["status"].items() if isinstance(value, int | float)},
    }


def _cpu_s(side: "subprocess.Popen[str]") -> float:
    spent = psutil.Process(side.pid).cpu_times()
    return float(spent.user + spent.system)


def _start(what: str, said: dict[str, Any], stdin: int | None) -> "subprocess.Popen[str]":
    environment = os.environ | {"PYTHONPATH": os.getcwd(), "OMP_NUM_THREADS": "1"}
    line = [sys.executable, __file__, what, json.dumps(said)]
    return subprocess.Popen(line, stdin=stdin, stdout=subprocess.PIPE, text=True, env=environment)


if __name__ == "__main__":
    told = json.loads(sys.argv[2])
    os.sched_setaffinity(0, told.pop("cores"))
    told["case"] = Case(**told["case"])
    if sys.argv[1] == "serve":
        serve(told["case"])
    else:
        # A thread that has its answer is to note the time at once.
        sys.setswitchinterval(0.0005)
        print(json.dumps(Load(**told).run()), flush=True)
    sys.stdout.flush()
    os._exit(0)
