"""How fast, and in how much memory, beside LAVT's reference implementation, in one run, by turns, on a CPU.

    git clone https://github.com/yz93/LAVT-RIS /tmp/lavt
    python benchmarks/lavt.py all --lavt /tmp/lavt --data ../shared/data/refcoco_micro [--turns 5] [--threads 1]

LAVT (arXiv 2112.02244) is GPL-3: it is imported from a copy outside of this repository, as it is there (commit 1da0af9
needs no patch for torch 2.13), and nothing of it is in here; `lavt_stubs.py` stands in for the libraries that it names.

`step` times training steps and inference passes of a Swin-B (window 12) with a BERT-base, of random weights, on the
same pictures and sentences of 20 tokens. Theirs: the network and BERT that its training script builds, cross-entropy
with weights 0.9 and 1.1, AdamW on what that script gives to it; batches are ready beforehand, for it has workers that
make them. Ours: a whole step of `supervised`, views, the teacher's average and the gradient's norm included, with a
decoder that is not guided ("ours", LAVT's like) and with the prior's guided decoding besides. An inference pass ends
in a mask at the size of the input. `memory` trains each in a process of its own and says how far its memory grows,
from before the network is built and from the first step on (Linux).

`evaluate` times a split without the model's pass: reading annotations, tokens, decoding, resizing, logits that are
always the same, masks, and scores, as LAVT's test script does it and as `l2l.evaluate` does. The data set is a REFER
set whose pictures are repeated under other names; ours has to decode them all, too: its cache starts empty each time.
The last layer of LAVT's network brings its logits from stride 4 to the input's size; ours leaves that to the
evaluation. So theirs is timed with this layer, which is alike, and without; and with this layer and the larger of two
logits found by comparison, for torch's `argmax`, which LAVT calls, is slow at that on a CPU and is most of what it
takes. Ours compares at the mask's own size, theirs at 480x480. Ours runs the first stage of the network once for a
picture and repeats its map for the sentences; that copy belongs to the model's pass, and a row of its own counts it.

Medians over turns, of wall clock and of processor time: where other work shares the machine, the latter says more.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import io
import json
import multiprocessing
import os
import pickle
import re
import resource
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lavt_stubs
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from l2l.config import Config
from l2l.data.cache import cache_in
from l2l.data.refer import refs_file
from l2l.evaluate import answers_and_rho, prepare_split, score_pairs
from l2l.labelling.sesm import Elevated
from l2l.metrics import summarise
from l2l.model.network import Answer
from l2l.model.text import words_of
from l2l.model.words import SubwordVocabulary
from l2l.proposals.proposal import Proposals
from l2l.training.loop import Run, train_step
from l2l.training.pool import Pool, grid_size, normalise
from l2l.training.prepare import prepare, read_data

TOKENS = 20
DROPPED = 0.3  # stochastic depth, as LAVT trains
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
OURS = {"ours": (False, "float32"), "ours, guided": (True, "float32"), "ours, bf16": (False, "bf16")}
"""Variants: are there priors, so that the decoder runs a second time; and in what arithmetic."""


# ---------------------------------------------------------------------------------------------------------- timing


@dataclass(frozen=True)
class Took:
    """Seconds of each turn."""

    wall: list[float]
    processor: list[float]


def processor() -> float:
    """Processor seconds of this process and of its children that have ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def by_turns(tasks: dict[str, Callable[[], object]], turns: int) -> dict[str, Took]:
    """Time all tasks, one after the other and over again; the first round warms up and does not count."""
    took = {name: Took([], []) for name in tasks}
    for turn in range(turns + 1):
        for name, task in tasks.items():
            began, used = time.perf_counter(), processor()
            task()
            if turn:
                took[name].wall.append(time.perf_counter() - began)
                took[name].processor.append(processor() - used)
    return took


def show(title: str, took: dict[str, Took], measure: str = "LAVT") -> None:
    """Medians as a table: beside each, how many times as fast as `measure`."""
    base = [statistics.median(part) for part in (took[measure].wall, took[measure].processor)]
    print(f"\n{title:42s}   wall clock             processor")
    for name, one in took.items():
        cells = []
        for seconds, whole in zip((one.wall, one.processor), base, strict=True):
            middle = statistics.median(seconds)
            cells.append(f"{middle:8.3f} s  {whole / middle:5.2f} x")
        print(f"  {name:40s}  {'     '.join(cells)}", flush=True)


