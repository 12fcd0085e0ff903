"""How fast a run answers over HTTP: p50, p95 and throughput for clients that ask all at once, on this machine.

    python benchmarks/serve.py RUN [--clients 16] [--requests 20] [--sentences 1] [--pictures 8] [--device cpu]

Starts the server as a process of its own at a free port of loopback. Each client sends its next request when it has
the answer to the one before; pictures are drawn scenes, sent as PNG files of --side pixels, and shared by the clients
(--pictures 1: all ask about the same one). What is measured includes sending, decoding, waiting, the network and RLE.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import statistics
import subprocess
import sys
import time

import httpx
from PIL import Image

from l2l.data.images import load

SENTENCES = ("the red star", "the leftmost ring", "the big blue square", "a disc", "the small triangle", "left circle")


def pictures(count: int, side: int) -> list[bytes]:
    """Drawn scenes as PNG files."""
    made = []
    for index in range(count):
        out = io.BytesIO()
        Image.fromarray(load(f"scenes:home:0:{index}")).resize((side, side)).save(out, format="PNG")
        made.append(out.getvalue())
    return made


async def client(number: int, args: argparse.Namespace, url: str, files: list[bytes], taken: list[float]) -> int:
    """One client after another of its requests; returns how many failed."""
    failed = 0
    async with httpx.AsyncClient(base_url=url, timeout=120) as http:
        for turn in range(-1, args.requests):  # the first one warms up
            sentences = [SENTENCES[(number + turn + each) % len(SENTENCES)] for each in range(args.sentences)]
            began = time.perf_counter()
            reply = await http.post("/predict", files={"image": files[(number + turn) % len(files)]},
                                    data={"sentence": sentences})  # fmt: skip
            if turn >= 0:
                taken.append(time.perf_counter() - began)
                failed += reply.status_code != 200
    return failed


async def ask_all(args: argparse.Namespace, url: str) -> None:
    """All clients at once, and what came out."""
    files, taken = pictures(args.pictures, args.side), []
    began = time.perf_counter()
    failed = sum(await asyncio.gather(*(client(one, args, url, files, taken) for one in range(args.clients))))
    seconds = time.perf_counter() - began
    cuts = statistics.quantiles(taken, n=20)
    count = args.clients * (args.requests + 1)  # the warming up takes its share of the time
    print(f"{args.clients} clients x {args.requests} requests, {args.sentences} sentences each, {args.pictures} "
          f"pictures of {args.side} x {args.side}: p50 {1000 * cuts[9]:.0f} ms, p95 {1000 * cuts[18]:.0f} ms, "
          f"{count / seconds:.1f} requests/s, {count * args.sentences / seconds:.1f} sentences/s, {failed} failed")
    async with httpx.AsyncClient(base_url=url) as http:
        shown = (await http.get("/metrics")).text
    held = {line.split()[0]: float(line.split()[1]) for line in shown.splitlines() if line.startswith("l2l_batch_")}
    batches = held["l2l_batch_requests_count"]
    print(f"{batches:.0f} batches, on average {held['l2l_batch_requests_sum'] / batches:.1f} requests with "
          f"{held['l2l_batch_pictures_sum'] / batches:.1f} pictures")  # fmt: skip


def reached(server: subprocess.Popen[str]) -> tuple[str, str]:
    """What `l2l serve` says of itself, and its address, once it answers there. Its stdout is a pipe.

    Raises:
        SystemExit: if it does not start.
    """
    assert server.stdout is not None
    line = server.stdout.readline()
    if "; http" not in line:
        raise SystemExit("the server did not start")
    said, rest = line.split("; ", 1)
    url = rest.split(",")[0]
    while True:
        try:
            httpx.get(f"{url}/health")
            return said, url
        except httpx.TransportError:
            time.sleep(0.1)


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run")
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--requests", type=int, default=20)
    parser.add_argument("--sentences", type=int, default=1)
    parser.add_argument("--pictures", type=int, default=8)
    parser.add_argument("--side", type=int, default=480)
    parser.add_argument("--device", default=None)
    args = parser.parse_args()
    more = ["--device", args.device] if args.device else []
    command = [sys.executable, "-m", "l2l", "serve", args.run, "--port", "0", "--queue", str(args.clients),
               "--timeout", "100", *more]  # fmt: skip
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            said, url = reached(server)
            print(said)
            asyncio.run(ask_all(args, url))
        finally:
            server.terminate()


if __name__ == "__main__":
    main()
