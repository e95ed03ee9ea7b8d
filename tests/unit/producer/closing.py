"""Threads that ask and read by one channel while another closes it over and over, as a trainer does when producers die.

`python tests/unit/producer/closing.py ROUNDS` ends with 0 if every call was answered or cut off with a reason.
"""

import os
import sys
import threading
import time

import pyarrow as pa

from producer.api.channel import Channel, UnreachableError, gate, meaning
from producer.api.unit import UnitId
from producer.synthetic import SyntheticMaker
from producer.unit_server import Ring, UnitServer
from tests.unit.producer.farm import JOB, TOKEN

UNIT = UnitId("train", 0, 0)


class Answering(UnitServer):
    """Streams the units of its ring, and says back what it is told."""

    def answer(self, kind: str, body: bytes) -> bytes:
        """As it came."""
        return body


def main(rounds: int) -> None:
    """Have a channel closed `rounds` times under those who use it."""
    ring = Ring()
    ring.put(UNIT, SyntheticMaker(JOB)(UNIT)[0])
    server = Answering(ring, gate("127.0.0.1", 0, TOKEN))
    address = f"127.0.0.1:{server.port}"
    held = [Channel(address, TOKEN)]
    over = threading.Event()
    answered, faults = [0, 0], list[BaseException]()

    def use(read: bool) -> None:
        while not over.is_set():
            try:
                if read:
                    held[0].open(UNIT, 10.0).read_all()
                else:
                    assert held[0].ask_raw("x", b"word", 10.0) == b"word"
                answered[read] += 1
            except (UnreachableError, pa.ArrowException, OSError) as error:
                if not isinstance(error, UnreachableError):
                    assert isinstance(meaning(error, address), UnreachableError)
            except BaseException as error:
                faults.append(error)
                return

    users = [threading.Thread(target=use, args=(read,)) for read in (False, False, False, True)]
    for user in users:
        user.start()
    for _ in range(rounds):
        time.sleep(0.002)
        old, held[0] = held[0], Channel(address, TOKEN)
        old.close()
    while min(answered) < 10 and not faults:  # the last channel stays
        time.sleep(0.01)
    over.set()
    for user in users:
        user.join()
    print(answered, faults)
    sys.stdout.flush()
    os._exit(bool(faults))


if __name__ == "__main__":
    main(int(sys.argv[1]))
