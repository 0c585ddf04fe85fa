"""Who else could put another folder in the place of one: whoever may write one of the folders above it."""

from __future__ import annotations

import contextlib
import grp
import os
import pwd
import stat
from pathlib import Path

EVERYBODY = "0 0 4294967295"
"""What uid_map says outside of user namespaces."""


def fault_above(path: Path) -> str:
    """Why another user could replace `path`, in words; "" when nobody but root could.

    path   absolute; it may lead through links of this user's and of root's

    Every parent must belong to root or to this user. Where its group or everybody may write it, it must be
    sticky, so that only owners rename what lies there (/tmp), or the group must be this user's own
    (`_is_private`). Raises OSError for a folder that is not there.
    """
    os.path.realpath(path.parent, strict=True)  # an OSError for links that lead to each other
    trusted = {0, os.geteuid(), _unmapped_user()}
    for parent in path.parents[::-1]:
        link = parent.is_symlink()
        found = parent.lstat() if link else parent.stat()
        mode = stat.S_IMODE(found.st_mode)
        if found.st_uid not in trusted:
            return f"user {found.st_uid} may put another in its place ({parent} belongs to them)"
        if link:
            return fault_above(parent.parent / os.readlink(parent) / path.relative_to(parent))
        if mode & stat.S_ISVTX:
            continue
        if mode & 0o002:
            return f"anybody may put another in its place ({parent} has mode {mode:o})"
        if mode & 0o020 and not _is_private(parent, found.st_gid):
            return f"its group may put another in its place ({parent} has mode {mode:o})"
    return ""


def _is_private(folder: Path, gid: int) -> bool:
    """Whether the group that may write `folder` is that of this user or of root, and nobody else's.

    Many systems give every user a group of the same name and leave its folders writable by it (umask 002).
    A group of another name may have members that the system does not list. A list of single users (ACL)
    shows in the mode as the group's right.
    """
    if hasattr(os, "getxattr"):  # Linux
        with contextlib.suppress(OSError):  # most folders have no such list
            os.getxattr(folder, "system.posix_acl_access")
            return False
    users = pwd.getpwall()
    ours = {user.pw_name: user.pw_gid for user in users if user.pw_uid in (0, os.geteuid())}
    try:
        group = grp.getgrgid(gid)
    except KeyError:
        return False
    members = {user.pw_name for user in users if user.pw_gid == gid} | set(group.gr_mem)
    return ours.get(group.gr_name) == gid and members <= ours.keys()


def _unmapped_user() -> int:
    """As whom the machine's root appears in a user namespace (Apptainer, rootless Podman); 0 outside.

    Everybody whom the namespace does not map appears so: there they cannot be told apart.
    """
    try:
        mapped = Path("/proc/self/uid_map").read_text()
    except FileNotFoundError:  # not Linux: there are no such namespaces
        return 0
    if mapped.split() == EVERYBODY.split():
        return 0
    return int(Path("/proc/sys/kernel/overflowuid").read_text())
