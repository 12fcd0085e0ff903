"""`l2l serve`: its options, and from its arguments to the server. Nothing heavy is imported before it runs."""

from __future__ import annotations

import argparse
import importlib.util
from pathlib import Path

from l2l.errors import InputError
from l2l.subcommand import outlines_option

NEEDED = ("fastapi", "uvicorn", "python_multipart")
TEXT = "a run behind HTTP, and as a model in Label Studio"
EXAMPLE = "l2l serve runs/a --port 8321 --labels corrections --review labels"


def serve_options(one: argparse.ArgumentParser) -> None:
    """The options of `l2l serve`."""
    one.add_argument("run_folder", type=Path, metavar="RUN", help="the run's folder")
    one.add_argument("--host", default="127.0.0.1", metavar="H",
                     help="the address to listen at (127.0.0.1); with another one set L2L_TOKEN")  # fmt: skip
    one.add_argument("--token", metavar="T", help="a secret that clients have to know, but for /health and the empty "
                     "pages; rather in the environment, as L2L_TOKEN: other users of the machine see command "
                     "lines")  # fmt: skip
    one.add_argument("--port", type=int, default=8321, metavar="P", help="0 for any that is free (8321)")
    one.add_argument("--device", metavar="D", help="torch device (the run's own)")
    outlines_option(one)
    one.add_argument("--labels", type=Path, metavar="DIR",
                     help="keep what people correct there; l2l train --data reads it")  # fmt: skip
    one.add_argument("--review", type=Path, metavar="DIR",
                     help="what `l2l label` wrote, to be looked through at /review; decisions go to "
                     "--labels")  # fmt: skip
    one.add_argument("--images", type=Path, metavar="DIR",
                     help="where the pictures of --review are, if not where they were; of labels of shards, the "
                     "shards")  # fmt: skip
    one.add_argument("--max-pixels", type=int, default=25_000_000, metavar="N", help="of a picture (25000000)")
    one.add_argument("--max-sentences", type=int, default=64, metavar="N", help="in a request (64)")
    one.add_argument("--timeout", type=float, default=30.0, metavar="S", help="seconds of a request (30)")
    one.add_argument("--queue", type=int, default=64, metavar="N", help="requests that may wait (64)")


def serve(args: argparse.Namespace) -> None:
    """Run `l2l serve`. Raises `InputError`."""
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise InputError(f"{missing[0]} is not installed: pip install -e '.[serve]' -c constraints.txt")
    if not 0 <= args.port < 65536:
        raise InputError(f"--port {args.port}: 0 to 65535")
    if args.token is not None and not args.token.strip():
        raise InputError("--token takes a secret that is not empty; leave it out to ask for none")
    if args.review is not None and args.labels is None:
        raise InputError("--review needs --labels DIR, where what is decided is kept")
    if args.images is not None and args.review is None:
        raise InputError("--images is for --review: it says where the pictures to look at are")
    from l2l.commands import check_device
    from l2l.serving.limits import Limits
    from l2l.serving.server import serve

    if args.device is not None:
        check_device(args.device)
    limits = Limits(pixels=args.max_pixels, sentences=args.max_sentences, seconds=args.timeout, waiting=args.queue)
    serve(args.run_folder, host=args.host, port=args.port, device=args.device, labels=args.labels, review=args.review,
          images=args.images, limits=limits, token=args.token or "", outlines=args.outlines)  # fmt: skip
