"""From a configuration to the tables a run works on; deterministic, so a resumed run rebuilds the same."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from l2l.config import Config, DataConfig, ModelConfig
from l2l.data.augment import mirror_sentence
from l2l.data.read import DataSet, read
from l2l.data.readable import readable
from l2l.data.splits import Split, draw
from l2l.data.streams import seed_of
from l2l.errors import BadRecords, InputError
from l2l.model.network import Network
from l2l.model.pretrained import BACKBONE, LITE, TEXT, source
from l2l.model.segmenter import Segmenter
from l2l.model.text import Vocabulary
from l2l.proposals.bank import PriorBank, read_priors, soft_maps
from l2l.proposals.sam import Sam
from l2l.sample import Sample
from l2l.training.pool import Pool, build_pool, grid_size, shrink_mask

Preparing = Callable[[str, int, int], None]
"""Called with what is being made for a run, how much of it is done, and how much there is."""


@dataclass(frozen=True)
class Prepared:
    """What `prepare` makes."""

    dataset: DataSet
    split: Split
    vocabulary: Vocabulary
    pool: Pool
    """Training pairs: masks of the labelled refs only."""
    truth: Tensor
    """uint8 (refs, h, w): masks of the *unlabelled* refs where the data set has them, for measuring only. No method
    sees this; the report needs it for its curves."""
    truth_known: Tensor
    """(refs,) bool."""
    prior: PriorBank | None
    bad: BadRecords
    sam: str
    """Which SAM the proposals are from, see `Sam.identity`; empty where there is none."""


def read_data(config: DataConfig) -> DataSet:
    """The data set a configuration names."""
    return read(
        config.data, images=Path(config.images) if config.images else None, refs=config.refs or None,
        skip_bad=config.skip_bad, scenes_count=config.scenes_count, scenes_seed=config.scenes_seed,
        scenes_world=config.scenes_world, scenes_no_target=config.scenes_no_target,
        scenes_several=config.scenes_several,
    )  # fmt: skip


def prepare(config: Config, *, run: Path | None = None, preparing: Preparing | None = None) -> Prepared:
    """Read, split, build the tables.

    Args:
        run: folder of the run that goes on, where a tokenizer is read from; without, what the settings name is read.
        preparing: called with ("proposals", pairs done, pairs) while they are made.

    Raises:
        InputError: for anything wrong with the data, the split, the rate, the priors or the name of a SAM.
    """
    data, sam = config.data, choose_sam(config)
    bad = BadRecords(skip=data.skip_bad)
    dataset = read_data(data)
    bad.found.extend(dataset.bad)
    if data.split_file:
        split = Split.load(Path(data.split_file))
        split.check(dataset)
    else:
        rate = 1.0 if config.train.method == "fully_supervised" else data.rate
        split = draw(dataset.samples, rate, config.train.seed, data=dataset.name, only=data.labels_from)
    labelled, unlabelled = split.apply(dataset.samples)
    if not labelled:
        raise InputError("the split labels no image of this data set", file=data.split_file or None)
    known = {sample.id: sample for sample in dataset.split("train")}
    if data.unlabelled:
        more = read(data.unlabelled, skip_bad=data.skip_bad)
        bad.found.extend(more.bad)
        unlabelled += [_renamed(dataclasses.replace(one, targets=None, split="train")) for one in more.samples]
    samples = readable(labelled + unlabelled, bad) if data.skip_bad else labelled + unlabelled
    vocabulary = make_vocabulary(config, samples, run)
    size = (data.height, data.width)
    pool = build_pool(samples, vocabulary, size=size, words=data.words, device=config.train.device)
    prior = None
    if data.prior:
        prior = read_priors(data.prior, samples, bad=bad)
        pool = pool.with_proposals(*soft_maps(
            prior.priors, pool.images, pool.image_of, grid_size(size), sam=sam, pictures=pool.pictures,
            progress=partial(preparing, "proposals") if preparing else None,
        ))  # fmt: skip
    truth = torch.zeros_like(pool.masks)
    truth_known = torch.zeros_like(pool.labelled)
    for ref, sample in enumerate(samples):
        original = known.get(sample.id)
        if sample.targets is None and original is not None and original.targets is not None:
            truth[ref], truth_known[ref] = shrink_mask(original.mask(), grid_size(size)), True
    return Prepared(dataset, split, vocabulary, pool, truth, truth_known, prior, bad, sam.identity if sam else "")


def make_vocabulary(config: Config, samples: Sequence[Sample], run: Path | None = None) -> Vocabulary:
    """The words of the sentences and their mirrored forms, or a pretrained text encoder's tokenizer."""
    if config.model.text:
        from l2l.model.words import SubwordVocabulary

        return SubwordVocabulary.read(source(config.model.text, TEXT, run))
    sentences = [sentence for sample in samples for sentence in sample.sentences]
    return Vocabulary.build([*sentences, *filter(None, map(mirror_sentence, sentences))])


