"""The report's gallery: which cases to show, chosen by numbers alone, and their panels, drawn with NumPy and Pillow."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageFilter

from l2l.config import Config
from l2l.errors import InputError
from l2l.report_plots import data_uri
from l2l.sample import Sample

if TYPE_CHECKING:
    from pathlib import Path

    from torch import nn

    from l2l.evaluate import Evaluation
    from l2l.model.network import Network
    from l2l.training.pool import Pool
    from l2l.training.probe import Judged

WIDTH, TALLEST = 320, 440  # pixels of a panel: sharp at twice the 160 it is shown at
VIRIDIS = np.array([
    (68, 1, 84), (72, 40, 120), (62, 74, 137), (49, 104, 142), (38, 130, 142), (31, 158, 137), (53, 183, 121),
    (109, 205, 89), (180, 222, 44), (253, 231, 37),
], float)  # fmt: skip
PREDICTED = np.array((213, 94, 0), float)


@dataclass(frozen=True)
class Panel:
    """One picture of a case."""

    title: str
    uri: str
    """Empty where there is nothing to show."""
    alt: str


@dataclass(frozen=True)
class Case:
    """One image-sentence pair."""

    id: str
    sentence: str
    ious: tuple[tuple[str, float], ...]
    """(whose, IoU)."""
    note: str
    panels: tuple[Panel, ...]


@dataclass(frozen=True)
class Section:
    """Cases that have something in common."""

    title: str
    said: str
    rows: tuple[int, ...]
    """Rows of the pool."""
    cases: list[Case] = field(default_factory=list)


def choose(
    count: int, run: np.ndarray, *, prior: np.ndarray | None, refs: Sequence[int], images: Sequence[int]
) -> list[Section]:
    """Sections of a gallery of about `count` pairs.

    Args:
        run: (N,) IoU of what the run answers. prior: (N,) IoU of the prior alone, if there is one.
        refs, images: (N,) which referent and which picture each pair is about: a section prefers different ones.
    """
    each = max(1, -(-count // (2 if prior is None else 4)))
    taken: set[int] = set()

    def pick(worth: np.ndarray, allowed: np.ndarray) -> tuple[int, ...]:
        order = [int(row) for row in np.argsort(-worth, kind="stable") if allowed[row] and refs[row] not in taken]
        found: list[int] = []
        for distinct in (True, False):  # different pictures first, then whatever is left
            for row in order:
                used = {images[other] for other in found}
                if len(found) < each and refs[row] not in taken and not (distinct and images[row] in used):
                    found.append(row)
                    taken.add(refs[row])
        return tuple(sorted(found, key=lambda row: (-worth[row], row)))

    every = np.ones(len(run), bool)
    disputed, rest = [], ""
    if prior is not None:
        rest = ", without the cases below"
        saved, spoiled = (prior <= 0.5) & (run > 0.5), (prior > 0.5) & (run <= 0.5)
        disputed = [
            Section("Model overruled a wrong prior", f"prior at most 0.5, run above: {share(saved)}",
                    pick(run - prior, saved)),
            Section("A right prior was spoiled", f"prior above 0.5, run at most 0.5: {share(spoiled)}",
                    pick(prior - run, spoiled)),
        ]  # fmt: skip
    best = Section("Best cases", f"highest IoU of the run{rest}", pick(run, every))
    worst = Section("Worst cases", f"lowest IoU of the run{rest}", pick(-run, every))
    return [best, worst, *disputed]


def make_gallery(
    folder: Path, config: Config, network: Network, extra: nn.Module, about: dict[str, Any], samples: Sequence[Sample],
    found: dict[str, Evaluation], count: int,
) -> list[Section]:
    """The chosen cases with their panels."""
    import torch

    from l2l.evaluate import answers, prepare_split
    from l2l.model.words import vocabulary_of

    where = config.data.prior if "with" in found or not found else ""
    vocabulary = vocabulary_of(config, about, folder)
    try:
        pool, bank = prepare_split(samples, config, vocabulary, where)
    except InputError:
        if not where or found:
            raise
        pool, bank = prepare_split(samples, config, vocabulary, "")  # a split that the prior does not know
    images, refs = pool.image_of.tolist(), pool.ref_of.tolist()
    ious = {key: np.array([pair.iou for pair in one.pairs]) for key, one in found.items()}
    run = ious.get("with", ious.get("without"))
    if run is not None:
        sections = choose(count, run, prior=ious.get("alone") if "with" in ious else None, refs=refs, images=images)
    else:
        scores = torch.cat([score for _, _, score in answers(network, pool, config, prior=bank is not None)]).numpy()
        best, worst, *_ = choose(count, scores, prior=None, refs=refs, images=images)
        sections = [
            Section("Surest cases", f"highest expected IoU; above 0.5 for {share(scores > 0.5)}", best.rows),
            Section("Least sure cases", "lowest expected IoU", worst.rows),
        ]
    rows = [row for section in sections for row in section.rows]
    cases = dict(zip(rows, _cases(config, network, extra, pool, rows, ious, bank is not None), strict=True))
    for section in sections:
        section.cases.extend(cases[row] for row in section.rows)
    return sections


def _cases(
    config: Config, network: Network, extra: nn.Module, pool: Pool, rows: list[int], ious: dict[str, Any],
    with_prior: bool,
) -> list[Case]:
    """Panels of some pairs, from what teacher, SESM and policy say of them."""
    import torch

    from l2l.data.images import load
    from l2l.labelling.rple import Rple
    from l2l.training.prepare import choose_precision
    from l2l.training.probe import judge

    bf16 = choose_precision(config) == torch.bfloat16
    autocast = torch.autocast(config.train.device.split(":")[0], torch.bfloat16, enabled=bf16)
    rple = extra if isinstance(extra, Rple) else None
    batches = [pool.batch(part) for part in torch.tensor(rows).split(32)]
    judged = judge(network, rple, batches, autocast=autocast)
    names = {"alone": "prior", "without": "model alone", "with": "run"}
    ids, sentences, made = pool.ids, pool.sentences, []
    for place, row in enumerate(rows):
        sample = pool.samples[int(pool.ref_of[row])]
        numbers = [(name, float(ious[key][row])) for key, name in names.items() if key in ious]
        made.append(_case(judged, place, sample, load(sample.image), id=ids[row], sentence=sentences[row],
                          ious=tuple(numbers), with_prior=with_prior))  # fmt: skip
    return made


def _case(
    judged: Judged, place: int, sample: Sample, picture: np.ndarray, *, id: str, sentence: str,
    ious: tuple[tuple[str, float], ...], with_prior: bool,
) -> Case:  # fmt: skip
    """Panels and numbers of row `place` of what was judged."""
    import torch

    from l2l.outlines import upsample

    truth = None if sample.targets is None else resize_mask(sample.mask())
    here = bool(judged.present[place])
    answer = (judged.fused if with_prior else judged.q)[place]
    mask = upsample(torch.logit(answer, 1e-6), panel_size(sample.size))

    def soft(title: str, values: Any, there: bool = True) -> Panel:
        uri = soft_panel(values[place].float().numpy(), sample.size, truth) if there else ""
        return Panel(title, uri, f"{title} for “{sentence}”")

    panels = [Panel("picture", picture_panel(picture), f"the picture of “{sentence}”")]
    if with_prior:
        panels.append(soft("P†, prior", judged.proposal, here))
    panels.append(soft("Q, model alone", judged.q))
    notes = []
    if judged.cells is not None and judged.samples is not None:
        if with_prior:
            panels.append(soft("P̃†, fused", judged.fused))
        panels.append(soft("accepted", judged.accepted))
        notes.append(f"sample accepted with probability {float(judged.samples[place]):.2f}")
        notes += [f"ρ {float(judged.rho[place]):.2f}"] if here else []
        notes.append(f"expected IoU {float(judged.expected[place]):.2f}")
    if with_prior and not here:
        notes.append("no prior for this pair")
    panels.append(Panel("prediction", mask_panel(picture, mask, truth), f"the mask predicted for “{sentence}”"))
    return Case(id, sentence, ious, " · ".join(notes), tuple(panels))


def share(which: np.ndarray) -> str:
    """`12 of 80 pairs (15.0 %)`."""
    return f"{int(which.sum()):,} of {len(which):,} pairs ({100 * float(which.mean()):.1f} %)"


def panel_size(size: tuple[int, int]) -> tuple[int, int]:
    """(height, width) at which a picture of `size` (height, width) is drawn."""
    scale = min(WIDTH / size[1], TALLEST / size[0])
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def picture_panel(picture: np.ndarray) -> str:
    """uint8 (H, W, 3) as a data URI."""
    return _encode(_scaled(picture))


def soft_panel(soft: np.ndarray, size: tuple[int, int], truth: np.ndarray | None) -> str:
    """A map in [0, 1] (h, w) over a picture of `size`, each cell a block, with the truth's outline."""
    height, width = panel_size(size)
    small = Image.fromarray(np.clip(soft * 255, 0, 255).astype(np.uint8))
    blocks = np.asarray(small.resize((width, height), Image.Resampling.NEAREST), float) / 255
    return _encode(_outlined(_viridis(blocks), truth), lossless=True)