# -------------------------------------------------------------------------------------------------------- the data


def repeat(source: Path, out: Path, copies: int, split: str) -> Path:
    """A REFER set, laid out as the toolkit has it, with every picture so many times and all refs in one split."""
    coco = json.loads((source / "refcoco/instances.json").read_bytes())
    refs = pickle.loads(refs_file(source / "refcoco", None).read_bytes())
    pictures, folder = source / "images/mscoco/images/train2014", out / "images/mscoco/images/train2014"
    folder.mkdir(parents=True)
    (out / "refcoco").mkdir()
    images, annotations, repeated = [], [], []
    far = 10 ** len(str(max(one["id"] for one in [*coco["images"], *coco["annotations"]])))  # no id meets another
    sentences = 1 + max(key for ref in refs for key in ref["sent_ids"])
    for copy in range(copies):
        more = copy * far
        for image in coco["images"]:
            name = f"COCO_train2014_{image['id'] + more:012d}.jpg"
            (folder / name).write_bytes((pictures / image["file_name"]).read_bytes())
            images.append(image | {"id": image["id"] + more, "file_name": name})
        for one in coco["annotations"]:
            annotations.append(one | {"id": one["id"] + more, "image_id": one["image_id"] + more})
        for ref in refs:
            said = [one | {"sent_id": one["sent_id"] + copy * sentences} for one in ref["sentences"]]
            name = f"COCO_train2014_{ref['image_id'] + more:012d}_{ref['ann_id'] + more}.jpg"
            repeated.append(ref | {
                "ref_id": len(repeated), "ann_id": ref["ann_id"] + more, "image_id": ref["image_id"] + more,
                "split": split, "file_name": name, "sentences": said, "sent_ids": [one["sent_id"] for one in said],
            })  # fmt: skip
    content = coco | {"images": images, "annotations": annotations}
    (out / "refcoco/instances.json").write_text(json.dumps(content), encoding="utf-8")
    (out / "refcoco/refs(unc).p").write_bytes(pickle.dumps(repeated, protocol=2))
    return out


def word_pieces(source: Path, out: Path) -> None:
    """A small WordPiece vocabulary, as LAVT's tokenizer reads it: the words of the refs, and letters for all others."""
    import transformers

    refs = pickle.loads(refs_file(source / "refcoco", None).read_bytes())
    words = sorted({word for ref in refs for one in ref["sentences"] for word in words_of(one["raw"])})
    letters = [chr(number) for number in range(33, 127) if chr(number) == chr(number).lower()]
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    pieces = list(dict.fromkeys([*special, *letters, *(f"##{one}" for one in letters), *words]))
    ids = {piece: number for number, piece in enumerate(pieces)}
    transformers.BertTokenizer(vocab=ids).save_pretrained(out)
    (out / "vocab.txt").write_text("".join(f"{piece}\n" for piece in pieces), encoding="utf-8")


def make_models(source: Path, out: Path) -> None:
    """`out/swin`, a Swin-B, and `out/bert`, a BERT-base with a small vocabulary's tokenizer, of random weights."""
    import transformers

    transformers.utils.logging.disable_progress_bar()
    torch.manual_seed(0)
    swin = transformers.SwinConfig(
        embed_dim=128, depths=[2, 2, 18, 2], num_heads=[4, 8, 16, 32], window_size=12, image_size=384,
        drop_path_rate=DROPPED,
    )  # fmt: skip
    transformers.SwinModel(swin, add_pooling_layer=False).save_pretrained(out / "swin")
    transformers.BertModel(transformers.BertConfig(), add_pooling_layer=False).save_pretrained(out / "bert")
    word_pieces(source, out / "bert")


# ------------------------------------------------------------------------------------------------------------ LAVT


