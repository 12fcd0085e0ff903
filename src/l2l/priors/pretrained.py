"""A frozen model of Hugging Face transformers: which one it is, its weights, its tokenizer, a picture as it sees it.

None of the library's processors is used (most want torchvision, and where that is installed others would be picked):
pictures are resized and normalised here, and the numbers are the same on every machine.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from l2l.errors import InputError

IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # mean and standard deviation of each channel
CLIP = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
HALF = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
WEIGHTS = (".safetensors", ".bin")
SMALL = (".json", ".txt", ".model")  # configurations and tokenizers
PLACES, LENGTH = 16, 1 << 16  # how many pieces of a file of weights are read for its digest, and bytes of each


class Pretrained:
    """A model on the Hugging Face hub or in a folder that `save_pretrained` wrote. Only its configuration is read here.

    Args:
        name: its name on the hub, or the folder.
        revision: branch, tag or commit on the hub; `main` if not given.

    Raises:
        InputError: if transformers is not installed, or there is no model of that name.
    """

    def __init__(self, name: str, revision: str = ""):
        try:
            import transformers
        except ImportError as error:
            raise InputError(
                "--source mllm needs the extra transformers: pip install -e '.[transformers]' -c constraints.txt"
            ) from error
        self.name, self._transformers = name, transformers
        self._where: dict[str, Any] = {"trust_remote_code": False}
        if Path(name).is_dir():
            if revision:
                raise InputError(f"--revision {revision} is for a model on the hub; this is a folder", file=name)
            self._where["local_files_only"] = True
        else:
            self._where["revision"] = revision or "main"
        with self._explained("no model here"):
            about, _ = transformers.PreTrainedConfig.get_config_dict(name, **self._where)
        if not about.get("model_type"):
            raise InputError("no model here: there is no configuration that says what it is", file=name)
        self.kind = str(about["model_type"])
        """Its `model_type`."""
        self.commit: str | None = about.get("_commit_hash")
        if self.commit:  # the branch may move before the weights are read
            self._where["revision"] = self.commit

    @contextmanager
    def _explained(self, what: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # the hub's client and damaged files answer with many kinds
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise InputError(f"{what}: {reason}", file=self.name) from error

    @cached_property
    def fingerprint(self) -> str:
        """Name and commit on the hub; of a folder a digest, wherever it lies: names and sizes of its files, all of
        configurations and tokenizers, and pieces of the weights (fine-tuned weights have the same size)."""
        if "revision" in self._where:
            return f"{self.name}@{self._where['revision']}"
        digest = hashlib.blake2b(digest_size=16)
        for path in sorted(one for one in Path(self.name).glob("*") if one.suffix in (*WEIGHTS, *SMALL)):
            size = path.stat().st_size
            digest.update(f"{path.name}\n{size}\n".encode())
            with path.open("rb") as file:
                if path.suffix in SMALL or size <= PLACES * LENGTH:
                    digest.update(file.read())
                    continue
                for place in range(PLACES):
                    file.seek(place * (size - LENGTH) // (PLACES - 1))
                    digest.update(file.read(LENGTH))
        return digest.hexdigest()

    @cached_property
    def config(self) -> Any:
        """Its configuration."""
        with self._explained("cannot read the configuration"):
            return self._transformers.AutoConfig.from_pretrained(self.name, **self._where)

    @cached_property
    def tokenizer(self) -> Any:
        """Its tokenizer."""
        with self._explained("cannot read the tokenizer"):
            return self._transformers.AutoTokenizer.from_pretrained(self.name, **self._where)

    def load(self, model: str, *, device: str, dtype: torch.dtype, attn_implementation: str | None = None) -> Any:
        """The model, frozen, of the class named `model`. Raises `InputError` if it cannot be read or weights are
        missing (they would be random, and nobody would know)."""
        with self._explained("cannot load the model"):
            found, told = getattr(self._transformers, model).from_pretrained(
                self.name, dtype=dtype, attn_implementation=attn_implementation, output_loading_info=True, **self._where
            )
        if told["missing_keys"]:
            some = ", ".join(sorted(told["missing_keys"])[:3])
            raise InputError(f"weights are missing: {some}, ...", file=self.name)
        return found.to(device).eval().requires_grad_(False)

    def ids(self, text: str) -> list[int]:
        """Token ids of words of a user's: what looks like a special token in them is read letter by letter."""
        return list(self.tokenizer(text, add_special_tokens=False, split_special_tokens=True).input_ids)


def frame(
    picture: np.ndarray, size: tuple[int, int], colours: tuple[Sequence[float], Sequence[float]], *, device: str,
    mode: str = "bicubic",
) -> Tensor:  # fmt: skip
    """A picture as a model sees it: resized, rounded to whole grey values as image libraries do, normalised.

    Args:
        picture: uint8 (H, W, 3) RGB. size: (height, width) in pixels. colours: mean and standard deviation of each
            channel, of values in [0, 1]. mode: `bicubic` or `bilinear`, antialiased.

    Returns:
        float32 (3, height, width).
    """
    pixels = torch.from_numpy(np.ascontiguousarray(picture)).to(device).permute(2, 0, 1)[None].float()
    if pixels.shape[2:] != size:
        pixels = F.interpolate(pixels, size=size, mode=mode, antialias=True, align_corners=False).round().clamp(0, 255)
    mean, deviation = (torch.tensor(one, device=device)[:, None, None] for one in colours)
    return (pixels[0] / 255 - mean) / deviation
