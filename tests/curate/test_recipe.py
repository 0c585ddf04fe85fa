"""A recipe is as strict as a run's config, and refuses at the start what cannot end well."""

from pathlib import Path

import pytest

from megatv.curate.recipe import load_recipe

SPORTS = Path(__file__).parents[2] / "configs/data/sports.yaml"
PEOPLE = ["captions.words_from=words.jsonl", "quality=null"]


def test_the_shipped_recipe_reads_with_a_model_or_with_people():
    served = load_recipe(SPORTS, ["endpoint={url: 'http://localhost:8000/v1', model: seer}"])
    assert served.endpoint.model == "seer" and served.quality.min_score == 6.0
    spoken = load_recipe(SPORTS, [*PEOPLE, "source.keywords=[game highlights, match]"])
    assert spoken.endpoint is None and spoken.source.keywords == ("game highlights", "match")


def test_paths_that_workers_read_hold_in_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").mkdir()
    recipe = load_recipe(SPORTS, [*PEOPLE, "embed.model=model"])
    assert recipe.captions.words_from == str(tmp_path / "words.jsonl")
    assert recipe.embed.model == str(tmp_path / "model")
    assert load_recipe(SPORTS, PEOPLE).embed.model == "colour-gradient-histogram"


@pytest.mark.parametrize(
    ("overrides", "fault"),
    [
        ([], "nobody is there to write captions: give endpoint.url"),
        (["captions.words_from=words.jsonl"], "set quality to null"),
        ([*PEOPLE, "clip.min_seconds=6"], "unknown key 'clip'; did you mean 'clips'"),
        ([*PEOPLE, "source.keywords=ball"], "source.keywords must be a list"),
        ([*PEOPLE, "source.keywords=[3]"], r"source.keywords\[0\] must be text"),
        ([*PEOPLE, "clips.min_seconds=2"], "less than a group of 49 frames"),
        ([*PEOPLE, "export.width=300"], "multiple of 16"),
        (["endpoint={url: 'localhost:8000', model: m}"], "give one such as http://localhost:8000/v1"),
        (["endpoint={url: 'https://x/v1', model: m, concurrency: 0}"], "endpoint.concurrency is 0"),
        (["endpoint={url: 'https://x/v1', model: m, concurrency: 2000}"], "at most 1024"),
        (["endpoint={url: 'https://x/v1', model: m, image_width_pixels: 1000000}"], "at most 4096"),
        (["endpoint={url: 'https://x/v1', model: m, timeout_seconds: 1.0e9}"], "at most 3600"),
        (
            ["endpoint={url: 'https://x/v1', model: m, retries: 1000000}"],
            "endpoint.retries is 1000000: it must be 0",
        ),
        (
            [*PEOPLE, "motion.width_pixels=1000000"],
            "motion.width_pixels is 1e\\+06: it must be at most 16384",
        ),
        (
            [*PEOPLE, "shots.frames_per_second=1e300"],
            "shots.frames_per_second is 1e\\+300: it must be at most",
        ),
        (
            [*PEOPLE, "embed.batch_frames=1000000000"],
            "embed.batch_frames is 1e\\+09: it must be at most 4096",
        ),
        (
            [*PEOPLE, "source.min_seconds=1e9"],
            "source.min_seconds is 1e\\+09: it must be 0 to 86400",
        ),
        ([*PEOPLE, "source.min_seconds=-1"], "source.min_seconds is -1: it must be 0 to 86400"),
        (
            [*PEOPLE, "source.min_width_pixels=100000"],
            "source.min_width_pixels is 100000: it must be 0 to 16384",
        ),
        ([*PEOPLE, "source.min_height_pixels=20000"], "min_height_pixels is 20000: it must be 0 to 16384"),
        ([*PEOPLE, "source.min_frames_per_second=2000"], "per_second is 2000: it must be 0 to 1000"),
        (["quality={frames: 300}"], "quality.frames is 300: it must be 1 to 256"),
        (["quality={frames: 0}"], "quality.frames is 0: it must be 1 to 256"),
        (["quality={frame_seconds: 61}"], "quality.frame_seconds is 61: it must be above 0 and at most 60"),
        (["quality={frame_seconds: 0}"], "quality.frame_seconds is 0: it must be above 0 and at most 60"),
        (["quality={min_score: 11}"], "quality.min_score is 11: it must be 1 to 10"),
        ([*PEOPLE, "captions.segment_words=1001"], "captions.segment_words is 1001: it must be 1 to 1000"),
        ([*PEOPLE, "captions.frames_per_clip=257"], "captions.frames_per_clip is 257: it must be 1 to 256"),
        ([*PEOPLE, "export.width=16400"], "export.width is 16400: it must be a multiple of 16, 16 to 16384"),
        ([*PEOPLE, "clips.peak_mads=-1"], "clips.peak_mads is -1.0: it must not be negative"),
        (
            [*PEOPLE, "captions.words_from=~no-such-user/x"],
            "captions.words_from is '~no-such-user/x': `~` stands",
        ),
        (["endpoint={url: 'http://x/v1', model: m}"], "endpoint.url is http to another machine"),
        (
            ["endpoint={url: 'https://x/v1', model: m, api_key_env: HOME}"],
            "endpoint.api_key_env must be the name",
        ),
    ],
)
def test_what_cannot_work_is_refused(overrides, fault):
    with pytest.raises(ValueError, match=fault):
        load_recipe(SPORTS, overrides)
