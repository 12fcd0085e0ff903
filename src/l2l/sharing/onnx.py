"""A run as an ONNX graph, compared with itself by onnxruntime before anybody uses it."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from l2l.errors import InputError
from l2l.model.network import Network
from l2l.model.words import vocabulary_of
from l2l.proposals.proposal import Proposals
from l2l.training.loop import load_run
from l2l.training.pool import grid_size, normalise

TOLERANCE = 1e-3  # of probabilities and scores, between torch and onnxruntime in float32
OPSET = 20


class Guided(nn.Module):
    """What is exported: picture, words and a prior in, probabilities and the score out.

    Args:
        network: a run's, in evaluation mode. It is changed: what a graph cannot ask of its input (how long the longest
            sentence is, whom SESM listens to) is settled once.
    """

    def __init__(self, network: Network):
        super().__init__()
        self.network = network
        network.segmenter.rows = slice(None)  # sentences are not cut to the longest of them
        voice = int(network.sesm.voice)
        del network.sesm.voice
        network.sesm.voice = voice  # type: ignore[assignment]

    def forward(
        self, image: Tensor, tokens: Tensor, proposal: Tensor, score: Tensor, present: Tensor
    ) -> tuple[Tensor, Tensor]:
        """image (B, 3, H, W) in [0, 1], tokens (B, L) int64, proposal (B, h, w) in [0, 1] at stride 4, score (B,) and
        present (B,) bool of the prior -> probability that a cell is meant (B, h, w), expected IoU (B,)."""
        answer = self.network(normalise(image), tokens, Proposals(proposal, score, present))
        assert answer.elevated is not None
        here = present[:, None, None]
        probability = torch.where(here, answer.best.float().sigmoid(), answer.q.float().sigmoid())
        alone = self.network.sesm.unprompted(answer.q)
        return probability, self.network.sesm.promised(torch.where(present, answer.elevated.score, alone))


def export_onnx(run: Path | str, out: Path | str, *, check: bool = True) -> float:
    """Write OUT.onnx, and beside it OUT.json with what a caller has to know: sizes, the vocabulary, what goes in.

    The batch may be of any size; picture size and sentence length are the run's.

    Args:
        run: a run or model folder. out: the file. check: compare with onnxruntime on random input.

    Returns:
        The largest difference of a probability or score from torch's; NaN if not checked.

    Raises:
        InputError: if there is no network, what is needed is not installed, or onnxruntime answers otherwise.
    """
    run, out = Path(run), Path(out)
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401

        if check:
            import onnxruntime  # noqa: F401
    except ImportError as error:
        raise InputError(f"{error.name} is missing: pip install -e '.[onnx]' -c constraints.txt") from error
    config, network, _, about = load_run(run, attn_implementation="eager")  # what torch.onnx can do
    if network is None:
        raise InputError("this run is the prior alone; there is no network to export", file=run)
    vocabulary = vocabulary_of(config, about, run)
    model = Guided(network.cpu().float().eval())
    size = (config.data.height, config.data.width)
    given = inputs(size, config.data.words, len(vocabulary))
    names = ["image", "tokens", "proposal", "score", "present"]
    out.parent.mkdir(parents=True, exist_ok=True)
    part = out.with_name(f".{out.name}.{os.getpid()}.part")
    batch = torch.export.Dim("batch", min=1, max=4096)
    try:
        program = torch.onnx.export(
            model, given, dynamo=True, opset_version=OPSET, input_names=names, verbose=False, optimize=False,
            output_names=["probability", "expected_iou"], dynamic_shapes=tuple({0: batch} for _ in names),
        )  # fmt: skip
        assert program is not None
        program.save(part)
        apart = compare(model, part, size, config.data.words, len(vocabulary)) if check else float("nan")
        if apart > TOLERANCE:
            raise InputError(f"onnxruntime answers otherwise, by up to {apart:.2g}: not written", file=out)
        os.replace(part, out)
    finally:
        part.unlink(missing_ok=True)
    cells = grid_size(size)
    shape = f"(batch, {cells[0]}, {cells[1]})"
    told: dict[str, Any] = {
        "inputs": {
            "image": f"float32 (batch, 3, {size[0]}, {size[1]}), RGB in [0, 1], resized (bilinear, antialiased)",
            "tokens": f"int64 (batch, {config.data.words}), 0 for padding",
            "proposal": f"float32 {shape} in [0, 1]; 0.5 everywhere without a prior",
            "score": "float32 (batch,) in [0, 1], the prior's own",
            "present": "bool (batch,), whether there is a prior",
        },
        "outputs": {
            "probability": f"float32 {shape}: enlarge to the picture (bilinear), cut at 0.5",
            "expected_iou": "float32 (batch,) in [0, 1]",
        },
        "vocabulary": [] if config.model.text else ["<pad>", "<unknown>", *about["vocabulary"]],
        "opset": OPSET, "apart": apart, "run": about["hash"],
    }  # fmt: skip
    out.with_suffix(".json").write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
    return apart


def inputs(size: tuple[int, int], words: int, known: int, *, batch: int = 2, seed: int = 0) -> tuple[Tensor, ...]:
    """Random input: pictures, sentences of different lengths, priors that are there and priors that are not."""
    rng = torch.Generator().manual_seed(seed)
    image = torch.rand(batch, 3, *size, generator=rng)
    tokens = torch.randint(1, max(2, known), (batch, words), generator=rng)
    lengths = torch.randint(1, words + 1, (batch,), generator=rng)
    tokens = torch.where(torch.arange(words) < lengths[:, None], tokens, 0)
    present = torch.arange(batch) % 2 == 0
    soft = torch.where(present[:, None, None], torch.rand(batch, *grid_size(size), generator=rng), 0.5)
    return image, tokens, soft, torch.rand(batch, generator=rng) * present, present


def compare(model: Guided, file: Path, size: tuple[int, int], words: int, known: int) -> float:
    """Largest difference between torch and onnxruntime, over batches of one, two and five."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    names = [one.name for one in session.get_inputs()]
    apart = 0.0
    for batch in (1, 2, 5):
        given = inputs(size, words, known, batch=batch, seed=batch)
        with torch.no_grad():
            wanted = model(*given)
        found = session.run(None, {name: value.numpy() for name, value in zip(names, given, strict=True)})
        apart = max(apart, *(float((torch.from_numpy(a) - b).abs().max()) for a, b in zip(found, wanted, strict=True)))
    return apart
