"""A finished video as files: video.mp4, contact_sheet.png, transcript.json in a folder that appears whole."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from megatv.data.video import write_video
from megatv.regular_file import partial_folder, write_file
from megatv.sample.render import Strip, contact_sheet, enlarge
from megatv.sample.request import Request, Result

TRANSCRIPT = "transcript.json"


def require_out(out: Path, overwrite: bool) -> None:
    """Refuse (ValueError) a place that `write_results` could not write to, before any work is done.

    overwrite: a folder that holds an earlier result may be there, and nothing else ever is replaced
    """
    if out.is_dir() and not any(out.iterdir()):
        pass
    elif (out.exists() or out.is_symlink()) and not overwrite:
        raise ValueError(
            f"--out {out}: is not an empty directory; name another one, or give --overwrite to replace an "
            "earlier result"
        )
    elif out.exists() and (out.is_symlink() or not (out / TRANSCRIPT).is_file()):
        raise ValueError(f"--out {out}: holds no earlier result ({TRANSCRIPT}), so it is not replaced")
    with _writable(out):
        partial_folder(out).rmdir()


def require_folder(out: Path) -> None:
    """Refuse (ValueError) a folder of many results that cannot be made or written to."""
    with _writable(out):
        partial_folder(out / "a").rmdir()


def write_results(
    out: Path, request: Request, results: dict[str, Result], record: dict[str, Any], overwrite: bool = False
) -> None:
    """Write the videos of one request into the new folder `out`, which appears whole or not at all.

    record      what it takes to make them again, `settings` among it, for the transcript
    overwrite   replace the result that is there
    Raises ValueError when they cannot be written; nothing is left behind then.
    """
    with _writable(out), ExitStack() as leftovers:
        partial = partial_folder(out)
        leftovers.callback(shutil.rmtree, partial, ignore_errors=True)
        runs = []
        for name, result in results.items():
            file = "video.mp4" if len(results) == 1 else f"{name.replace(' ', '_')}.mp4"
            write_video(partial / file, enlarge(result.frames))
            runs.append({"name": name, "video": file, **_run_record(result)})
        spoken = [dataclasses.asdict(intervention) for intervention in request.interventions]
        tree = {"prompt": request.prompt, "interventions": spoken, **record, "runs": runs}
        write_file(partial / TRANSCRIPT, json.dumps(tree, indent=2, ensure_ascii=False) + "\n")
        strips = [Strip.of(name, result) for name, result in results.items()]
        contact_sheet(strips, request.prompt, _note(request, record["settings"])).save(
            partial / "contact_sheet.png"
        )
        if overwrite and out.exists():
            earlier = partial_folder(out)
            leftovers.callback(shutil.rmtree, earlier, ignore_errors=True)
            out.rename(earlier)
        partial.rename(out)


@contextmanager
def _writable(out: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ValueError(f"--out {out}: cannot be written ({error.strerror}); name another one") from None


def _note(request: Request, settings: dict[str, Any]) -> str:
    note = f"seed {request.seed}, {settings['steps']} {settings['solver']} steps"
    note += f", temperature {settings['temperature']:g}"
    note += f", top-p {settings['top_p']:g}" if settings["top_p"] != 1 else ""
    return note + (f", guidance {settings['cfg']:g}" if settings["cfg"] != 1 else "")


def _run_record(result: Result) -> dict[str, Any]:
    return {
        "chunks": [dataclasses.asdict(words) for words in result.transcript],
        "plan": result.plan,
        "ended": result.ended,
        "tokens": {
            "prompt": result.prompt_tokens,
            "text": result.text_tokens,
            "video": result.video_tokens,
        },
    }
