"""Priors from a frozen multimodal model that runs here, through Hugging Face transformers.

`priors.chat` has Qwen2.5-VL, Qwen3-VL and InternVL, `priors.florence` Florence-2, `priors.grounding_dino` the detector;
`model_type` in a model's configuration says which it is. Decoding is greedy. Whatever a model replies becomes a prior,
an empty one with a note where nothing can be read in it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import torch

from l2l.data.images import load
from l2l.errors import InputError
from l2l.pretrained import Pretrained
from l2l.priors import chat
from l2l.priors.chat import Chat
from l2l.priors.florence import Florence
from l2l.priors.greedy import TOKENS
from l2l.priors.grounding_dino import GroundingDino
from l2l.priors.prior import Prior
from l2l.sample import Sample

VERSION = 1  # raised when the same settings give other answers than before
READOUTS = ("reply", "attention")
SUPPORTED = (*chat.FAMILIES, "florence2", "grounding-dino")
"""`model_type` of what there is."""


class Mllm:
    """One local model. Its weights are read when it is asked for the first time.

    Args:
        model: its name on the Hugging Face hub, or a folder that `save_pretrained` wrote. revision: branch, tag or
            commit on the hub; `main` if not given.
        device: torch device. dtype: of weights and arithmetic; if not given, float32 on the CPU and for Grounding DINO,
            bfloat16 elsewhere.
        batch: sentences about one picture that are asked at once.
        tokens: of a reply, at most. pixels: pictures with more are seen smaller (Qwen).
        readout: `reply`, the boxes that it writes; or `attention`, where it looks, as a mask (Qwen).
        threshold: scores that boxes have to be above (Grounding DINO).

    Raises:
        InputError: if transformers is not installed, the model is not there or of no supported kind, or a number makes
            no sense.
    """

    def __init__(
        self, model: str, *, revision: str = "", device: str = "cpu", dtype: torch.dtype | None = None, batch: int = 8,
        tokens: int = TOKENS, pixels: int = 1280 * 28 * 28, readout: str = "reply", threshold: float = 0.25,
    ):  # fmt: skip
        if not model:
            raise InputError("--model takes a model's name on the Hugging Face hub, or a folder")
        if batch < 1 or tokens < 1 or pixels < 1 or not 0 <= threshold < 1:
            raise InputError("batch, tokens and pixels are at least 1, and a threshold is at least 0 and below 1")
        if readout not in READOUTS:
            raise InputError(f"no read-out {readout}; there are {' and '.join(READOUTS)}")
        self._weights = Pretrained(model, asked_by="--source mllm", revision=revision, sampled=True)
        kind = self._weights.kind_among(SUPPORTED)
        if readout == "attention" and kind not in chat.FAMILIES:
            raise InputError("--readout attention is for Qwen2.5-VL and Qwen3-VL", file=model)
        single = device.startswith("cpu") or kind == "grounding-dino"
        how: dict[str, Any] = {"device": device, "dtype": dtype or (torch.float32 if single else torch.bfloat16)}
        self._asked: Any
        match kind:
            case "grounding-dino":
                self._asked = GroundingDino(self._weights, threshold=threshold, **how)
            case "florence2":
                self._asked = Florence(self._weights, tokens=tokens, **how)
            case _:
                self._asked = Chat(self._weights, tokens=tokens, pixels=pixels, readout=readout, **how)
        self.batch, self.device, self.simulated = batch, device, False
        self.name = f"{self._weights.short_name} (mllm{', attention' if readout == 'attention' else ''})"

    def fingerprint(self) -> str:
        """Of the weights, the prompt and all settings but the batch and the device."""
        about = f"{VERSION}\n{self._weights.fingerprint}\n{self._asked.about}"
        return hashlib.blake2b(about.encode(), digest_size=8).hexdigest()

    def answer(self, pairs: Sequence[tuple[Sample, str]]) -> list[Prior]:
        """One prior per pair. A picture is read, resized and looked at once for all its sentences.

        Raises:
            InputError: if the model cannot be loaded, a picture cannot be read, or memory does not suffice.
        """
        places: dict[str, list[int]] = {}
        for place, (sample, _) in enumerate(pairs):
            places.setdefault(sample.image, []).append(place)
        found: dict[int, Prior] = {}
        try:
            for image, rows in places.items():
                look = self._asked.look(load(image))
                for start in range(0, len(rows), self.batch):
                    part = rows[start : start + self.batch]
                    answers = self._asked.ask(look, [pairs[place][1] for place in part])
                    found.update(zip(part, answers, strict=True))
        except torch.OutOfMemoryError as error:
            raise InputError(f"not enough memory on {self.device}: try a --batch below {self.batch}") from error
        return [found[place] for place in range(len(pairs))]
