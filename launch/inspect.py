"""Write a page that shows what curation made of a set: the funnel, every score with its threshold, pictures beside it.

    python launch/inspect.py INDEX [--config CONFIG [key.path=value ...]] [--generation gen-00003] [--out page.html]

One file, to be opened in any browser, without a network. Sliders move thresholds and show what would be kept, from the
stored scores, and the lines of a recipe that say so. CONFIG says where the pictures are and what the recipe plans.
"""

import os
import sys
from importlib.machinery import PathFinder
from importlib.util import module_from_spec


def main() -> int:
    # Here, since all other scripts of this folder run this file too: see _step_aside.
    from launch.page.command import run

    return run(__doc__)


def _step_aside() -> None:
    """Be the library's `inspect` to whoever imports that.

    Python puts a script's folder first on its path. So `import inspect`, in any script of this folder and in all that
    it imports, finds this file.
    """
    here = os.path.dirname(os.path.realpath(__file__))
    path = [entry for entry in sys.path if os.path.realpath(entry) != here]
    found = PathFinder.find_spec(__name__, path)
    if found is None or found.loader is None:
        raise ModuleNotFoundError(f"No module named {__name__!r} on {path}", name=__name__)
    sys.modules[__name__] = module = module_from_spec(found)
    found.loader.exec_module(module)


if __name__ == "inspect":
    _step_aside()
elif __name__ == "__main__":
    from launch.settings import guarded

    guarded(main)
