"""PSNR of codecs on videos and on the toy world, as a table and as JSON.

    python tools/codec_report.py [VIDEO ...] [--size 320x192] [--toy EPISODES]
        [--codec KIND[=PATH] ...] [--out report.json]

Every codec sees whole groups of 49 frames at 16 fps. `first` and `rest` are the frames of one-frame and of
four-frame latents. For the toy world it also says how many frames its reader reads right, the worst part of
the state first.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any, cast, get_args, get_type_hints

from megatv.config import CodecConfig
from megatv.log import main_guard, progress, say
from megatv.regular_file import require_place
from train_codec import count, size  # the tool beside this one


def codec_config(text: str) -> CodecConfig:
    """`dct` or `KIND=PATH`."""
    kind, _, path = text.partition("=")
    kinds = get_args(get_type_hints(CodecConfig)["kind"])
    if kind not in kinds:
        raise argparse.ArgumentTypeError(f"{text!r}: write KIND or KIND=PATH, KIND one of {', '.join(kinds)}")
    return CodecConfig(cast(Any, kind), path or None)  # kind was just checked


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("videos", type=Path, nargs="*", metavar="VIDEO")
    parser.add_argument("--size", type=size, default=(320, 192), help="of the videos, in pixels (320x192)")
    parser.add_argument(
        "--toy", type=count, metavar="EPISODES", help="so many held-out toy-world episodes too"
    )
    parser.add_argument(
        "--codec", type=codec_config, action="append", metavar="KIND[=PATH]", help="default: dct"
    )
    parser.add_argument(
        "--trust-codec", action="store_true", help="load a TorchScript codec, which can run any code"
    )
    parser.add_argument("--out", type=Path, help="JSON file to write")
    options = parser.parse_args()
    require_place(options.out)
    if not options.videos and not options.toy:
        parser.error("nothing to report on: name videos, or --toy EPISODES")

    # these import torch, which takes seconds
    from megatv.eval.codec_quality import report_toy_world, report_video
    from megatv.model.codec import load_codec

    rows = []
    print(f"{'codec':<9}{'video':<28}{'frames':>7}{'PSNR':>7}{'first':>7}{'rest':>7}  dB")
    for config in options.codec or [CodecConfig("dct")]:
        codec = load_codec(config, trust=options.trust_codec)
        found = [
            report_video(codec, path, *options.size) for path in progress(options.videos, desc=config.kind)
        ]
        if options.toy:
            found.append(report_toy_world(codec, options.toy))
        for row in found:
            rows.append({"codec": config.kind, "path": config.path, **row})
            read = "".join(f"  {name} {share:.2%}" for name, share in row.get("read", {}).items())
            say(
                f"{config.kind:<9}{row['video'][:27]:<28}{row['frames']:>7}{row['psnr']:>7.2f}"
                f"{row['psnr_first']:>7.2f}{row['psnr_rest']:>7.2f}{read}"
            )
    if options.out:
        options.out.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main_guard(main)
