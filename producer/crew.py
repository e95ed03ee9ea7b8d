"""The fleet's workers as Ray actors: started, watched, replaced, and sent away in good order."""

import logging
import time
from collections.abc import Callable, Iterable
from typing import Any

import ray

log = logging.getLogger(__name__)

_LEAVING_S = 10.0  # that a leaving worker may take beyond its grace
_RETRY_S = 60.0  # after a worker that could not start


class Crew:
    """`host` starts the actor of a worker's name (producer.host.WorkerHost); `offer` is what a newcomer must say."""

    def __init__(self, host: Callable[[str], Any], *, frozen_s: float, leave_s: float) -> None:
        self._host, self._frozen_s, self._leave_s = host, frozen_s, leave_s
        self.hosts: dict[str, Any] = {}  # by the worker's name
        self._heard: dict[str, float] = {}  # worker's name -> when it was last known to be there
        self._coming: dict[str, Any] = {}  # its first answer is awaited
        self._going: dict[str, tuple[Any, Any, float]] = {}  # actor, the end of its `leave`, and when it must be over
        self._not_before = 0.0  # no newcomers

    def start(self, count: int) -> list[Any]:
        """Have `count` workers start; their first answers to come."""
        for index in range(count):
            self._add(f"worker-{index}")
        return [host.ready.remote() for host in self.hosts.values()]

    def watch(self, heard: Iterable[str]) -> list[str]:
        """Replace workers that have been silent for too long (Ray only notices those that end); their names."""
        now, replaced = time.monotonic(), []
        self._heard |= dict.fromkeys(set(heard) & self.hosts.keys(), now)
        for name, host in self.hosts.items():
            if now - self._heard[name] > self._frozen_s:
                log.warning("%s silent for %.0f s: replaced", name, now - self._heard[name])
                ray.kill(host, no_restart=False)
                self._heard[name] = now
                replaced.append(name)
        return replaced

    def resize(self, wanted: int, offer: dict[str, Any]) -> list[str]:
        """Come nearer to `wanted` workers without waiting for any; what happened, for people."""
        said = self._welcome(offer) + self._part()
        for name in sorted(self.hosts, key=_number)[wanted:][::-1]:
            host = self.hosts.pop(name)
            del self._heard[name]
            if self._coming.pop(name, None) is not None:
                ray.kill(host)
            else:
                ends = time.monotonic() + self._leave_s + _LEAVING_S
                self._going[name] = host, host.leave.remote(self._leave_s), ends
            said.append(f"{name} leaves")
        index = 0
        while len(self.hosts) < wanted and time.monotonic() >= self._not_before:
            name, index = f"worker-{index}", index + 1
            if name not in self.hosts and name not in self._going:
                self._coming[name] = self._add(name).ready.remote()
                said.append(f"{name} starts")
        return said

    def stop(self, timeout_s: float) -> None:
        """End all; `timeout_s` for them to write what they gathered."""
        hosts = [*self.hosts.values(), *(host for host, _, _ in self._going.values())]
        if hosts and ray.is_initialized():
            ending = [host.stop.remote() for host in hosts]
            ray.wait(ending, num_returns=len(ending), timeout=timeout_s)
        for host in hosts:
            ray.kill(host)
        self.hosts, self._going, self._coming = {}, {}, {}

    def _add(self, name: str) -> Any:
        self.hosts[name] = self._host(name)
        self._heard[name] = time.monotonic()
        return self.hosts[name]

    def _welcome(self, offer: dict[str, Any]) -> list[str]:
        """Hear the first answers of those that came; one whose plan is another's goes again."""
        said = []
        for name in [name for name, answer in self._coming.items() if _there(answer)]:
            fault = _fault(self._coming.pop(name), offer)
            if fault:
                ray.kill(self.hosts.pop(name))
                del self._heard[name]
                self._not_before = time.monotonic() + _RETRY_S
                said.append(f"{name} cannot join: {fault}")
            else:
                said.append(f"{name} joined")
        return said

    def _part(self) -> list[str]:
        """Let go of those that have left."""
        now = time.monotonic()
        gone = [name for name, (_, left, ends) in self._going.items() if now > ends or _there(left)]
        for name in gone:
            ray.kill(self._going.pop(name)[0])
        return [f"{name} left" for name in gone]


def _number(name: str) -> int:
    return int(name.rpartition("-")[2])


def _there(answer: Any) -> bool:
    return bool(ray.wait([answer], timeout=0)[0])


def _fault(answer: Any, offer: dict[str, Any]) -> str:
    try:
        said = ray.get(answer, timeout=1.0)
    except ray.exceptions.RayError as error:
        return type(error).__name__
    if "error" in said:
        return str(said["error"])
    return "" if said == offer else f"its plan is {said}, the fleet's is {offer}"
