"""A finished video as files: video.mp4, contact_sheet.png, transcript.json in a folder that appears whole."""

from __future__ import annotations

import dataclasses
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

from megatv.data.video import write_video
from megatv.regular_file import write_file
from megatv.sample.render import Strip, contact_sheet, enlarge
from megatv.sample.request import Request, Result


def write_results(out: Path, request: Request, results: dict[str, Result], record: dict[str, Any]) -> None:
    """Write the videos of one request into the new folder `out`, which appears whole or not at all.

    record: what it takes to make them again, `settings` among it, for the transcript. Raises ValueError when
    they cannot be written; nothing is left behind then.
    """
    partial = None
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}.partial-"))
        partial.chmod(0o755)
        runs = []
        for name, result in results.items():
            file = "video.mp4" if len(results) == 1 else f"{name.replace(' ', '_')}.mp4"
            write_video(partial / file, enlarge(result.frames))
            runs.append({"name": name, "video": file, **_run_record(result)})
        spoken = [dataclasses.asdict(intervention) for intervention in request.interventions]
        tree = {"prompt": request.prompt, "interventions": spoken, **record, "runs": runs}
        write_file(partial / "transcript.json", json.dumps(tree, indent=2, ensure_ascii=False) + "\n")
        strips = [Strip.of(name, result) for name, result in results.items()]
        contact_sheet(strips, request.prompt, _note(request, record["settings"])).save(
            partial / "contact_sheet.png"
        )
        partial.rename(out)
    except OSError as error:
        raise ValueError(f"--out {out}: cannot be written ({error.strerror}); name another one") from None
    finally:
        if partial is not None:
            shutil.rmtree(partial, ignore_errors=True)


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