def build_network(
    config: Config, vocabulary: Vocabulary, *, run: Path | None = None, attn_implementation: str | None = None
) -> Network:
    """The network, its weights drawn from the seed or, in its pretrained parts, read.

    Args:
        run: folder of a run whose checkpoint will be loaded: pretrained parts are built as they are described there,
            with random weights.
        attn_implementation: of pretrained parts, as transformers knows it; `eager` for what `sdpa` cannot do.

    Raises:
        InputError: if pretrained parts cannot be read, or `model.start` does not fit.
    """
    from l2l.labelling.sesm import SESM

    model = config.model
    torch.manual_seed(seed_of(config.train.seed, "weights") % 2**63)
    read: dict[str, Any] = {"weights": run is None, "attn_implementation": attn_implementation}
    segmenter = Segmenter(
        vision=_vision(model, run, read), text=_text(config, vocabulary, run, read), words=model.text_width,
        width=model.width, context=model.context,
    )  # fmt: skip
    fuses = config.sesm.use and config.train.method == "l2l"  # nobody else teaches it
    sesm = SESM(width=model.width, fuses=fuses, guides=config.sesm.guidance, weighs=config.sesm.weigh)
    network = Network(segmenter=segmenter, sesm=sesm)
    if model.start:
        start_encoders(network.segmenter, vocabulary)
    return network.to(config.train.device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def _vision(model: ModelConfig, run: Path | None, read: dict[str, Any]) -> nn.Module:
    if model.backbone == LITE:
        from l2l.model.lite import read_lite

        return read_lite(weights=run is None, checkpointing=model.checkpointing)
    if model.backbone:
        from l2l.model.backbones import read_backbone

        return read_backbone(source(model.backbone, BACKBONE, run), checkpointing=model.checkpointing, **read)
    from l2l.model.vision import CompactEncoder

    return CompactEncoder(channels=model.channels, depths=model.depths)


def _text(config: Config, vocabulary: Vocabulary, run: Path | None, read: dict[str, Any]) -> nn.Module:
    width, length = config.model.text_width, config.data.words
    if config.model.text:
        from l2l.model.words import read_text

        return read_text(source(config.model.text, TEXT, run), vocabulary, width=width, length=length, **read)
    from l2l.model.text import CompactText

    return CompactText(vocabulary_size=len(vocabulary), width=width, length=length, depth=config.model.text_depth)


@torch.no_grad()
def start_encoders(segmenter: Segmenter, vocabulary: Vocabulary) -> None:
    """Give a segmenter the grounder's vision, text and fusion weights; words that both know keep their embedding.

    Raises:
        InputError: if the segmenter is of another size.
    """
    from l2l.priors.grounder import WEIGHTS
    from l2l.training.checkpoint import load_tensors

    tensors, about = load_tensors(WEIGHTS)
    own = segmenter.state_dict()
    theirs = {word: row + 2 for row, word in enumerate(about["vocabulary"])}  # 0 and 1: padding, unknown
    rows = [(row + 2, theirs[word]) for row, word in enumerate(vocabulary.words) if word in theirs]
    for name, value in tensors.items():
        if not name.startswith(("vision.", "text.", "attention.")):
            continue
        if name == "text.embedding.weight" and value.shape[1:] == own[name].shape[1:]:
            to, source = (torch.tensor(part) for part in zip(*[(0, 0), (1, 1), *rows], strict=True))
            own[name][to] = value[source].float()
        elif name == "text.position" and value.shape[2:] == own[name].shape[2:]:
            length = min(value.shape[1], own[name].shape[1])
            own[name][:, :length] = value[:, :length].float()
        elif name in own and own[name].shape == value.shape:
            own[name].copy_(value)
        else:
            raise InputError(
                "model.start=away needs model.channels=40,80,128,160, model.depths=1,2,2,1, model.text_width=96 and "
                "model.text_depth=2"
            )


def choose_precision(config: Config) -> torch.dtype:
    """bf16 where it is asked for, or where the processor multiplies it in hardware; float32 otherwise."""
    wanted = config.train.precision
    if wanted != "auto":
        return torch.bfloat16 if wanted == "bf16" else torch.float32
    if config.train.device.startswith("cuda"):
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
    fast = config.train.device == "cpu" and torch.backends.cpu.get_cpu_capability().startswith("AVX512")
    try:
        fast = fast and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    except (AttributeError, RuntimeError):
        fast = False
    return torch.bfloat16 if fast else torch.float32


def choose_sam(config: Config) -> Sam | None:
    """The model that `data.sam` names, not loaded yet; `None` if it names none. Raises `InputError` as `Sam` does."""
    if not config.data.sam:
        return None
    device = config.train.device
    precision = choose_precision(config) if device.startswith("cuda") else torch.float32
    return Sam(config.data.sam, device=device, dtype=precision)


def _renamed(sample: Sample) -> Sample:
    """Ids of the additional pairs must not meet those of the data set."""
    return dataclasses.replace(
        sample, id=f"extra-{sample.id}", sentence_ids=tuple(f"extra-{one}" for one in sample.sentence_ids)
    )
