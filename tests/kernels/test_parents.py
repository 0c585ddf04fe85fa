"""A folder whose parents others may write can be replaced by another one: such a place is told."""

import grp
import os
import pwd
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from megatv_kernels import cache, parents

ME = os.geteuid()


@pytest.fixture
def shared(tmp_path):
    """shared(mode): a folder of that mode above the one that is asked about."""
    folder = tmp_path / "shared"
    folder.mkdir()

    def make(mode, **owner):
        folder.chmod(mode)
        if owner:
            os.chown(folder, owner.get("uid", -1), owner.get("gid", -1))
            folder.chmod(mode)
        return folder / "below/cache"

    (folder / "below").mkdir(mode=0o755)
    return make


@pytest.fixture
def accounts(monkeypatch):
    """accounts(groups, users): what the system knows; groups as {gid: (name, members)}."""

    def know(groups, users):
        known = [SimpleNamespace(pw_name=name, pw_uid=uid, pw_gid=gid) for name, uid, gid in users]
        monkeypatch.setattr(pwd, "getpwall", lambda: known)
        found = {gid: SimpleNamespace(gr_name=name, gr_mem=list(mem)) for gid, (name, mem) in groups.items()}
        monkeypatch.setattr(grp, "getgrgid", lambda gid: found[gid])

    return know


@pytest.mark.parametrize("mode", [0o700, 0o755, 0o1777, 0o1775])
def test_a_place_where_only_owners_rename_is_fine(shared, mode):
    assert parents.fault_above(shared(mode)) == ""


@pytest.mark.parametrize("mode", [0o777, 0o757, 0o2777])
def test_a_parent_that_anybody_may_write_is_told(shared, mode):
    path = shared(mode)
    fault = f"anybody may put another in its place ({path.parents[1]} has mode {mode:o})"
    assert parents.fault_above(path) == fault


@pytest.mark.parametrize("mode", [0o775, 0o2775, 0o2770])
@pytest.mark.parametrize(
    ("groups", "users"),
    [
        ({}, [("me", ME, 7)]),
        ({7: ("project", [])}, [("me", ME, 7)]),
        ({7: ("project", ["me"])}, [("me", ME, 8)]),
        ({7: ("me", ["eve"])}, [("me", ME, 7)]),
        ({7: ("me", [])}, [("me", ME, 7), ("eve", ME + 1, 7)]),
        ({7: ("me", [])}, [("me", ME, 8)]),
        ({7: ("eve", [])}, [("me", ME, 8), ("eve", ME + 1, 7)]),
        ({7: ("me", [])}, []),
    ],
    ids=[
        "unknown",
        "shared",
        "shared, one member",
        "a member",
        "a primary member",
        "not mine",
        "eve's",
        "nobody",
    ],
)
def test_a_parent_that_a_group_may_write_is_told(shared, accounts, monkeypatch, mode, groups, users):
    path = shared(mode)
    accounts(groups, users)
    _as_group(monkeypatch, path.parents[1], 7)
    assert "its group may put another in its place" in parents.fault_above(path)
    monkeypatch.setenv("MEGATV_KERNELS_CACHE", str(path))
    with pytest.raises(ValueError, match=r"its group may put another in its place .*; remove it or name ano"):
        cache.kept("name", lambda: b"x")


@pytest.mark.parametrize("members", [(), ("me",), ("me", "root")])
def test_folders_of_a_users_own_group_are_fine(shared, accounts, monkeypatch, members):
    """As umask 002 leaves them where every user has a group of the same name."""
    path = shared(0o775)
    accounts({7: ("me", members)}, [("root", 0, 0), ("me", ME, 7), ("eve", ME + 1, 8)])
    _as_group(monkeypatch, path.parents[1], 7)
    assert parents.fault_above(path) == ""


def _as_group(monkeypatch, folder, gid):
    """Only root gives files to other groups: the mode is real, the group is told."""
    real = Path.stat

    def stat(path, **options):
        found = real(path, **options)
        if path == folder:
            return SimpleNamespace(st_mode=found.st_mode, st_uid=found.st_uid, st_gid=gid)
        return found

    monkeypatch.setattr(Path, "stat", stat)


def test_single_users_who_may_write_are_told(shared, accounts, monkeypatch):
    path = shared(0o775)
    accounts({7: ("me", ())}, [("me", ME, 7)])
    _as_group(monkeypatch, path.parents[1], 7)
    monkeypatch.setattr(os, "getxattr", lambda folder, name: b"a list")
    assert "its group may put another in its place" in parents.fault_above(path)


def test_a_parent_of_another_user_is_told(shared, monkeypatch):
    path = shared(0o1777)
    monkeypatch.setattr(os, "geteuid", lambda: ME + 1)
    if ME:
        assert f"user {ME} may put another in its place" in parents.fault_above(path)


