"""Make the paper's evaluation sets (TV2TV sections 3.3 and 4.2.2): what to sample, and the studies over it.

    python tools/make_eval_set.py csgo --csgo DIR.. --out OUT [--run ARM=RUN].. [--seed S]
    python tools/make_eval_set.py sports --videos DIR --captions FILE.jsonl --out OUT [--run ARM=RUN]..
    python tools/make_eval_set.py normalise STUDY.yaml --out OUT [--width 320] [--height 192]

`csgo` takes frames of recordings that no model was trained on (the paper: "a held-out expert gameplay set";
Pearce and Zhu's folder `dataset_dm_expert_dust2`), a frame of its own for each start: of 100 short videos, of
40 of 64 seconds, and of 15 times 10 steered videos. `sports` takes the first frame and the meta-caption of 30
held-out videos, for five videos each; the captions file is that of `tools/make_shards.py`. Both write

    OUT/frames/START.png          the pictures that videos start from
    OUT/starts.jsonl              where each picture comes from
    OUT/ARM/SET.jsonl             a batch of `python -m megatv.sample` for each of tv2tv, t2v and think2v
    OUT/ARM/steered_videos.jsonl  csgo: a study's manifest, with captions, times and controls
    OUT/study/NAME.yaml           the paper's studies, for `python -m megatv.eval.human`

and print the commands that sample. An item has the same name, picture, prompt and seed in every arm.

`normalise` brings the systems of a study, such as models of others, to one size and 16 frames a second, and
the videos of one name to the length of the shortest (section 4.2.2 says size and rate). The whole picture is
scaled, without bars or cutting, as training frames are; where that changes its shape, a line says so. Our
own videos are written anew as well, so that all went through the same encoder. OUT/study.yaml is the study
over the copies.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from megatv.choices import HEIGHT, WIDTH
from megatv.log import main_guard


def main() -> int:
    """Do what the verb says; the exit code."""
    args = _arguments()
    from megatv.eval.eval_set_files import make  # imports torch, which takes seconds

    return make(args)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    for verb, what in (
        ("csgo", "the set of section 3.3"),
        ("sports", "the set of section 4.2.2"),
        ("normalise", "copies of a study's videos, alike in size, rate and length"),
    ):
        one = verbs.add_parser(verb, help=what, description=what)
        one.add_argument("--out", type=Path, required=True, help="a folder that does not exist yet")
        if verb == "normalise":
            one.add_argument("study", type=Path, help="YAML of a study over the videos as they are")
            one.add_argument("--width", type=int, default=WIDTH)
            one.add_argument("--height", type=int, default=HEIGHT)
            continue
        one.add_argument("--run", action="append", default=[], metavar="ARM=RUN", help="for the commands")
        one.add_argument("--seed", type=int, default=0, help="of the choice of starts and of the videos")
        if verb == "csgo":
            one.add_argument("--csgo", type=Path, nargs="+", required=True, help="held-out recordings")
        else:
            one.add_argument("--videos", type=Path, required=True, help="folder of the held-out videos")
            one.add_argument("--captions", type=Path, required=True, help="their captions, a JSON line each")
    return parser.parse_args()


if __name__ == "__main__":
    main_guard(main)
