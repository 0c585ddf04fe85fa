"""Episodes of the published layout: what is read, how it is cut and described, and what is refused."""

import sys

import numpy as np
import pytest

from megatv.data import csgo
from megatv.data.csgo_actions import MOUSE_X, MOUSE_Y, GameAction, encode_action
from megatv.data.csgo_episode import Episode

SIZE = {"width": 28, "height": 16}


def numbered_action(frame):
    """Another action for each of the first 345 frames."""
    return GameAction(mouse_x=MOUSE_X[frame % 23], mouse_y=MOUSE_Y[frame // 23])


@pytest.fixture
def make(write_episode, tmp_path):
    """Write an episode of so many frames: frame i has brightness i in blue and numbered actions."""

    def write(name="a", frames=110):
        pictures = np.zeros((frames, 150, 280, 3), np.uint8)
        pictures[..., 0] = np.arange(frames)[:, None, None]
        pictures[..., 2] = 200
        actions = [encode_action(numbered_action(frame)) for frame in range(frames)]
        return write_episode(tmp_path / f"{name}.hdf5", pictures, np.array(actions))

    return write


def test_pictures_turn_from_bgr_to_rgb_and_actions_are_read(make):
    with Episode(make(frames=12)) as episode:
        assert episode.frames == 12
        picture = episode.picture(11)
        assert picture.shape == (150, 280, 3) and picture.dtype == np.uint8
        assert picture[70, 140].tolist() == [200, 0, 11]
        assert episode.actions() == [numbered_action(frame) for frame in range(12)]


def test_pictures_are_stretched_not_letterboxed():
    """A ramp from edge to edge stays one, in both directions, and no border appears."""
    x, y = np.linspace(0, 250, 280), np.linspace(0, 250, 150)
    picture = np.stack([np.tile(x, (150, 1)), np.tile(y[:, None], (1, 280)), np.full((150, 280), 7)], -1)
    large = csgo.resize(picture.astype(np.uint8), 320, 192)
    assert large.shape == (192, 320, 3)
    assert np.abs(large[..., 0].astype(float) - np.linspace(0, 250, 320)).max() < 2
    assert np.abs(large[..., 1].astype(float) - np.linspace(0, 250, 192)[:, None]).max() < 2
    assert (large[..., 2] == 7).all()


@pytest.mark.parametrize("lag", [0, 1, -2])
def test_clips_are_consecutive_and_their_words_belong_to_their_frames(make, lag):
    path = make(frames=250)
    assert csgo.check_episode(path, length=98, action_lag=lag) == 3
    clips = list(csgo.episode_clips(path, **SIZE, length=98, action_lag=lag))
    start = max(lag, 0)  # with a lag, the first frames have no action
    assert [clip.first_frame for clip in clips] == [start, start + 98, start + 196]
    assert [len(clip.frames) for clip in clips] == [98, 98, 54 - abs(lag)]
    for clip in clips:
        numbers = np.arange(clip.first_frame, clip.first_frame + len(clip.frames))
        assert np.array_equal(clip.frames[:, 8, 14], np.stack([200 + 0 * numbers, 0 * numbers, numbers], -1))
        lines = [line for caption in clip.captions for line in caption.text.split("\n")]
        told = [numbered_action(number - lag).words() for number in numbers]
        assert lines == told[: len(lines)] and len(told) - len(lines) < 4


def test_a_thousand_frames_give_ten_clips(make):
    """1000 = 10 x 98 + 20, and 20 frames are less than a group."""
    path = make(frames=20)
    with Episode(path) as episode:
        assert csgo.frames_with_actions(episode, 3) == range(3, 20)
        episode.frames = 1000
        usable = csgo.frames_with_actions(episode, 0)
    assert sum(1 for _ in csgo.cut((np.empty(0) for _ in usable), 98)) == 10
    with pytest.raises(ValueError, match=r"a\.hdf5: has 20 frames, and an action lag of -20 leaves none"):
        csgo.check_episode(path, length=98, action_lag=-20)


def broken(path, change):
    h5py = pytest.importorskip("h5py")
    with h5py.File(path, "a") as file:
        change(file)


def replace(key, value):
    def change(file):
        del file[key]
        file[key] = value

    return change


def remove(key):
    return lambda file: file.pop(key)


def group(key):
    def change(file):
        del file[key]
        file.create_group(key)

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (remove("frame_5_x"), "frame_5_x is missing, though later keys of its 9 frames"),
        (remove("frame_8_y"), "frame_8_y is missing"),
        (lambda file: file.clear(), "has no key frame_0_x, so it is not an episode"),
        (
            replace("frame_3_x", np.zeros((192, 320, 3), np.uint8)),
            r"frame_3_x is uint8 \[192, 320, 3\] instead",
        ),
        (
            replace("frame_3_x", np.zeros((150, 280, 3))),
            r"frame_3_x is float64 \[150, 280, 3\] instead of uint8",
        ),
        (replace("frame_4_y", np.zeros(50)), r"frame_4_y has the shape \[50\] instead of \[51\]"),
        (replace("frame_4_y", np.zeros(51)), "frame_4_y says 0 steps of mouse_x"),
        (replace("frame_4_y", "jump"), "frame_4_y holds object instead of numbers"),
        (group("frame_6_y"), "frame_6_y is not an array"),
    ],
)
def test_what_is_not_of_the_layout_is_refused_in_one_sentence(make, change, message):
    path = make(frames=9)
    broken(path, change)
    with pytest.raises(ValueError, match=message) as caught:
        csgo.check_episode(path, length=98)
        list(csgo.episode_clips(path, **SIZE, length=98))
    text = str(caught.value)
    assert (
        text.startswith(f"{path}: ") and "fetch the file again or leave it out" in text and "\n" not in text
    )