def mask_panel(picture: np.ndarray, mask: np.ndarray, truth: np.ndarray | None) -> str:
    """The picture with a translucent mask and its outline, and the truth's outline; masks bool at panel size."""
    out = _scaled(picture).astype(float)
    out[mask] = 0.5 * out[mask] + 0.5 * PREDICTED
    out[_edge(mask, 3)] = PREDICTED
    return _encode(_outlined(out, truth))


def resize_mask(mask: np.ndarray) -> np.ndarray:
    """bool (H, W) -> bool at panel size."""
    height, width = panel_size((mask.shape[0], mask.shape[1]))
    grey = Image.fromarray(mask.astype(np.uint8) * 255).resize((width, height), Image.Resampling.BILINEAR)
    return np.asarray(grey) > 127


def legend() -> str:
    """The colours of the soft maps, 0 to 1 from left to right."""
    return _encode(_viridis(np.tile(np.linspace(0, 1, 160), (10, 1))), lossless=True)


def _viridis(values: np.ndarray) -> np.ndarray:
    at = np.linspace(0, 1, len(VIRIDIS))
    return np.stack([np.interp(values, at, VIRIDIS[:, channel]) for channel in range(3)], axis=-1)


def _scaled(picture: np.ndarray) -> np.ndarray:
    height, width = panel_size((picture.shape[0], picture.shape[1]))
    return np.asarray(Image.fromarray(picture).resize((width, height), Image.Resampling.BICUBIC))


def _outlined(pixels: np.ndarray, truth: np.ndarray | None) -> np.ndarray:
    """White within black, so that it shows on every ground."""
    if truth is None or not truth.any():
        return pixels
    out = pixels.copy()
    out[_edge(truth, 7)] *= 0.35
    out[_edge(truth, 3)] = 255
    return out


def _edge(mask: np.ndarray, wide: int) -> np.ndarray:
    """Pixels within `wide` // 2 of the outline, on both sides of it."""
    grey = Image.fromarray(mask.astype(np.uint8) * 255)
    grown, shrunk = grey.filter(ImageFilter.MaxFilter(wide)), grey.filter(ImageFilter.MinFilter(wide))
    return np.asarray(grown) != np.asarray(shrunk)


def _encode(pixels: np.ndarray, *, lossless: bool = False) -> str:
    buffer = io.BytesIO()
    image = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
    image.save(buffer, "WEBP", lossless=lossless, quality=80, method=4)
    return data_uri(buffer.getvalue())
