"""The whole of a run in one frozen value: written beside its results, hashed, read back."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import types
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from l2l.errors import InputError

MethodName = Literal[
    "l2l", "supervised", "fully_supervised", "prior_only", "prior_training", "fixmatch", "mean_teacher", "resmatch",
    "semires", "dam_net",
]  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """What is learned from."""

    data: str = "scenes"
    """A folder (REFER layout or `metadata.jsonl`), a JSONL file of pairs, or the word `scenes`."""
    images: str = ""
    """Folder of the pictures, where it is not the usual one."""
    refs: str = ""
    """Which `refs(*).p`, where a folder holds several: `unc`, `umd`, `google`."""
    unlabelled: str = ""
    """JSONL file of further image-sentence pairs without masks."""
    prior: str = ""
    """A prior store, or a JSONL file of priors; empty for none."""
    sam: str = ""
    """SAM or SAM 2, which then makes the proposals and the bank of regions, from the original pictures: a name on the
    Hugging Face hub or a folder (extra `transformers`). Empty: they are made of colours and over-segmentation."""
    sam_points: int = 32
    """Side of the grid of points that SAM is asked about for the bank of regions."""
    rate: float = 0.05
    """Share of the training images whose masks are used."""
    labels_from: str = ""
    """Only train images whose id starts with this are labelled, and the rate is of these: for studies of a shift
    between labelled and unlabelled images."""
    split_file: str = ""
    """A split made before; empty draws one from `rate` and `seed`."""
    height: int = 96
    """Height the network sees, pixels."""
    width: int = 96
    """Width the network sees, pixels."""
    words: int = 20
    """Longest sentence, words; longer ones are cut."""
    scenes_world: str = "home"
    """Which world of `scenes`: `home`; `away`, the one the embedded grounder knows; or `both`, by turns."""
    scenes_no_target: float = 0.0
    """Share of the drawn sentences that describe nothing in the picture, though nearly."""
    scenes_several: float = 0.0
    """Share of the drawn sentences that mean two or more objects, where the picture has such."""
    scenes_count: int = 1000
    """Pictures of `scenes`; a tenth of them is the split `val`."""
    scenes_seed: int = 0
    """Seed of `scenes`."""
    skip_bad: bool = False
    """Set bad records aside, in `skipped.jsonl`, rather than stop."""

    def __post_init__(self) -> None:
        _check(0 < self.rate <= 1, f"rate {self.rate} is not in (0, 1]")
        _check(min(self.height, self.width) >= 32, "pictures below 32 pixels leave the last stage nothing to see")
        _check(self.words >= 1, "words must be at least 1")
        _check(self.scenes_count >= 10, "scenes_count must be at least 10")
        shares = self.scenes_no_target, self.scenes_several
        _check(min(shares) >= 0 and sum(shares) <= 1, "scenes_no_target and scenes_several are shares of the sentences")
        _check(self.sam_points >= 1, "sam_points must be at least 1")


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The segmenter and SESM."""

    channels: tuple[int, ...] = (48, 96, 160, 224)
    """Channels of the four stages."""
    depths: tuple[int, ...] = (1, 2, 2, 1)
    """Residual blocks of the four stages."""
    context: tuple[int, ...] = (0, 2, 1)
    """Layers of scene-and-word attention at strides 8, 16, 32."""
    width: int = 64
    """Channels of the decoder."""
    text_width: int = 96
    """Channels of a word."""
    text_depth: int = 2
    """Transformer layers of the text encoder."""
    start: Literal["", "away"] = ""
    """Where the encoders start: from nothing, or from the embedded grounder's, which were trained on the world `away`
    (vision, words and their fusion; context and decoder always start from nothing), as others start from ImageNet and
    BERT. `away` needs channels 40,80,128,160, depths 1,2,2,1 and the text sizes above."""
    backbone: str = ""
    """A pretrained encoder (Swin, ConvNeXt, DINOv2, DINOv3), by its name on the Hugging Face Hub or its folder, in
    place of the compact one; or `efficientnet-lite0`, a small one that needs no hub but the extra `lite`. `channels`
    and `depths` are not read then."""
    text: str = ""
    """A pretrained text encoder (BERT, CLIP, a sentence encoder), likewise; `text_depth` is not read then, `text_width`
    is what its words are projected to, and `data.words` counts its tokens."""
    backbone_rate: float = 0.1
    """Learning rate of all pretrained parameters, as a share of the segmenter's."""
    checkpointing: bool = False
    """A pretrained encoder's blocks are computed again in the backward pass: less memory, more time."""

    @property
    def pretrained(self) -> bool:
        """Whether the encoder of pictures starts with weights."""
        return bool(self.start or self.backbone)

    def __post_init__(self) -> None:
        _check(len(self.channels) == len(self.depths) == 4, "channels and depths have four stages")
        _check(len(self.context) == 3, "context has three stages")
        _check(self.backbone_rate >= 0, "backbone_rate is a share of the learning rate, at least 0")
        _check(
            not (self.start and (self.backbone or self.text)),
            f"model.start={self.start} has weights for the compact encoders alone: leave it, or model.backbone and "
            "model.text, empty",
        )


