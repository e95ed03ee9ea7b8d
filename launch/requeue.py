"""Whether a run should be started again, from what it left behind: `requeue.py RUN_DIR` prints yes or no.

For launchers, which cannot tell from torchrun's code. Standard library alone; consumer/endings.py writes the file.
"""

import json
import sys
from pathlib import Path


def main() -> None:
    path = Path(sys.argv[1]) / "status.json"
    try:
        again = json.loads(path.read_text())["requeue"]
    except (OSError, ValueError, KeyError) as error:
        print(f"{path}: {error}", file=sys.stderr)
        again = False
    print("yes" if again is True else "no")


if __name__ == "__main__":
    main()
