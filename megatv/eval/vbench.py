"""VBench (Huang et al. 2024): its scores of the same videos, from the file that its own package writes.

The package is not called from here: it fetches a dozen networks by itself, also in its local mode, and this
tool downloads nothing. Its file has {dimension: [mean, [{"video_path": ..., "video_results": ...}, ...]]}.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from megatv.regular_file import read_bytes
from megatv.untrusted import parse_json

MAX_BYTES, MAX_SCORE = 1 << 26, 1e300
HOW = "vbench evaluate --mode custom_input --videos_path DIR --dimension subject_consistency ..."


def read_vbench(file: Path | None, videos: dict[str, Path]) -> dict[str, dict[str, float]]:
    """{dimension: {name: score}} as VBench says them. ValueError for a missing video or another form.

    Videos are found by their paths, or by their file names where these differ from each other.
    """
    if file is None:
        raise ValueError(
            f"vbench's scores come from its own package (pip install vbench): run `{HOW}`, and give the "
            "*_eval_results.json that it writes as --vbench FILE"
        )
    try:
        tree = parse_json(read_bytes(file, MAX_BYTES, links=True))
        results = {_dimension(name): _by_path(entries) for name, (_, entries) in tree.items()}
    except OSError as error:
        raise ValueError(f"--vbench {file}: cannot be read ({error.strerror})") from None
    except (ValueError, TypeError, KeyError, AttributeError):
        raise ValueError(
            f"--vbench {file}: is no *_eval_results.json of VBench; it is written by `{HOW}`"
        ) from None
    if not results:
        raise ValueError(f"--vbench {file}: has no dimension; run `{HOW}`")
    names = [path.name for path in videos.values()]
    scores: dict[str, dict[str, float]] = {}
    for dimension, by_path in results.items():
        scores[dimension] = {}
        for name, path in videos.items():
            real = os.path.realpath(path)
            alike = [
                score
                for found, score in by_path.items()
                if found == real or (os.path.basename(found) == path.name and names.count(path.name) == 1)
            ]
            if len(alike) != 1:
                raise ValueError(
                    f"--vbench {file}: {dimension} has {len(alike)} scores for {path}; run VBench on "
                    "the same videos"
                )
            scores[dimension][name] = alike[0]
    return scores


def _dimension(name: str) -> str:
    if not re.fullmatch(r"[\w -]{1,80}", name):
        raise ValueError("a dimension's name is not one word")
    return name


def _by_path(entries: list[dict[str, Any]]) -> dict[str, float]:
    """Scores by the paths that the videos have when links are followed; nothing is opened."""
    found = {}
    for entry in entries:
        path, score = entry["video_path"], entry["video_results"]
        if not isinstance(path, str) or not isinstance(score, (int, float)) or not abs(score) < MAX_SCORE:
            raise ValueError("not a path and a finite score")
        found[os.path.realpath(path)] = float(score)
    return found
