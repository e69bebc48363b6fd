"""Stand-ins of hosts, with their calls, arguments, grad modes and order of resets, and our words.
"""

from __future__ import annotations

from places import ROOT
from tta_apm.backbones.weights.files import PACKAGED
from tta_apm.interop.hosts import launch

STANDINS = ROOT / "tests" / "standins"
DOMAINS = [f"{name}{severity}" for name in ("fog", "snow") for severity in (5, 3)]
SMALL = dict(image_size=32, patch=8, hidden=[16], code=16, steps=3, lr=0.01)
SMALL_PAIRS = [word for key, value in SMALL.items()
               for word in (f"APM.{key.upper()}", str(value))]
IN_HOST_CLIP = ["MODEL.USE_CLIP", "True", "MODEL.ARCH", "digits_clip", "MODEL.WEIGHTS",
                str(PACKAGED / "digits_clip.safetensors")]
OUR_CLIP = ["CLIP.MODEL", "digits_clip", "CLIP.WEIGHTS", "digits_clip.safetensors",
            "CLIP.TEMPLATES", "digits"]


def standin(host: str, *modules: str):
    """The modules of a stand-in, imported separately."""
    folder = STANDINS / host
    tops = [name.split(".")[0] for name in modules]
    with launch.inside(folder), launch.own_modules(tops, {}):
        return [__import__(name, fromlist=["_"]) for name in modules]
