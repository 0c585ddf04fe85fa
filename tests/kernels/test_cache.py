"""What somebody else may have put where compiled code is kept: it is not run, nor written through."""

import os
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
from megatv_kernels import cache

NAME = "kernels.sealed"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A cache folder that is ours, with one file in it."""
    path = tmp_path / "cache"
    monkeypatch.setenv("MEGATV_KERNELS_CACHE", str(path))
    assert cache.kept(NAME, lambda: b"ours") == b"ours"
    return path


def made_again():
    """What is loaded now; b"again" when nothing that was there was taken."""
    return cache.kept(NAME, lambda: b"again")


def never():
    raise AssertionError("it should have been refused")


def test_what_was_made_is_kept_for_its_owner_alone(folder):
    assert made_again() == b"ours"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {0o600}
    assert sorted(path.name for path in folder.iterdir()) == [NAME, f"{NAME}.lock"]


@pytest.mark.parametrize(
    "change",
    [
        lambda text: b"",
        lambda text: text[:31],
        lambda text: text[:-1],
        lambda text: text + b"!",
        lambda text: text[:-1] + bytes([text[-1] ^ 1]),
        lambda text: b"theirs",
    ],
    ids=["empty", "header cut", "cut", "longer", "one bit", "plain"],
)
def test_changed_content_is_made_again(folder, change):
    (folder / NAME).write_bytes(change((folder / NAME).read_bytes()))
    assert made_again() == b"again"
    assert cache.kept(NAME, never) == b"again"


@pytest.mark.parametrize("kind", [os.symlink, os.link])
def test_a_planted_link_is_neither_read_nor_written(folder, tmp_path, kind):
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")
    (folder / NAME).unlink()
    kind(victim, folder / NAME)
    assert made_again() == b"again"
    assert victim.read_bytes() == b"precious" and not (folder / NAME).is_symlink()


def test_a_planted_link_to_a_whole_file_is_not_read(folder, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    os.rename(folder / NAME, elsewhere)
    os.symlink(elsewhere, folder / NAME)
    assert made_again() == b"again"


def test_the_lock_empties_no_linked_file(folder, tmp_path):
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")
    (folder / f"{NAME}.lock").unlink()
    os.symlink(victim, folder / f"{NAME}.lock")
    with pytest.raises(ValueError, match=r"cannot be kept in .*cache: .*kernels.sealed.lock"):
        made_again()
    assert victim.read_bytes() == b"precious"


@pytest.mark.parametrize("kind", ["fifo", "folder"])
def test_what_is_no_file_blocks_nobody(folder, kind):
    (folder / NAME).unlink()
    if kind == "fifo":
        os.mkfifo(folder / NAME)
        assert made_again() == b"again"
    else:
        (folder / NAME).mkdir()
        with pytest.raises(ValueError, match="cannot be kept in"):
            made_again()
    assert not [path for path in folder.iterdir() if path.name.startswith(".")]


def test_a_file_that_others_may_write_is_made_again(folder):
    (folder / NAME).chmod(0o666)
    assert made_again() == b"again"


def test_a_file_of_enormous_size_is_not_read(folder):
    os.truncate(folder / NAME, 1 << 40)  # a hole: it takes no room
    assert made_again() == b"again"


@pytest.mark.parametrize("mode", [0o770, 0o707, 0o720, 0o1777])
def test_a_folder_that_others_may_write_is_refused(folder, mode):
    folder.chmod(mode)
    with pytest.raises(ValueError, match=f"others may write it .mode {mode:o}.; remove it or name another"):
        cache.kept(NAME, never)


def test_a_folder_that_others_could_only_read_is_closed(folder):
    folder.chmod(0o755)
    assert made_again() == b"ours"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_a_folder_of_another_user_is_refused(folder, monkeypatch):
    mine = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: mine + 1)
    with pytest.raises(ValueError, match=f"it belongs to user {mine}, not to you"):
        cache.kept(NAME, never)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_a_file_of_another_user_is_made_again(folder):
    os.chown(folder / NAME, 1, 1)
    assert made_again() == b"again"
    os.chown(folder, 1, 1)
    with pytest.raises(ValueError, match="it belongs to user 1"):
        cache.kept(NAME, never)


def test_a_folder_that_is_a_link_or_a_file_is_refused(folder, tmp_path, monkeypatch):
    os.symlink(folder, tmp_path / "link")
    (tmp_path / "file").touch()
    for name in ("link", "file"):
        monkeypatch.setenv("MEGATV_KERNELS_CACHE", str(tmp_path / name))
        with pytest.raises(ValueError, match="it is a link or a file"):
            cache.kept(NAME, never)


def test_a_folder_that_anybody_may_replace_is_refused(tmp_path, monkeypatch):
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o777)
    monkeypatch.setenv("MEGATV_KERNELS_CACHE", str(shared / "cache"))
    with pytest.raises(ValueError, match="anybody may put another in its place"):
        cache.kept(NAME, never)
    shared.chmod(0o1777)  # as /tmp: only owners rename
    assert cache.kept(NAME, lambda: b"ours") == b"ours"


def test_a_name_that_cannot_be_a_folder_is_said_in_one_sentence(monkeypatch):
    monkeypatch.setenv("MEGATV_KERNELS_CACHE", "/dev/null/cache")
    with pytest.raises(ValueError, match="name another folder in MEGATV_KERNELS_CACHE"):
        cache.kept(NAME, never)


RACE = """
import sys, time
from megatv_kernels import cache
def make():
    time.sleep(0.2)
    with open(sys.argv[1], "a") as file:
        file.write("made ")
    return b"x" * 100_000
assert cache.kept("race.sealed", make) == b"x" * 100_000
"""


def test_ranks_that_start_together_make_it_once(folder, tmp_path):
    command = [sys.executable, "-c", RACE, str(tmp_path / "made")]
    with ThreadPoolExecutor(4) as pool:
        done = list(pool.map(lambda _: subprocess.run(command, capture_output=True, text=True), range(4)))
    assert [one.returncode for one in done] == 4 * [0], done
    assert (tmp_path / "made").read_text() == "made "


@pytest.mark.parametrize("left_alone", [True, False])
def test_compilers_are_kept_from_a_folder_that_anybody_can_make(tmp_path, left_alone):
    """torch.compile runs what it finds in its folder, and that was one of a known name in /tmp."""
    env = {k: v for k, v in os.environ.items() if k not in ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR")}
    env["MEGATV_KERNELS_CACHE"] = str(tmp_path / "cache")
    if not left_alone:
        env |= {"TORCHINDUCTOR_CACHE_DIR": "/own", "TRITON_CACHE_DIR": "/own/triton"}
    code = "import torch._inductor.config; " if left_alone else ""
    code += "import os; from megatv_kernels import swiglu; import megatv_kernels.swiglu; import sys; "
    code += "sys.modules['megatv_kernels.swiglu'].compiled(); "
    code += "print(os.environ['TORCHINDUCTOR_CACHE_DIR'], os.environ['TRITON_CACHE_DIR'])"
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    mine = f"{tmp_path}/cache/inductor {tmp_path}/cache/triton"
    assert done.stdout.split("\n")[0] == (mine if left_alone else "/own /own/triton")
    assert (tmp_path / "cache").exists() == left_alone
