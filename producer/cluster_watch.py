"""A small process that ends a private Ray whose owner died without doing so: `python -m producer.cluster_watch FOLDER`.

Ray's own processes notice a dead owner after up to a minute. This one knows at once: its standard input closes.
"""

import contextlib
import shutil
import sys
import time
from pathlib import Path

import psutil

# Ray starts some of its processes from others: several rounds, with a pause.
_ROUNDS, _PAUSE_S = 20, 0.25


def main(folder: Path) -> None:
    """Wait for the owner's end; then kill whoever works in `folder`, and remove it."""
    sys.stdin.read()
    if not folder.exists():
        return
    for _ in range(_ROUNDS):
        left = [process for process in psutil.process_iter() if works_in(process, f"{folder}/")]
        for process in left:
            with contextlib.suppress(psutil.Error):
                process.kill()
        if not left:
            break
        time.sleep(_PAUSE_S)
    shutil.rmtree(folder, ignore_errors=True)
    folder.with_suffix(".owner").unlink(missing_ok=True)


def works_in(process: psutil.Process, folder: str) -> bool:
    """Whether a process was started for `folder`, as Ray's are, or writes into it."""
    try:
        if process.pid == psutil.Process().pid:
            return False
        said = any(folder in part for part in process.cmdline())
        return said or any(file.path.startswith(folder) for file in process.open_files())
    except psutil.Error:
        return False


if __name__ == "__main__":
    main(Path(sys.argv[1]))
