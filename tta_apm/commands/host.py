"""`tta-apm host`: run another repository's benchmark with our methods in it."""

from __future__ import annotations

import argparse
import importlib
from pathlib import Path

from tta_apm.cli import OK
from tta_apm.commands import options as shared
from tta_apm.errors import UserError

# Each host's module in tta_apm.interop.hosts, which has run(repo, words).
HOSTS = {"online-tta": "online_tta", "ttab": "ttab", "benchmark-tta": "benchmark_tta"}

EXAMPLES = """\
examples:
  tta-apm host online-tta --repo ../test-time-adaptation -- \\
      --cfg cfgs/imagenet_c/tent.yaml MODEL.ADAPTATION apm MODEL.USE_CLIP True \\
      MODEL.ARCH ViT-B-16 MODEL.WEIGHTS openai APM.STEPS 20
  tta-apm host ttab --repo ../ttab -- --model_adaptation_method apm \\
      CLIP.MODEL ViT-B-16-quickgelu CLIP.WEIGHTS openai
  tta-apm host benchmark-tta --repo ../Benchmark-TTA -- \\
      --cfg cfgs/Online_TTA/imagenet_c/source.yaml MODEL.ADAPTATION tta_apm_tent
"""


def make_parser() -> argparse.ArgumentParser:
    """The parser of the arguments before `--`."""
    parser = shared.make_parser(
        "host", "Run another repository's benchmark, in your clone of it, with our methods among "
        "its own. The arguments after -- are the host's own command line, with our settings as KEY "
        "VALUE pairs at the end. Paths in it are relative to the host's folder. If the host has a "
        "method of the same name, ours is called tta_apm_NAME.", EXAMPLES)
    parser.usage = "tta-apm host HOST --repo PATH -- ARGUMENT ..."
    parser.add_argument("host", choices=HOSTS, help="the benchmark; docs/hosts/ has a page on each")
    parser.add_argument("--repo", required=True, type=Path, help="the folder of your clone")
    return parser


def run(options: argparse.Namespace) -> int:
    """Run the host with the arguments after `--`."""
    try:
        host = importlib.import_module(f"tta_apm.interop.hosts.{HOSTS[options.host]}")
        host.run(options.repo, options.passed_on)
    except ImportError as error:
        raise UserError(f"{options.host} does not start on the packages installed here: {error}; "
                        f"see docs/hosts/{options.host}.md") from error
    return OK
