import json

import pytest

from megatv.eval.vbench import read_vbench


def results(file, **dimensions):
    file.write_text(json.dumps({
        name: [0.5, [{"video_path": path, "video_results": score} for path, score in scores.items()]]
        for name, scores in dimensions.items()
    }))  # fmt: skip
    return file


def test_scores_are_found_by_path_or_by_file_name(tmp_path):
    videos = {"a": tmp_path / "a/video.mp4", "b": tmp_path / "b/video.mp4", "c": tmp_path / "c.mp4"}
    scores = {str(videos["a"]): 0.25, str(videos["b"]): 0.75, "/elsewhere/c.mp4": True}
    file = results(tmp_path / "x_eval_results.json", dynamic_degree=scores)
    assert read_vbench(file, videos) == {"dynamic_degree": {"a": 0.25, "b": 0.75, "c": 1.0}}


def test_what_is_missing_is_said(tmp_path):
    videos = {"c": tmp_path / "c.mp4"}
    with pytest.raises(ValueError, match=r"pip install vbench.*and give the \*_eval_results.json"):
        read_vbench(None, videos)
    with pytest.raises(ValueError, match=r"gone.json: cannot be read \(No such file"):
        read_vbench(tmp_path / "gone.json", videos)
    file = results(tmp_path / "x.json", motion_smoothness={"d.mp4": 0.5})
    with pytest.raises(
        ValueError, match=r"motion_smoothness has 0 scores for .*c.mp4; run VBench on the same"
    ):
        read_vbench(file, videos)


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        '{"a": 1}',
        "[" * 100_000,
        "9" * 5000,
        '{"a": [1, [{"video": "c.mp4"}]]}',
        *[
            f'{{"a": [1, [{{"video_path": {path}, "video_results": {score}}}]]}}'
            for path, score in [
                ('"c.mp4"', "NaN"),
                ('"c.mp4"', "1" + "0" * 400),
                ('"c.mp4"', '"1"'),
                ("3", "1"),
                ('"c\\u0000"', "1"),
                ('"\\ud800"', "1"),
            ]
        ],
        '{"\\u001b[2J": [1, [{"video_path": "c.mp4", "video_results": 1}]]}',
    ],
)
def test_other_files_are_refused(tmp_path, text):
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(ValueError, match=r"x.json: is no \*_eval_results.json of VBench"):
        read_vbench(tmp_path / "x.json", {"c": tmp_path / "c.mp4"})
