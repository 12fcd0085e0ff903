"""Every label: what `supervised` reaches when all training images have masks, the end of the ladder.

The labels are given out in `training.prepare`, which labels every image for a method of this name.
"""

from __future__ import annotations

from l2l.methods.supervised import Supervised


class FullySupervised(Supervised):
    """`Supervised`, on the labels of all training images."""