@pytest.mark.skipif(ME != 0, reason="only root gives files away")
@pytest.mark.parametrize("mode", [0o700, 0o755, 0o1777])
def test_a_folder_that_another_user_made_first_is_told(shared, mode, monkeypatch):
    """Also sticky: its owner renames what lies in it."""
    path = shared(mode, uid=20002)
    assert "user 20002 may put another in its place" in parents.fault_above(path)
    monkeypatch.setenv("MEGATV_KERNELS_CACHE", str(path))
    for use in (lambda: cache.kept("name", lambda: b"x"), cache.isolate_compilers.__wrapped__):
        monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
        with pytest.raises(ValueError, match="user 20002 may put another in its place"):
            use()


def test_in_a_user_namespace_unmapped_owners_pass_for_root(shared, monkeypatch):
    real = Path.read_text
    told = {"/proc/self/uid_map": "1000 1000 1\n", "/proc/sys/kernel/overflowuid": f"{ME}\n"}
    path = shared(0o755)
    monkeypatch.setattr(Path, "read_text", lambda path: told.get(str(path)) or real(path))
    monkeypatch.setattr(os, "geteuid", lambda: ME + 1)
    assert parents.fault_above(path) == ""


def test_a_system_without_proc_and_attributes_is_no_fault(shared, accounts, monkeypatch):
    """As macOS is; the modes and owners of folders are looked at there, too."""
    real = Path.read_text

    def read_text(path):
        if path.is_relative_to("/proc"):
            raise FileNotFoundError(path)
        return real(path)

    path = shared(0o775)
    accounts({7: ("me", ())}, [("me", ME, 7)])
    _as_group(monkeypatch, path.parents[1], 7)
    monkeypatch.setattr(Path, "read_text", read_text)
    monkeypatch.delattr(os, "getxattr", raising=False)
    assert parents.fault_above(path) == ""
    assert "anybody may put another" in parents.fault_above(shared(0o777))


def test_where_a_link_leads_is_settled_once(tmp_path, monkeypatch):
    """Who owns a link may turn it: what is used later is the folder that was looked at."""
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    env = {name: value for name, value in os.environ.items() if name != "TORCHINDUCTOR_CACHE_DIR"}
    env["MEGATV_KERNELS_CACHE"] = str(tmp_path / "link/cache")
    code = "import os; from megatv_kernels.cache import isolate_compilers; isolate_compilers(); "
    code += "print(os.environ['TORCHINDUCTOR_CACHE_DIR'])"
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == f"{tmp_path.resolve()}/real/cache/inductor"


@pytest.mark.parametrize("umask", [0o002, 0o000, 0o022])
def test_folders_that_are_made_on_the_way_are_their_owners_alone(tmp_path, monkeypatch, umask):
    monkeypatch.setenv("MEGATV_KERNELS_CACHE", str(tmp_path / "a/b/cache"))
    before = os.umask(umask)
    try:
        assert cache.kept("name", lambda: b"x") == b"x"
    finally:
        os.umask(before)
    assert {oct((tmp_path / name).stat().st_mode & 0o777) for name in ("a", "a/b", "a/b/cache")} == {"0o700"}


def test_links_of_ones_own_are_followed(shared, tmp_path):
    """What they lead to is looked at like any parent, and so is where they lie."""
    fine, open_to_all = shared(0o755).parent, tmp_path / "open"
    open_to_all.mkdir()
    (tmp_path / "link").symlink_to("shared/../shared")
    (tmp_path / "second").symlink_to(tmp_path / "link")
    (open_to_all / "link").symlink_to(fine)
    assert parents.fault_above(tmp_path / "second/below/cache") == ""
    open_to_all.chmod(0o777)
    for path in (open_to_all / "link/cache", open_to_all / "../open/link/cache"):
        assert "open has mode 777)" in parents.fault_above(path)
    (tmp_path / "shared").chmod(0o777)
    assert "shared has mode 777)" in parents.fault_above(tmp_path / "link/below/cache")


def test_links_that_lead_to_each_other_are_an_error(tmp_path):
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    with pytest.raises(OSError):
        parents.fault_above(tmp_path / "a/x")


@pytest.mark.skipif(ME != 0, reason="only root gives files away")
def test_a_link_of_another_user_is_told(shared, tmp_path, monkeypatch):
    """In a folder like /tmp anybody may make one: it chooses among this user's folders, and later another."""
    link = shared(0o1777).parents[1] / "link"
    (tmp_path / "mine").mkdir()
    link.symlink_to(tmp_path / "mine")
    (tmp_path / "by way").symlink_to(link)
    os.lchown(link, 20002, -1)
    for path in (link / "cache", tmp_path / "by way/cache"):
        assert f"user 20002 may put another in its place ({link} belongs" in parents.fault_above(path)
    monkeypatch.setenv("MEGATV_KERNELS_CACHE", str(link / "cache"))
    # Linux itself may forbid to follow it (fs.protected_symlinks)
    with pytest.raises(ValueError, match=r"user 20002 may put another in its place|Permission denied"):
        cache.kept("name", lambda: b"x")
    assert not any((tmp_path / "mine").iterdir())
