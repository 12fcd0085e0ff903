"""Ask a multimodal model behind an OpenAI-compatible server where each sentence points, and see how good it is.

    python examples/ask_a_server.py DATA PRIORS --url http://127.0.0.1:8000/v1 --model Qwen/Qwen2.5-VL-7B-Instruct

Needs the extra `endpoint`; the key, if there is one, is in OPENAI_API_KEY. What was answered is not asked again. How
good the answers are is measured on the pairs of a split of DATA that have masks.
"""

from __future__ import annotations

import argparse

import l2l
from l2l.evaluate import table
from l2l.priors.endpoint import Endpoint


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", metavar="DATA")
    parser.add_argument("priors", metavar="PRIORS")
    parser.add_argument("--url", required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--split", default="val")
    parser.add_argument("--out", default="runs/prior", help="folder of the prior alone, as a run (runs/prior)")
    args = parser.parse_args()

    source = Endpoint(url=args.url, model=args.model)
    l2l.make_priors(l2l.read(args.data), args.priors, source=source).close()
    config = l2l.Config().replace("data", data=args.data, prior=args.priors, rate=1.0)
    config = config.replace("train", method="prior_only")
    run = l2l.train(config, args.out, resume=True)
    print(table([(one.method, one.scores) for one in l2l.evaluate(run, split=args.split)]))


if __name__ == "__main__":
    main()