@dataclass(frozen=True, kw_only=True)
class SesmConfig:
    """How SESM learns."""

    held_out: float = 0.1
    """Share of the labelled images that the segmenter does not see before `release` (at least about 8 referents, where
    that is no more than a third): SESM and the policy learn from them. Ablation: with 0 they learn from images that the
    segmenter has been trained on. Without any prior nothing is held out."""
    use: bool = True
    """Ablation: without, the proposal is taken as it is, P where there is a prior and Q where there is none."""
    guidance: bool = True
    """Ablation: without, nothing of the prior reaches the segmenter."""
    guided_share: float = 0.3
    """Share of the guided pass's gradient that reaches an encoder that starts with weights: with the prior's answer
    before it, that pass has little need to read the sentence. Ablation: with 1 it teaches the encoder as much as the
    unguided one. An encoder from scratch gets all of it: it has yet to learn to see."""
    weigh: bool = True
    """Ablation: without, the fused proposal is the guided answer, whatever held-out labels say."""
    calibrate: bool = True
    """The prior's reliability starts as what all labels say of its score. Ablation: without, as the score itself."""
    ridge: float = 1.0
    """Weight of the squared distance that SESM's numbers have moved from where they start, in held-out referents: it
    counts as much as the loss of so many of them."""
    regions: bool = True
    """Pseudo-labels are mended with the regions of their pictures, as far as regions are objects there."""
    commit: bool = True
    """The guided answer learns from what it says itself, committed to regions as SemiRES has it. Ablation: without, it
    learns from the fused proposal as the unguided one does, and so to say again what it has heard. RPLE chooses the
    pairs of both; which cells are believed it decides for the unguided one's label."""
    together: bool = True
    """Sentences of one record speak of the same referent: pseudo-labels hear one another, and `label` gives the record
    one mask. The benchmark leaves this out where methods are compared, as the others do not use it."""
    rotate: int = 0
    """Steps after which another fold is held out; 0 keeps the first fold until `release`."""
    release: float = 0.4
    """Point of the run, in [0, 1], from which the segmenter sees all labels and SESM and the policy rest."""
    swap: float = 0.1
    """Share of labelled pairs that get the prior of another referent of the same picture."""
    drop: float = 0.1
    """Share of pairs that get no prior."""
    rate: float = 1e-3
    """Learning rate of SESM."""

    def __post_init__(self) -> None:
        _check(0 <= self.held_out < 1, "held_out is a share between 0 and 1")
        _check(0 < self.release <= 1, "release lies in (0, 1]")
        _check(0 <= self.guided_share <= 1, "guided_share lies in [0, 1]")
        _check(self.rotate >= 0, "rotate is a number of steps")


