"""Write the averaged weights of a checkpoint, with the encoders, as a folder that diffusers opens.

    python launch/export.py launch/configs/smoke.toml --out DIR [--checkpoint DIR] [--dtype bfloat16]

Then, with diffusers alone: diffusers.QwenImagePipeline.from_pretrained(DIR)
"""

import argparse
from pathlib import Path

import torch

from consumer.export import export
from launch.settings import command_line, guarded
from launch.trained import config_of, open_checkpoint, weights_of


def main() -> int:
    settings, arguments = command_line(__doc__, _options)
    reader = open_checkpoint(settings.checkpoint.path, arguments.checkpoint)
    print(f"exporting {reader.path}, step {reader.step}", flush=True)
    dtype = getattr(torch, arguments.dtype)
    export(arguments.out, weights_of(reader), config_of(reader), settings.encoder.root, dtype)
    print(f"export: {arguments.out}", flush=True)
    return 0


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", type=Path, metavar="DIR", required=True, help="the folder to write")
    parser.add_argument("--checkpoint", type=Path, metavar="DIR", help="a step-N folder; by default the newest")
    parser.add_argument(
        "--dtype",
        choices=("float32", "bfloat16"),
        default="float32",
        help="of the transformer: float32 keeps every bit, bfloat16 is the released size (default: %(default)s)",
    )


if __name__ == "__main__":
    guarded(main)
