"""A pretrained model of Hugging Face transformers: which it is, its weights, its tokenizer, a picture as it sees it.

Whatever comes from there is read here: frozen models that point (`priors.mllm`), SAM (`proposals.sam`), the segmenter's
encoders (`model.pretrained`). No code that comes with a model is run, and what lies in a folder is not asked for on the
network. None of the library's processors is used (most want torchvision, and where that is installed others would be
picked): pictures are resized and normalised here, and the numbers are the same on every machine.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from l2l.errors import InputError

if TYPE_CHECKING:
    import numpy as np
    import torch

IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # mean and standard deviation of each channel
CLIP = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
HALF = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
WEIGHTS = (".safetensors", ".bin")
SMALL = (".json", ".txt", ".model")  # configurations and tokenizers
PLACES, LENGTH = 16, 1 << 16  # how many pieces of a large file of weights are read for a digest, and bytes of each


class Pretrained:
    """A model on the Hugging Face hub or in a folder that `save_pretrained` wrote. Nothing is read before it is asked
    for; then all of it is of one commit, since a branch may move.

    Args:
        name: its name on the hub, or the folder.
        asked_by: the option or setting that wants it, for messages: `--source mllm`, or `data.sam`, which names it.
        revision: branch, tag or commit on the hub; `main` if not given.
        sampled: the digest of a folder sees pieces of large weights, not all: for models of many gigabytes.

    Raises:
        InputError: if transformers is not installed, or a folder has a revision; later, if something cannot be read.
    """

    def __init__(self, name: str, *, asked_by: str = "", revision: str = "", sampled: bool = False):
        try:
            import transformers
        except ImportError as error:
            raise InputError(
                f"{asked_by or name} needs the extra transformers: pip install -e '.[transformers]' -c constraints.txt"
            ) from error
        self.name, self.sampled, self._transformers = name, sampled, transformers
        self.place = name if asked_by[:2] in ("", "--") else f"{asked_by}={name}"
        """How errors name it."""
        self.folder = Path(name) if Path(name).is_dir() else None
        if self.folder is not None and revision:
            raise InputError(f"--revision {revision} is for a model on the hub; this is a folder", file=name)
        here: dict[str, Any] = {"revision": revision or "main"} if self.folder is None else {"local_files_only": True}
        self._asked = {"trust_remote_code": False, **here}

    @cached_property
    def _about(self) -> dict[str, Any]:
        """The configuration as it is written."""
        return self._transformers.PreTrainedConfig.get_config_dict(self.name, **self._asked)[0]

    @cached_property
    def _where(self) -> dict[str, Any]:
        """How the rest is asked for: of the hub, at the commit at which the configuration was."""
        commit = self._about.get("_commit_hash")
        return self._asked | ({"revision": commit} if commit and self.folder is None else {})

    @contextmanager
    def _explained(self, what: str) -> Iterator[None]:
        """Errors in one line, and no report on the weights of heads that are left behind."""
        logging = self._transformers.utils.logging
        before = logging.get_verbosity()
        logging.set_verbosity_error()
        try:
            yield
        except Exception as error:  # the hub's client and damaged files answer with many kinds
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise InputError(f"{what}: {reason}", file=self.place) from error
        finally:
            logging.set_verbosity(before)

    @cached_property
    def kind(self) -> str:
        """Its `model_type`."""
        with self._explained("no model here"):
            kind = self._about.get("model_type")
        if not kind:
            raise InputError("no model here: there is no configuration that says what it is", file=self.place)
        return str(kind)

    def kind_among(self, kinds: Collection[str]) -> str:
        """The same. Raises `InputError` if it is none of these."""
        if self.kind not in kinds:
            raise InputError(f"a model of type {self.kind}; it has to be one of {', '.join(kinds)}", file=self.place)
        return self.kind

    @property
    def short_name(self) -> str:
        """Its name on the hub, or the last part of the folder's: a folder may move."""
        return self.name if self.folder is None else self.folder.resolve().name

    @cached_property
    def fingerprint(self) -> str:
        """Name and commit on the hub; of a folder the digest of its files, wherever it lies."""
        with self._explained("no model here"):
            if self.folder is None:
                return f"{self.name}@{self._where['revision']}"
            return digest_of(self.folder, sampled=self.sampled)

    @property
    def identity(self) -> str:
        """The same for people to read: NAME@COMMIT, or of a folder NAME@DIGEST."""
        return self.fingerprint if self.folder is None else f"{self.short_name}@{self.fingerprint}"

    @cached_property
    def config(self) -> Any:
        """Its configuration."""
        with self._explained("cannot read its configuration"):
            return self._transformers.AutoConfig.from_pretrained(self.name, **self._where)

    @cached_property
    def tokenizer(self) -> Any:
        """Its tokenizer."""
        with self._explained("cannot read its tokenizer"):
            return self._transformers.AutoTokenizer.from_pretrained(self.name, **self._where)

    def ids(self, text: str) -> list[int]:
        """Token ids of words of a user's: what looks like a special token in them is read letter by letter."""
        return list(self.tokenizer(text, add_special_tokens=False, split_special_tokens=True).input_ids)

    def read(self, model: str, **how: Any) -> tuple[Any, list[str]]:
        """The model of the class named `model`, and which of its weights are not there: those are random."""
        with self._explained("cannot load the model"):
            found, told = getattr(self._transformers, model).from_pretrained(
                self.name, output_loading_info=True, **how, **self._where
            )
        return found, sorted(told["missing_keys"])

    def load(self, model: str, *, device: str, dtype: torch.dtype, attn_implementation: str | None = None) -> Any:
        """The same, frozen. Raises `InputError` if weights are missing: nobody would know."""
        found, missing = self.read(model, dtype=dtype, attn_implementation=attn_implementation)
        if missing:
            raise InputError(f"weights are missing: {', '.join(missing[:3])}, ...", file=self.place)
        return found.to(device).eval().requires_grad_(False)