@dataclass(frozen=True, kw_only=True)
class RpleConfig:
    """The acceptance policy."""

    rule: Literal["policy", "threshold", "confidence"] = "policy"
    """Who accepts. Ablations: a fixed `threshold` on the fused proposal's confidence, or a learned `confidence`: the
    same network, taught on the same labels which cells are right, without reinforcement."""
    threshold: float = 0.8
    """Confidence max(p, 1 - p) from which the fixed threshold accepts."""
    estimator: Literal["sampled", "exact"] = "sampled"
    """How the policy's gradient is estimated: from K sampled actions, or in closed form (the reward is separable)."""
    truth: float = 1.0
    """Weight of the reward from held-out labels."""
    gain: bool = True
    """The reward from held-out labels is how much better a label is than the model's own prediction. Ablation: without,
    how right it is."""
    candidates: int = 2
    """Unlabelled pairs that the policy is offered for each one that is learned from."""
    samples: int = 8
    """K, sampled actions per pseudo-label."""
    wrong: float = 3.0
    """lambda, what a surely wrong pixel costs when a surely right one earns 1; 3 makes an unsure one worth nothing."""
    agreement: float = 0.0
    """Weight of the agreement reward on unlabelled pairs; off, since it pays for what the model knows already."""
    utility: float = 0.1
    """Weight of the one-step utility on unlabelled pairs."""
    temperature: float = 0.1
    """Weight of the policy's divergence from where it starts, at first, in units of the reward, with 32
    held-out referents; with half as many it is twice as large."""
    temperature_end: float = 0.03
    """The same at `sesm.release`; it falls on a line in between."""
    samples_low: float = 0.3
    """Least mean acceptance of samples."""
    samples_high: float = 0.6
    """Greatest mean acceptance of samples: the policy has to choose those that teach most."""
    front_low: float = 0.8
    """Least mean acceptance of foreground cells."""
    front_high: float = 0.98
    """Greatest mean acceptance of foreground cells."""
    back_low: float = 0.6
    """Least mean acceptance of background cells."""
    rate: float = 1e-3
    """Learning rate of the policy."""
    memory: int = 256
    """Samples over which mean acceptance of samples is measured."""
    soft: bool = True
    """Pseudo-labels keep their probabilities; without, they are cut at 0.5."""
    guard: bool = True
    """The drift guard. Ablation: without, the loop believes in itself whatever the held-out labels say."""

    def __post_init__(self) -> None:
        _check(self.candidates >= 1, "candidates must be at least 1: one pair offered for each one learned from")
        _check(self.samples >= 2, "samples (K) must be at least 2: the baseline is the mean of the others")
        for low, high in ((self.samples_low, self.samples_high), (self.front_low, self.front_high)):
            _check(0 < low < high < 1, "a coverage band is 0 < low < high < 1")


@dataclass(frozen=True, kw_only=True)
class RivalConfig:
    """What only the rivals read."""

    threshold: float = 0.6
    """Confidence max(p, 1 - p) from which FixMatch, RESMatch and DAM-Net believe a pixel."""
    ramp: float = 0.3
    """Share of the steps over which Mean Teacher's consistency weight rises."""
    words_lost: float = 0.1
    """Share of words that RESMatch's strong view of a sentence loses."""
    attention: float = 0.1
    """Weight of DAM-Net's attention consistency."""
    iou: float = 0.5
    """SemiRES, IOM: least IoU of a region with the teacher's answer."""
    cover: float = 0.7
    """SemiRES, CPI: least share of region or answer that lies in the other."""

    def __post_init__(self) -> None:
        _check(0.5 <= self.threshold < 1, "threshold is a confidence in [0.5, 1)")


