"""Masks as polygons and back, exact to the pixel unless a tolerance is given.

A polygon runs along the edges between pixels, (0, 0) being the upper left corner of the first one, as COCO and all
annotation tools count. COCO polygons have no holes; a hole is joined to its outline by a cut that is walked there and
back, which leaves the area what it is under the even-odd rule that pycocotools rasterises by.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import numpy as np

from l2l.data.refer import _from_polygons
from l2l.rle import Rle

_RIGHT = {(1, 0): (0, 1), (0, 1): (-1, 0), (-1, 0): (0, -1), (0, -1): (1, 0)}  # (dx, dy), y pointing down


def outlines(mask: np.ndarray, tolerance: float = 0.0) -> list[list[float]]:
    """The polygons of a boolean (H, W) mask, each a flat list x0, y0, x1, y1, ... in pixels; none if it is empty.

    Args:
        mask: what to outline.
        tolerance: how far, in pixels, the outline may leave the mask's edge to get by with fewer points; 0 is exact.

    Example:
        >>> outlines(np.ones((2, 3), bool))
        [[0.0, 0.0, 3.0, 0.0, 3.0, 2.0, 0.0, 2.0]]
    """
    rings = [np.asarray(ring, np.float64) for ring in _rings(mask)]
    outer = [ring for ring in rings if _signed_area(ring) > 0]
    holes = [ring for ring in rings if _signed_area(ring) < 0]
    owners: list[list[np.ndarray]] = [[_simplify(ring, tolerance)] for ring in outer]
    for hole in holes:
        owners[_around(hole, outer)].append(_simplify(hole, tolerance))
    polygons = []
    for first, *inside in owners:
        parts = [first]
        for hole in inside:  # walk to the hole, around it, and back to where the outline began
            parts += [first[:1], hole, hole[:1]]
        polygons.append(np.concatenate([*parts, first[:1]] if inside else parts).ravel().tolist())
    return polygons


def fill(polygons: Any, size: tuple[int, int]) -> Rle:
    """The union of polygons as pycocotools fills them. Raises `InputError` where they are malformed."""
    return _from_polygons(polygons, size)


def _rings(mask: np.ndarray) -> list[list[tuple[int, int]]]:
    """Closed walks (x, y) along the edges of the mask with the mask on the right hand; only corners are kept."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not len(rows):
        return []
    top, left = int(rows[0]), int(columns[0])
    padded = np.pad(mask[top : rows[-1] + 1, left : columns[-1] + 1].astype(bool), 1)
    here = padded[1:-1, 1:-1]
    steps: dict[tuple[int, int], list[tuple[int, int]]] = defaultdict(list)  # corner -> directions that leave it
    sides = (
        (padded[:-2, 1:-1], (0, 0), (1, 0)), (padded[1:-1, 2:], (1, 0), (0, 1)),
        (padded[2:, 1:-1], (1, 1), (-1, 0)), (padded[1:-1, :-2], (0, 1), (0, -1)),
    )  # fmt: skip
    for beyond, (dx, dy), way in sides:
        for y, x in np.argwhere(here & ~beyond).tolist():
            steps[x + left + dx, y + top + dy].append(way)
    rings = []
    for start in sorted(steps):
        while steps[start]:
            way = steps[start].pop()
            at, ring = (start[0] + way[0], start[1] + way[1]), [start]
            while at != start:
                turn = _RIGHT[way]  # where two pixels touch at a corner, stay with the own one
                following = turn if turn in steps[at] else steps[at][0]
                steps[at].remove(following)
                if following != way:
                    ring.append(at)
                way = following
                at = (at[0] + way[0], at[1] + way[1])
            rings.append(ring[1:] if _straight(ring[-1], ring[0], ring[1]) else ring)
    return rings


def _straight(a: tuple[int, int], b: tuple[int, int], c: tuple[int, int]) -> bool:
    return (b[0] - a[0]) * (c[1] - b[1]) == (b[1] - a[1]) * (c[0] - b[0])


def _signed_area(ring: np.ndarray) -> float:
    """Positive for an outline, negative for a hole."""
    x, y = ring.T
    return float(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1))) / 2


def _around(hole: np.ndarray, outer: list[np.ndarray]) -> int:
    """Which outline a hole belongs to: the smallest that contains the pixel beside the hole's first edge."""
    (x0, y0), (x1, y1) = hole[:2]
    way = np.sign([x1 - x0, y1 - y0])
    spot = np.array([x0, y0]) + way / 2 + np.array([-way[1], way[0]]) / 2  # half a pixel on, then right: in the mask
    best, area = 0, float("inf")
    for place, ring in enumerate(outer):
        size = _signed_area(ring)
        if size < area and _inside(spot, ring):
            best, area = place, size
    return best


def _inside(spot: np.ndarray, ring: np.ndarray) -> bool:
    x, y = ring.T
    upright = (y > spot[1]) != (np.roll(y, -1) > spot[1])  # the edges that a ray to the right may meet
    return bool(np.count_nonzero(upright & (x > spot[0])) % 2)


def _simplify(ring: np.ndarray, tolerance: float) -> np.ndarray:
    """Douglas and Peucker's line simplification of a closed ring (N, 2); a ring keeps three points at least."""
    if tolerance <= 0 or len(ring) <= 4:
        return ring
    far = int(np.argmax(((ring - ring[0]) ** 2).sum(1)))
    closed = np.concatenate([ring, ring[:1]])
    keep = np.zeros(len(closed), bool)
    keep[[0, far, len(ring)]] = True
    stack = [(0, far), (far, len(ring))]
    while stack:
        first, last = stack.pop()
        if last - first < 2:
            continue
        way, points = closed[last] - closed[first], closed[first + 1 : last] - closed[first]
        length = float(np.hypot(*way))
        off = np.abs(points[:, 0] * way[1] - points[:, 1] * way[0]) / length if length else np.hypot(*points.T)
        worst = int(np.argmax(off))
        if off[worst] > tolerance:
            keep[first + 1 + worst] = True
            stack += [(first, first + 1 + worst), (first + 1 + worst, last)]
    simple = closed[:-1][keep[:-1]]
    return simple if len(simple) > 2 and abs(_signed_area(simple)) > 0 else ring