def digest_of(folder: Path, *, sampled: bool = False) -> str:
    """Of a model's files, wherever they lie: names, sizes, and all that is in them.

    Args:
        sampled: read large weights in `PLACES` pieces only; weights that were trained on, all of them, still differ.
    """
    digest = hashlib.blake2b(digest_size=16)
    for path in sorted(one for one in folder.glob("*") if one.suffix in (*WEIGHTS, *SMALL)):
        size = path.stat().st_size
        digest.update(f"{path.name}\n{size}\n".encode())
        with path.open("rb") as file:
            if sampled and path.suffix in WEIGHTS and size > PLACES * LENGTH:
                for place in range(PLACES):
                    file.seek(place * (size - LENGTH) // (PLACES - 1))
                    digest.update(file.read(LENGTH))
            else:
                while block := file.read(1 << 24):
                    digest.update(block)
    return digest.hexdigest()


def frame(
    picture: np.ndarray, size: tuple[int, int], colours: tuple[Sequence[float], Sequence[float]], *, device: str,
    mode: str = "bicubic",
) -> torch.Tensor:  # fmt: skip
    """A picture as a model sees it: resized, rounded to whole grey values as image libraries do, normalised.

    Args:
        picture: uint8 (H, W, 3) RGB. size: (height, width) in pixels. colours: mean and standard deviation of each
            channel, of values in [0, 1]. mode: `bicubic` or `bilinear`, antialiased.

    Returns:
        float32 (3, height, width).
    """
    import numpy as np
    import torch
    import torch.nn.functional as F

    pixels = torch.from_numpy(np.ascontiguousarray(picture)).to(device).permute(2, 0, 1)[None].float()
    if pixels.shape[2:] != size:
        pixels = F.interpolate(pixels, size=size, mode=mode, antialias=True, align_corners=False).round().clamp(0, 255)
    mean, deviation = (torch.tensor(one, device=device)[:, None, None] for one in colours)
    return (pixels[0] / 255 - mean) / deviation
