"""Make pictures of text: webdataset tars of images, captions and ground truth.

    python launch/synthesize.py CONFIG [key.path=value ...] [--sheet PNG] [--show]

`shards.out` gets WAY-NNNNN.tar with NAME.png (or .jpg), NAME.txt (the caption) and NAME.json (text, boxes, fonts,
colours). Sample `index` of a way follows from the seed and the index alone: the same bytes again, wherever it is made.
"""

import argparse
from pathlib import Path

from launch.config import load, show
from launch.contact_sheet import contact_sheet
from launch.settings import guarded
from producer.synthesize.sample import Sample
from producer.synthesize.shards import write_shards
from producer.synthesize.spread import spread
from producer.synthesize.ways import SynthesizeSettings, ways

# Samples of each way on the contact sheet.
_SHOWN = 24


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path, metavar="CONFIG", help="a TOML file")
    parser.add_argument("overrides", nargs="*", metavar="key.path=value", help="settings laid over the file's")
    parser.add_argument("--sheet", type=Path, metavar="PNG", help="write the first samples of each way as one picture")
    parser.add_argument("--show", action="store_true", help="print the resolved settings and end")
    arguments = parser.parse_intermixed_args()
    settings = load(SynthesizeSettings, arguments.config, arguments.overrides)
    if arguments.show:
        print(show(settings))
        return 0
    chosen, fonts, corpus = ways(settings)
    print(f"{len(fonts.faces)} fonts, {len(corpus.passages)} passages, {len(corpus.alphabet)} different characters")
    for reason, number in sorted(corpus.dropped.items()):
        print(f"left out: {number} paragraphs that {reason}")
    shown: list[Sample] = []
    if settings.workers.address:
        for path, samples in spread(settings):
            print(f"{path}: {samples} samples", flush=True)
        if arguments.sheet:
            shown = [
                way.make(settings.shards.first + one) for way, count in chosen for one in range(min(count, _SHOWN))
            ]
    else:
        for way, count in chosen:
            for made in write_shards(way, count, settings.shards, keep=_SHOWN if arguments.sheet else 0):
                shown += made.first
                print(f"{made.path}: {made.samples} samples", flush=True)
    if arguments.sheet:
        contact_sheet(shown, arguments.sheet, fonts)
    return 0


if __name__ == "__main__":
    guarded(main)