READ_BY: dict[str, tuple[str, ...]] = {
    "fixmatch": ("threshold",), "mean_teacher": ("ramp",), "resmatch": ("threshold", "words_lost"),
    "dam_net": ("threshold", "attention"), "semires": ("iou", "cover"),
}  # fmt: skip
"""Which of `RivalConfig`'s settings a method reads."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """The schedule, the same for every method."""

    method: MethodName = "l2l"
    """Which method."""
    steps: int = 1000
    """Optimiser steps."""
    seed: int = 0
    """Seed of the label split, the weights, the streams and the views."""
    labelled: int = 16
    """Labelled pairs in a step."""
    held_out: int = 10
    """Held-out labelled pairs in a step (methods that hold labels out)."""
    unlabelled: int = 16
    """Unlabelled pairs in a step; labelled : unlabelled is the ratio of the streams."""
    rate: float = 5e-4
    """Learning rate of the segmenter; it warms up for 5 % of the steps and falls as a cosine."""
    weight_decay: float = 0.02
    """AdamW's weight decay, on weights of two and more dimensions."""
    clip: float = 1.0
    """Largest norm of the gradient."""
    burn_in: float = 0.1
    """Share of the steps that use labels only."""
    unlabelled_weight: float = 1.0
    """Weight of the loss on accepted pseudo-labels."""
    ema: float = 0.99
    """Decay of the EMA teacher; lower in the first steps."""
    zoom: float = 0.8
    """Smallest scale of the weak view."""
    save_every: int = 100
    """Steps between checkpoints."""
    probe_every: int = 100
    """Steps between measurements of the pseudo-labels."""
    probe_pairs: int = 256
    """Pairs that each measurement looks at."""
    precision: Literal["auto", "bf16", "float32"] = "auto"
    """Arithmetic of the network; `auto` is bf16 where the processor is fast at it."""
    accumulate: int = 1
    """Pieces in which a batch goes through the network, so that the graph of one of them at a time is in memory; each
    is computed twice. The batch stays what it is."""
    fsdp: bool = False
    """On several processes: each keeps only its part of the segmenter's weights and of the optimiser's state."""
    compile: bool = False
    """Compile the network (torch.compile): a minute or more at the start, quicker steps on a GPU."""
    device: str = "cpu"
    """Torch device."""

    def __post_init__(self) -> None:
        _check(self.steps >= 1, "steps must be at least 1")
        _check(self.accumulate >= 1, "accumulate counts pieces of a batch")
        _check(min(self.labelled, self.held_out, self.unlabelled) >= 1, "each part of a batch needs at least 1 pair")
        _check(0 <= self.burn_in < 1, "burn_in is a share below 1")
        _check(min(self.save_every, self.probe_every) >= 1, "save_every and probe_every count steps")