def import_lavt(folder: Path) -> None:
    """Make LAVT's modules importable; they read their settings from the command line."""
    if not (folder / "lib/segmentation.py").is_file():
        raise SystemExit(f"{folder}: no LAVT here; see the first lines of benchmarks/lavt.py")
    lavt_stubs.install()
    os.environ["USE_TORCH"] = "1"  # its BERT need not look for TensorFlow
    sys.path.insert(0, str(folder))
    sys.argv = sys.argv[:1]
    warnings.filterwarnings("ignore", message="torch.meshgrid")


@dataclass(frozen=True)
class Inputs:
    """One batch for both."""

    image: Tensor
    """(B, 3, H, W) in [0, 1]."""
    target: Tensor
    """(B, H, W) int64."""
    ids: Tensor
    """(B, L) int64, ids of BERT's own."""

    @classmethod
    def of(cls, pool: Pool, batch: int) -> Inputs:
        """The first pairs of a pool."""
        x = pool.batch(torch.arange(batch))
        assert x.mask is not None
        target = F.interpolate(x.mask[:, None], size=pool.size, mode="nearest")[:, 0] > 0.5
        return cls(x.image, target.long(), x.tokens - 1)


class Lavt:
    """Their network, BERT and optimiser."""

    def __init__(self, inputs: Inputs):
        from args import get_parser  # type: ignore[import-not-found]
        from bert.configuration_bert import BertConfig  # type: ignore[import-not-found]
        from bert.modeling_bert import BertModel  # type: ignore[import-not-found]
        from lib import segmentation  # type: ignore[import-not-found]

        torch.manual_seed(0)
        settings = get_parser().parse_args(["--window12"])
        with contextlib.redirect_stdout(io.StringIO()):
            self.model = segmentation.lavt(pretrained="", args=settings)
        self.bert = BertModel(BertConfig())
        self.bert.pooler = None
        trained = [*self.model.parameters(), *self.bert.encoder.layer[:10].parameters()]
        self.optimiser = torch.optim.AdamW(trained, lr=settings.lr, weight_decay=settings.weight_decay)
        self.weight = torch.tensor([0.9, 1.1])
        mean, deviation = (torch.tensor(one)[:, None, None] for one in (MEAN, DEVIATION))
        self.image, self.target, self.ids = (inputs.image - mean) / deviation, inputs.target, inputs.ids
        self.real = torch.ones_like(inputs.ids)

    def answer(self) -> Tensor:
        """Logits (B, 2, H, W)."""
        words = self.bert(self.ids, attention_mask=self.real)[0].permute(0, 2, 1)
        return self.model(self.image, words, l_mask=self.real[:, :, None])

    def train(self) -> None:
        """A step."""
        self.model.train()
        self.bert.train()
        loss = F.cross_entropy(self.answer(), self.target, weight=self.weight)
        self.optimiser.zero_grad()
        loss.backward()
        self.optimiser.step()
        loss.item()

    @torch.no_grad()
    def infer(self) -> Tensor:
        """Masks (B, H, W)."""
        self.model.eval()
        self.bert.eval()
        return self.answer().argmax(1)


# ------------------------------------------------------------------------------------------------------------ ours


class Ours:
    """Our run, in all its variants: the weights are the same, the priors and the arithmetic are not."""

    def __init__(self, config: Config, batch: int):
        prepared = prepare(config)
        rng = torch.Generator().manual_seed(0)
        pool, cells = prepared.pool, grid_size(prepared.pool.size)
        tokens = torch.randint(6, len(prepared.vocabulary), (len(pool), TOKENS), generator=rng)  # nothing to cut off
        pool = dataclasses.replace(pool, tokens=tokens, mirrored=tokens)
        soft = torch.randint(0, 256, (len(pool), *cells), generator=rng, dtype=torch.uint8)
        score, present = torch.rand(len(pool), generator=rng), torch.ones(len(pool), dtype=torch.bool)
        self.pools = {False: pool, True: pool.with_proposals(soft, score, present)}
        self.inputs = Inputs.of(pool, batch)
        self.run = Run.start(config, dataclasses.replace(prepared, pool=pool))

    def become(self, variant: str) -> None:
        """Another pool, another arithmetic."""
        guided, precision = OURS[variant]
        kind = torch.bfloat16 if precision == "bf16" else torch.float32
        object.__setattr__(self.run.parts, "pool", self.pools[guided])
        object.__setattr__(self.run.parts, "precision", kind)

    def train(self, variant: str) -> None:
        """A step."""
        self.become(variant)
        train_step(self.run)

    @torch.no_grad()
    def infer(self, variant: str) -> Tensor:
        """Masks (B, H, W)."""
        self.become(variant)
        parts, inputs = self.run.parts, self.inputs
        x = parts.pool.batch(torch.arange(len(inputs.image)))
        proposals = x.proposals if OURS[variant][0] else None
        with parts.autocast():
            answer = parts.teacher(normalise(inputs.image), x.tokens, proposals)
        size = inputs.image.shape[2:]
        wide = F.interpolate(answer.best[:, None].float(), size=size, mode="bilinear", align_corners=False)
        return wide[:, 0] > 0


