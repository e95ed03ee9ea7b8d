"""Open an exported folder with diffusers alone and draw one picture: python -I launch/open_export.py FOLDER PNG.

Runs in a process that cannot import Inkstone, as a user's would who has only diffusers.
"""

import sys
from pathlib import Path

OURS = ("consumer", "launch", "model", "parallel", "producer")


class Blocked:
    """Refuses to find our packages, which an editable install puts on every path of this interpreter."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        if name.partition(".")[0] in OURS:
            raise ImportError(f"{name}: this process must do without it")


def main(folder: str, out: str) -> None:
    sys.meta_path.insert(0, Blocked())
    import torch
    from diffusers import QwenImagePipeline
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    diffusers_logging.disable_progress_bar()
    transformers_logging.disable_progress_bar()
    pipeline = QwenImagePipeline.from_pretrained(folder, dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)
    result = pipeline("a cat", negative_prompt=" ", height=256, width=256, num_inference_steps=4, generator=generator)
    result.images[0].save(out)
    print(f"diffusers {type(pipeline).__name__} opened {folder} and drew {Path(out).name}", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