SINCE: dict[str, dict[str, Any]] = {
    "data": {"sam": "", "sam_points": 32, "scenes_no_target": 0.0, "scenes_several": 0.0},
    "model": {"backbone": "", "text": "", "backbone_rate": 0.1, "checkpointing": False},
    "sesm": {"guided_share": 0.3, "together": False, "commit": True},
    "train": {"accumulate": 1},
}  # fmt: skip
"""Settings by section that came later, and the value with which they do not rename a run: what was before. But for
`guided_share` and `commit`, which were 1 and False; which code a cell of the benchmark was made with it says itself."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """Everything a run depends on."""

    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    sesm: SesmConfig = field(default_factory=SesmConfig)
    rple: RpleConfig = field(default_factory=RpleConfig)
    rivals: RivalConfig = field(default_factory=RivalConfig)
    train: TrainConfig = field(default_factory=TrainConfig)

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return dataclasses.asdict(self)

    def hash(self) -> str:
        """12 hex digits of what the method reads, but for where it runs: equal hashes, equal results on one machine."""
        value = self.to_json()
        for name in ("device", "fsdp", "compile"):
            value["train"].pop(name)
        value["rivals"] = {name: value["rivals"][name] for name in READ_BY.get(self.train.method, ())}
        if not value["rivals"]:
            value.pop("rivals")
        for section, settings in SINCE.items():  # as if they were not there, where they do nothing
            for name, before in settings.items():
                if value[section][name] == before:
                    value[section].pop(name)
        if self.train.method != "l2l":
            value.pop("rple")
            for name in ("held_out", "rotate", "release", "use", "guidance", "weigh", "calibrate", "ridge", "regions"):
                value["sesm"].pop(name)
            for name in SINCE["sesm"]:
                value["sesm"].pop(name, None)
        return hashlib.blake2b(json.dumps(value, sort_keys=True).encode(), digest_size=6).hexdigest()

    def to_text(self) -> str:
        """As JSON text, with the hash."""
        return json.dumps({"hash": self.hash(), **self.to_json()}, indent=1) + "\n"

    @classmethod
    def load(cls, path: Path) -> Config:
        """Read a file of `to_text`. Raises `InputError` for anything else."""
        try:
            value = json.loads(path.read_text(encoding="utf-8"))
            return cls.from_json(value)
        except (OSError, ValueError, RecursionError, TypeError, AttributeError) as error:
            reason = error.reason if isinstance(error, InputError) else str(error)
            raise InputError(f"not a run's configuration: {reason}", file=path) from error

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Config:
        """The inverse of `to_json`. What it does not say is as it was before there was such a setting (`SINCE`)."""
        sections = {}
        for section in dataclasses.fields(cls):
            kind = _hints(cls)[section.name]
            known = {one.name for one in dataclasses.fields(kind)}
            given = {**SINCE.get(section.name, {}), **value.get(section.name, {})}
            if unknown := set(given) - known:
                raise InputError(f"unknown setting {section.name}.{sorted(unknown)[0]}")
            parts = {name: tuple(part) if isinstance(part, list) else part for name, part in given.items()}
            sections[section.name] = kind(**parts)
        return cls(**sections)

    def replace(self, section: str, **changes: Any) -> Config:
        """The same configuration with some settings of one section changed."""
        return dataclasses.replace(self, **{section: dataclasses.replace(getattr(self, section), **changes)})

    def override(self, *assignments: str) -> Config:
        """Apply `section.setting=value`s of the command line, those of a section together.

        Raises:
            InputError: naming the settings there are, if one is not among them or a value does not fit.
        """
        kinds = _hints(type(self))
        changes: dict[str, dict[str, Any]] = {}
        for assignment in assignments:
            name, equals, text = assignment.partition("=")
            section, dot, setting = name.partition(".")
            if not equals or not dot or section not in kinds:
                known = ", ".join(kinds)
                raise InputError(f"--set {assignment}: write section.setting=value with a section of {known}")
            settings = _hints(kinds[section])
            if setting not in settings:
                raise InputError(f"--set {assignment}: {section} has {', '.join(settings)}")
            changes.setdefault(section, {})[setting] = _parse(text, settings[setting], assignment)
        changed = self
        for section, values in changes.items():
            changed = changed.replace(section, **values)
        return changed


def _hints(kind: type) -> dict[str, Any]:
    return typing.get_type_hints(kind)


def _parse(text: str, kind: Any, where: str) -> Any:
    try:
        if typing.get_origin(kind) is Literal:
            if text not in typing.get_args(kind):
                raise ValueError(f"one of {', '.join(typing.get_args(kind))}")
            return text
        if typing.get_origin(kind) in (tuple, types.GenericAlias):
            return tuple(int(part) for part in text.split(","))
        if kind is bool:
            return {"true": True, "false": False, "1": True, "0": False}[text.lower()]
        return kind(text)
    except (ValueError, KeyError) as error:
        raise InputError(f"--set {where}: {error}") from error


def _check(holds: bool, reason: str) -> None:
    if not holds:
        raise InputError(reason)
