"""How a command ends: one message, its code, and torchrun along with it where starting again would end the same way.

torchrun buries messages in a traceback of its own, makes every code 1, and restarts what a signal or a wrong setting
has ended. Codes and causes: consumer/endings.py.
"""

import os
import sys
import time

import psutil

from consumer.endings import ENDINGS, SIGNALLED, Cause
from launch.config import ConfigError

# Seconds that other ranks leave the first one to say what is wrong.
_FIRST_S = 3.0
# For the other ranks of this machine to end by themselves.
_OTHERS_S = 5.0


def say(error: Exception) -> None:
    """Print what is wrong, once: what is wrong everywhere is said by the first rank, which ends the others too."""
    if os.environ.get("LOCAL_RANK", "0") != "0":
        time.sleep(_FIRST_S)
    said = str(error) if isinstance(error, ConfigError) else f"{type(error).__name__}: {error}"
    print(said, file=sys.stderr, flush=True)


def leave(cause: Cause, *, at_once: bool = False) -> int:
    """The code to exit with. Ends torchrun here, unless it is to start the ranks again and that may help.

    `at_once`, where ranks do not end together, it and this machine's other ranks are killed now; otherwise those end by
    themselves, and torchrun only where it would restart them.
    """
    agent = _agent()
    restarts = int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0")) > 0
    helps = ENDINGS[cause].requeue and cause not in SIGNALLED
    if agent and cause is not Cause.DONE and (not helps if restarts else at_once):
        agent.suspend()  # or it starts anew what ends here
        if at_once or os.environ.get("LOCAL_RANK", "0") == "0":
            others = [process for process in agent.children() if process.pid != os.getpid()]
            _ended(others, 0.0 if at_once else _OTHERS_S)
            agent.kill()
    return ENDINGS[cause].code


def _agent() -> psutil.Process | None:
    """torchrun's process, if this is one of its ranks."""
    parent = psutil.Process().parent()
    if "TORCHELASTIC_RUN_ID" not in os.environ or parent is None:
        return None
    return parent if any("torch" in part for part in parent.cmdline()) else None


def _ended(others: list[psutil.Process], wait_s: float) -> None:
    """Give the `others` so long, then end them. What their stopped parent has not reaped counts as ended."""
    end = time.monotonic() + wait_s
    while time.monotonic() < end and any(map(_alive, others)):
        time.sleep(0.05)
    for process in filter(_alive, others):
        process.kill()


def _alive(process: psutil.Process) -> bool:
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
