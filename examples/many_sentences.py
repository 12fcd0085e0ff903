"""One picture, many sentences: a mask for each, and one picture that shows them all.

    python examples/many_sentences.py MODEL PICTURE OUT.png "left black shoe" "the coat" ...

MODEL is a run, a model folder, or owner/name on the Hugging Face hub. The picture is encoded once.
"""

from __future__ import annotations

import argparse

import numpy as np
from PIL import Image, ImageOps

import l2l

COLOURS = np.array([(230, 60, 60), (60, 130, 230), (70, 180, 90), (240, 170, 40), (160, 90, 200)], dtype=float)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", metavar="MODEL")
    parser.add_argument("picture", metavar="PICTURE")
    parser.add_argument("out", metavar="OUT.png")
    parser.add_argument("sentences", metavar="SENTENCE", nargs="+")
    args = parser.parse_args()

    model = l2l.load(args.model)
    model.set_image(args.picture)
    with Image.open(args.picture) as picture:
        shown = np.asarray(ImageOps.exif_transpose(picture).convert("RGB"), dtype=float)
    for number, (sentence, found) in enumerate(zip(args.sentences, model.segment_all(args.sentences), strict=True)):
        shown[found.mask] = shown[found.mask] / 2 + COLOURS[number % len(COLOURS)] / 2
        where = "nothing" if found.box is None else f"{int(found.mask.sum())} pixels in {found.box}"
        print(f"{sentence}: {where}, expected IoU {found.score:.2f}")
    Image.fromarray(shown.astype(np.uint8)).save(args.out)


if __name__ == "__main__":
    main()
