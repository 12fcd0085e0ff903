"""Priors from a vision-language model behind any OpenAI-compatible server: vLLM, `transformers serve`, hosted services.

Through the official client, which waits and tries again where a server says so (429, 5xx, lost connections; its
back-off grows and heeds `Retry-After`). Many requests are under way at once, at most so many a minute. The key is read
from the environment; it is in no file, no store and no message of ours.

A pair that gets no answer in the end is left out of the store rather than kept as "nothing": the next call asks again.
What cannot get better by itself (no such model, a key that is refused) stops at once and says what to do.
"""

from __future__ import annotations

import base64
import hashlib
import io
import os
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from l2l.errors import InputError
from l2l.priors.answers import DIALECTS, Dialect, dialect_of, instruction, read, smart_resize
from l2l.priors.prior import Prior
from l2l.sample import Sample

if TYPE_CHECKING:
    import numpy as np

KEY = "OPENAI_API_KEY"
TOKENS = 512  # of a reply


class Endpoint:
    """One model behind one server.

    Args:
        url: base address, as in `http://127.0.0.1:8000/v1`. model: its name there.
        dialect: a name of `answers.DIALECTS`; told from the model's name if not given.
        concurrency: requests under way at once. per_minute: requests begun in a minute at most; 0 for no limit.
        retries: how often a request is tried again. timeout: seconds that one try may take.
        pixels: pictures with more are sent smaller.

    Raises:
        InputError: if the client is not installed, the dialect is not known, or a number makes no sense.
    """

    def __init__(
        self, *, url: str, model: str, dialect: str = "", concurrency: int = 8, per_minute: int = 0, retries: int = 5,
        timeout: float = 60.0, pixels: int = 1280 * 28 * 28,
    ):  # fmt: skip
        if not url.startswith(("http://", "https://")):
            raise InputError(f"{url or 'no address'}: --url takes a base address, as in http://127.0.0.1:8000/v1")
        if not model:
            raise InputError("--model takes the model's name on that server")
        if concurrency < 1 or retries < 0 or per_minute < 0 or not timeout > 0:
            raise InputError("concurrency and timeout are above 0, retries and requests a minute at least 0")
        if dialect and dialect not in DIALECTS:
            raise InputError(f"no dialect {dialect}; there are {', '.join(DIALECTS)}")
        try:
            import openai
        except ImportError as error:
            raise InputError("--source endpoint needs the openai package: pip install openai") from error
        self._openai = openai
        self.dialect: Dialect = DIALECTS[dialect] if dialect else dialect_of(model)
        self.model, self.concurrency, self.pixels = model, concurrency, pixels
        self.name = f"{model} (endpoint)"
        self.simulated = False
        # a local server wants none, but the client refuses to be without
        self._client = openai.OpenAI(
            base_url=url, api_key=os.environ.get(KEY) or "none", max_retries=retries, timeout=timeout
        )
        self._pause = 60 / per_minute if per_minute else 0.0
        self._turn, self._next = threading.Lock(), 0.0
        self.missed: list[str] = []
        """Why pairs got no answer, one line each."""

    def fingerprint(self) -> str:
        """Of model, dialect, prompt and size of the pictures; neither of the server's address nor of the key."""
        asked = instruction(self.dialect, "...", (100, 100))
        about = f"{self.model}\n{self.dialect}\n{asked}\n{self.pixels}\n{TOKENS}"
        return hashlib.blake2b(about.encode(), digest_size=8).hexdigest()

    def answer(self, pairs: Sequence[tuple[Sample, str]]) -> list[Prior | None]:
        """One prior per pair, `None` where the server gave none. Raises `InputError` where asking on is of no use."""
        pictures: dict[str, Sent] = {}
        lock, over = threading.Lock(), threading.Event()

        def one(pair: tuple[Sample, str]) -> Prior | None:
            if over.is_set():
                return None
            with lock:  # several sentences of a picture: it is read and packed once
                if pair[0].image not in pictures:
                    pictures[pair[0].image] = Sent.pack(pair[0].image, self.pixels)
            try:
                return self._one(pictures[pair[0].image], pair[1])
            except InputError:
                over.set()
                raise

        with ThreadPoolExecutor(self.concurrency) as pool:
            answers = [pool.submit(one, pair) for pair in pairs]
            try:
                found = [each.result() for each in answers]
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
        if pairs and all(prior is None for prior in found):
            raise InputError(f"none of {len(pairs)} requests was answered, the last with {self.missed[-1]}")
        return found

    def _one(self, sent: Sent, sentence: str) -> Prior | None:
        openai: Any = self._openai
        self._wait()
        asked = instruction(self.dialect, sentence, sent.seen)
        content = [{"type": "image_url", "image_url": {"url": sent.url}}, {"type": "text", "text": asked}]
        messages: Any = [{"role": "user", "content": content}]
        try:
            reply = self._client.chat.completions.create(
                model=self.model, messages=messages, temperature=0.0, max_tokens=TOKENS
            )
        except (openai.AuthenticationError, openai.PermissionDeniedError) as error:
            raise InputError(f"the server refuses the key ({error.status_code}): set {KEY}") from error
        except openai.NotFoundError as error:
            raise InputError(f"the server knows no model {self.model}, or nothing at this address: {error}") from error
        except (openai.BadRequestError, openai.UnprocessableEntityError) as error:
            return Prior(note=f"the server refused the request ({error.status_code})")
        except openai.OpenAIError as error:  # after all tries
            self.missed.append(f"{type(error).__name__}: {' '.join(str(error).split())[:200]}")
            return None
        except (ValueError, TypeError, RecursionError) as error:  # what the client makes of a body that is no answer
            self.missed.append(f"no answer: {type(error).__name__}")
            return None
        choices = getattr(reply, "choices", None)
        first = choices[0] if isinstance(choices, list) and choices else None
        text = getattr(getattr(first, "message", None), "content", None)
        return read(text, self.dialect, sent.size, seen=sent.seen)

    def _wait(self) -> None:
        """Until this request may begin."""
        if not self._pause:
            return
        with self._turn:
            now = time.monotonic()
            begin = max(now, self._next)
            self._next = begin + self._pause
        time.sleep(begin - now)


class Sent:
    """A picture as it is sent: at a size which no server resizes again, so that pixels in a reply are these pixels."""

    def __init__(self, url: str, size: tuple[int, int], seen: tuple[int, int]):
        self.url, self.size, self.seen = url, size, seen

    @classmethod
    def pack(cls, image: str, pixels: int) -> Sent:
        """Read, resize and encode (JPEG, quality 95) a picture. Raises `InputError` if it cannot be read."""
        from PIL import Image

        from l2l.data.images import load

        array: np.ndarray = load(image)
        size = (array.shape[0], array.shape[1])
        seen = smart_resize(size, most=pixels)
        packed = io.BytesIO()
        Image.fromarray(array).resize((seen[1], seen[0]), Image.Resampling.BICUBIC).save(packed, "JPEG", quality=95)
        return cls(f"data:image/jpeg;base64,{base64.b64encode(packed.getvalue()).decode()}", size, seen)