def configure(args: argparse.Namespace, folder: Path) -> Config:
    """A run as docs/models.md has it, on real photographs, all of them labelled."""
    height, width = args.size
    config = Config().replace(
        "data", data=str(folder / "train/refcoco"), height=height, width=width, words=TOKENS, rate=1.0
    )
    config = config.replace("model", backbone=str(folder / "swin"), text=str(folder / "bert"), text_width=256)
    return config.replace(
        "train", method="supervised", labelled=args.batch - 1, unlabelled=1, precision="float32", steps=100_000
    )


# ------------------------------------------------------------------------------------------------ steps and passes


def step(args: argparse.Namespace, folder: Path) -> None:
    """Training steps and inference passes by turns."""
    ours = Ours(configure(args, folder), args.batch)
    theirs = Lavt(ours.inputs)
    variants = [name for name in OURS if args.bf16 or not name.endswith("bf16")]
    sizes = {"LAVT": [theirs.model, theirs.bert], "ours": [ours.run.parts.network]}
    print("parameters: " + ", ".join(f"{name} {millions(*modules):.0f} million" for name, modules in sizes.items()))
    tasks: dict[str, Callable[[], object]] = {"LAVT": theirs.train}
    tasks |= {name: lambda name=name: ours.train(name) for name in variants}  # type: ignore[misc]
    show(f"a training step, batch {args.batch}", by_turns(tasks, args.turns))
    tasks = {"LAVT": theirs.infer} | {name: lambda name=name: ours.infer(name) for name in variants}  # type: ignore[misc]
    show(f"an inference pass, batch {args.batch}", by_turns(tasks, args.turns))


def millions(*modules: nn.Module) -> float:
    """Parameters."""
    return sum(one.numel() for module in modules for one in module.parameters()) / 1e6


def memory(args: argparse.Namespace, folder: Path) -> None:
    """By how much memory grows, each in a process of its own."""
    context = multiprocessing.get_context("spawn")
    grown = {}
    for name in ["LAVT", *(name for name in OURS if args.bf16 or not name.endswith("bf16"))]:
        with context.Pool(1) as pool:
            grown[name] = pool.apply(grows, (args, folder, name))
    print(f"\nmemory while it trains, batch {args.batch}, MiB        in all               from the first step on")
    for name, (whole, training) in grown.items():
        base = grown["LAVT"]
        print(f"  {name:40s}  {whole / 2**20:8.0f}  {whole / base[0]:5.2f} x     {training / 2**20:8.0f}  "
              f"{training / base[1]:5.2f} x")  # fmt: skip


def grows(args: argparse.Namespace, folder: Path, name: str) -> tuple[int, int]:
    """Bytes by which memory grows at most: from before anything is built, and from the first step on."""
    torch.set_num_threads(args.threads)
    import_lavt(args.lavt)
    config = configure(args, folder)
    with cache_in(folder / "cache"):
        if name == "LAVT":
            prepared = prepare(config)
            tokens = torch.full((len(prepared.pool), TOKENS), 7)
            inputs = Inputs.of(dataclasses.replace(prepared.pool, tokens=tokens), args.batch)
            begin = resident("VmRSS")
            trained = Lavt(inputs).train
        else:
            begin = resident("VmRSS")
            ours = Ours(config, args.batch)
            trained = lambda: ours.train(name)  # noqa: E731
        Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
        built = resident("VmRSS")
        for _ in range(3):
            trained()
    most = resident("VmHWM")
    return most - begin, most - built