@pytest.mark.parametrize("size", [0, 100, 0.5, 0.99])
def test_files_cut_short_are_refused(make, size):
    path = make(frames=6)
    data = path.read_bytes()
    path.write_bytes(data[: size if size in (0, 100) else int(size * len(data))])
    with pytest.raises(ValueError, match=r"a\.hdf5: .*fetch the file again") as caught:
        csgo.check_episode(path, length=98)
    assert "\n" not in str(caught.value)


def test_without_h5py_the_line_that_installs_it_is_given(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "h5py", None)
    (tmp_path / "a.hdf5").touch()
    with pytest.raises(ValueError, match=r"h5py is not installed.*`pip install .*data.txt`"):
        Episode(tmp_path / "a.hdf5")


def test_episodes_are_found_in_folders_and_by_name(tmp_path):
    files = [tmp_path / "tar1/b.hdf5", tmp_path / "tar2/a.hdf5", tmp_path / "tar2/a.txt"]
    for file in files:
        file.parent.mkdir(exist_ok=True)
        file.touch()
    assert csgo.find_episodes([tmp_path]) == [files[1], files[0]]
    assert csgo.find_episodes([files[0], tmp_path / "tar1"]) == [files[0]]
    with pytest.raises(ValueError, match=r"none\.hdf5: does not exist"):
        csgo.find_episodes([tmp_path / "none.hdf5"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"empty: holds no \.hdf5 files"):
        csgo.find_episodes([tmp_path / "empty"])
    (tmp_path / "tar1/a.hdf5").touch()
    with pytest.raises(ValueError, match=r"tar2/a\.hdf5: has the same name as .*tar1/a\.hdf5"):
        csgo.find_episodes([tmp_path])


@pytest.fixture
def published(tmp_path):
    return [tmp_path / f"hdf5_dm_july2021_{number}.hdf5" for number in range(1, 5504)]


def test_the_split_depends_on_an_episodes_own_name_alone(published):
    train, val = (csgo.split_episodes(published, split) for split in ("train", "val"))
    assert sorted(train + val) == sorted(published) and not set(train) & set(val)
    assert 400 < len(val) < 600  # diamond holds 500 of these 5503 out
    some = published[::7]
    assert csgo.split_episodes(some, "val") == [path for path in some if path in val]
    # fixed for ever, or a new version of the program would train on what was held out
    assert [path.stem for path in val[:3]] == [
        "hdf5_dm_july2021_1",
        "hdf5_dm_july2021_6",
        "hdf5_dm_july2021_8",
    ]


def test_a_folder_has_the_held_out_episodes(tmp_path):
    """Expert play, as the paper's: no episode of the folder is trained on, wherever its copy lies."""
    expert, scraped = tmp_path / "dataset_dm_expert_dust2", tmp_path / "scraped"
    for folder, names in ((expert, "ab"), (scraped, "bcd")):
        folder.mkdir()
        for name in names:
            (folder / f"{name}.hdf5").touch()
    episodes = sorted(scraped.iterdir())
    assert [path.stem for path in csgo.split_episodes(episodes, "train", expert)] == ["c", "d"]
    assert [path.stem for path in csgo.split_episodes(sorted(expert.iterdir()), "val", expert)] == ["a", "b"]


def test_a_list_names_the_held_out_episodes(published, tmp_path):
    names = tmp_path / "test_split.txt"
    names.write_text("hdf5_dm_july2021_3.hdf5\nhdf5_dm_july2021_5.hdf5\n\nelsewhere.hdf5\n")
    val = csgo.split_episodes(published, "val", names)
    assert [path.stem for path in val] == ["hdf5_dm_july2021_3", "hdf5_dm_july2021_5"]
    assert len(csgo.split_episodes(published, "train", names)) == 5501
    with pytest.raises(
        ValueError, match=r"none of 2 episodes is left for the split 'train': .*test_split\.txt"
    ):
        csgo.split_episodes(val, "train", names)
    assert csgo.split_episodes(published[:1], "train", names) == published[:1]  # a part of the recordings
    with pytest.raises(ValueError, match="none of 1 episodes is left for the split 'val'"):
        csgo.split_episodes(published[:1], "val", names)
    for line in ("hdf5_dm_july2021_7", "part1/hdf5_dm_july2021_7.hdf5"):
        (tmp_path / "wrong.txt").write_text(f"hdf5_dm_july2021_3.hdf5\n{line}\n")
        with pytest.raises(ValueError, match=rf"wrong\.txt line 2: '{line}' is not the name of an episode"):
            csgo.split_episodes(published, "train", tmp_path / "wrong.txt")
    with pytest.raises(ValueError, match=r"absent\.txt: cannot be read"):
        csgo.split_episodes(published, "val", tmp_path / "absent.txt")
    lone = csgo.split_episodes(published, "train")[:1]
    with pytest.raises(ValueError, match=r"left for the split 'val': the hash of their names .one in 11 "):
        csgo.split_episodes(lone, "val")