def resident(what: str) -> int:
    """Bytes of this process in memory, now (`VmRSS`) or at the peak (`VmHWM`)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(what))


# ------------------------------------------------------------------------------------------------------ evaluation


def blob(height: int, width: int) -> Tensor:
    """Logits (height, width) of a disc in the middle."""
    y, x = (torch.linspace(-1, 1, side) for side in (height, width))
    return 2 - 8 * (y[:, None] ** 2 + x**2)


class OurConstant(nn.Module):
    """In place of our network: logits at stride 4 that are always the same.

    Args:
        channels: of the first stage's map, which the evaluation makes once for a picture and repeats for its sentences;
            128 in a Swin-B. A single one takes next to nothing to repeat.
    """

    def __init__(self, size: tuple[int, int], *, channels: int = 1):
        super().__init__()
        self.q = blob(*grid_size(size))
        self.seen = torch.zeros(1, channels, *self.q.shape).contiguous(memory_format=torch.channels_last)

    @property
    def segmenter(self) -> OurConstant:
        """Its own."""
        return self

    def look(self, image: Tensor) -> tuple[Tensor, ...]:
        """(B, 3, H, W) -> the first stage's map."""
        return (self.seen.expand(len(image), -1, -1, -1),)

    def forward(self, image: Tensor, tokens: Tensor, proposals: Proposals, *, seen: tuple[Tensor, ...]) -> Answer:
        """Pictures, (B, L), priors that are not there, the map of each pair -> what `evaluate` reads of an answer."""
        assert len(seen[0]) == len(tokens)
        q, flat = self.q.expand(len(tokens), -1, -1), torch.zeros(len(tokens))
        elevated = Elevated(**{one.name: flat for one in dataclasses.fields(Elevated)})
        return Answer(None, q, q, elevated)  # type: ignore[arg-type]


class Compared(Tensor):
    """Two logits whose larger one is found by comparison."""

    def cpu(self) -> Compared:  # type: ignore[override]
        """Itself: it is there."""
        return self

    def argmax(self, dim: int) -> Tensor:  # type: ignore[override]
        """(B, 2, H, W) -> (B, H, W) int64."""
        plain = self.as_subclass(Tensor)
        return (plain[:, 1] > plain[:, 0]).long()


class TheirConstant(nn.Module):
    """In place of LAVT: logits of two classes.

    Args:
        widens: brings them to the input's size in each pass, as LAVT does, not beforehand.
        compares: what it gives needs no `argmax`.
    """

    def __init__(self, size: tuple[int, int], *, widens: bool = True, compares: bool = False):
        super().__init__()
        q = blob(*grid_size(size))
        self.size, self.widens, self.compares = size, widens, compares
        self.logits = torch.stack([torch.zeros_like(q), q])[None]
        self.ready = self.wide()

    def wide(self) -> Tensor:
        """At the input's size."""
        return F.interpolate(self.logits, size=self.size, mode="bilinear", align_corners=True)

    def forward(self, image: Tensor, sentences: Tensor, l_mask: Tensor) -> Tensor:
        """One picture and one sentence -> (1, 2, H, W)."""
        logits = self.wide() if self.widens else self.ready
        return logits.as_subclass(Compared) if self.compares else logits


def evaluate_lavt(root: Path, bert: Path, size: tuple[int, int], workers: int, **how: bool) -> float:
    """mIoU of a split, by LAVT's data set and the loop of its test script; pictures are square there."""
    import test as script  # type: ignore[import-not-found]
    from args import get_parser  # type: ignore[import-not-found]

    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        settings = get_parser().parse_args([
            "--refer_data_root", str(root), "--bert_tokenizer", str(bert), "--split", "val", "--img_size", str(size[0])
        ])  # fmt: skip
        data, _ = script.get_dataset(settings.split, script.get_transform(settings), settings)
        loader = torch.utils.data.DataLoader(data, batch_size=1, num_workers=workers)
        script.evaluate(TheirConstant(size, **how), loader, None, torch.device("cpu"))
    found = re.search(r"Mean IoU is ([\d.]+)", said.getvalue())
    assert found
    return float(found.group(1))


def evaluate_ours(root: Path, bert: Path, size: tuple[int, int], **how: int) -> float:
    """mIoU of a split, as `l2l.evaluate.evaluate` does it."""
    config = Config().replace("data", data=str(root / "refcoco"), height=size[0], width=size[1], words=TOKENS)
    config = config.replace("train", precision="float32")
    with tempfile.TemporaryDirectory() as cache, cache_in(Path(cache)):
        samples = read_data(config.data).split("val")
        pool, _ = prepare_split(samples, config, SubwordVocabulary.read(str(bert)), "")
        network: Any = OurConstant(size, **how).eval()
        pairs = score_pairs(pool, answers_and_rho(network, pool, config, prior=False))
    return 100 * summarise([one.intersection for one in pairs], [one.union for one in pairs]).miou


def evaluate(args: argparse.Namespace, folder: Path) -> None:
    """A split without the model's pass, by turns."""
    import transformers

    transformers.utils.logging.set_verbosity_error()
    root, bert, size = repeat(args.data, folder / "val", args.copies, "val"), folder / "words", args.size
    word_pieces(args.data, bert)
    refs = pickle.loads((root / "refcoco/refs(unc).p").read_bytes())
    count, pictures = sum(len(ref["sentences"]) for ref in refs), len({ref["image_id"] for ref in refs})
    workers = 0 if args.threads == 1 else args.threads
    tasks: dict[str, Callable[[], object]] = {
        "LAVT": lambda: evaluate_lavt(root, bert, size, workers),
        "LAVT, upsampling not counted": lambda: evaluate_lavt(root, bert, size, workers, widens=False),
        "LAVT, comparing in place of argmax": lambda: evaluate_lavt(root, bert, size, workers, compares=True),
        "ours": lambda: evaluate_ours(root, bert, size),
        "ours, repeating a Swin-B's map counted": lambda: evaluate_ours(root, bert, size, channels=128),
    }
    reached = ", ".join(f"{name} {float(tasks[name]()):.2f}" for name in ("LAVT", "ours"))  # type: ignore[arg-type]
    show(f"a split of {pictures} pictures, {len(refs)} refs, {count} sentences", by_turns(tasks, args.turns))
    print(f"  ({args.copies} x the pictures of {args.data.name}, its photographs; {workers} workers for LAVT; "
          f"mIoU of a disc: {reached})")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=("all", "step", "memory", "evaluate"))
    parser.add_argument("--lavt", type=Path, required=True, help="a copy of LAVT's repository")
    parser.add_argument("--data", type=Path, required=True, help="refcoco_micro: images/mscoco/... and refcoco/")
    parser.add_argument("--copies", type=int, default=10, help="how often its pictures are repeated in the split")
    parser.add_argument("--size", default="480x480", type=lambda text: tuple(int(side) for side in text.split("x")))
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1, help="and cores")
    parser.add_argument("--bf16", action="store_true", help="ours in bf16 as well")
    args = parser.parse_args()
    args.lavt = args.lavt.resolve()
    torch.set_num_threads(args.threads)
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: args.threads])
    import_lavt(args.lavt)
    capability = torch.backends.cpu.get_cpu_capability()
    side = "x".join(map(str, args.size))
    print(f"{os.cpu_count()} cores, {capability}, no GPU; {args.threads} threads, torch {torch.__version__}, {side}, "
          f"{args.turns} turns each after one that does not count", flush=True)  # fmt: skip
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if args.what != "evaluate":
            repeat(args.data, folder / "train", 1, "train")
            make_models(args.data, folder)
        with cache_in(folder / "cache"):
            for part in ("step", "memory", "evaluate") if args.what == "all" else (args.what,):
                {"step": step, "memory": memory, "evaluate": evaluate}[part](args, folder)


if __name__ == "__main__":
    main()
