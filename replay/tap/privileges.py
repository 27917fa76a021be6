"""Giving up rights when the sockets are open: an unprivileged user, no capability, none to come."""

from __future__ import annotations

import ctypes
import importlib
import os
import pwd
import re

from replay import _fastpath
from replay.errors import UsageError

__all__ = ["capabilities", "drop", "owner"]

_PR_SET_NO_NEW_PRIVS, _PR_CAP_AMBIENT, _PR_CAPBSET_DROP = 38, 47, 24
_CLEAR_ALL = 4
_NAMES = {6: "SETGID", 7: "SETUID", 12: "NET_ADMIN", 13: "NET_RAW", 21: "SYS_ADMIN", 38: "PERFMON", 39: "BPF"}
_VERSION_3 = 0x20080522
#: One more is -1, by which setresuid leaves what is.
_LAST_ID = 2**32 - 2


class _Header(ctypes.Structure):
    _fields_ = [("version", ctypes.c_uint32), ("pid", ctypes.c_int)]


class _Data(ctypes.Structure):
    _fields_ = [("effective", ctypes.c_uint32), ("permitted", ctypes.c_uint32), ("inheritable", ctypes.c_uint32)]


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def capabilities() -> set[str]:
    """The permitted capabilities of this thread, as names without CAP_ (numbers where they are of no interest here)."""
    with open("/proc/thread-self/status", encoding="ascii") as file:
        bits = next((int(line.split()[1], 16) for line in file if line.startswith("CapPrm:")), 0)
    return {_NAMES.get(n, str(n)) for n in range(64) if bits >> n & 1}


#: What is imported only when it is needed, and could not be any more: the unprivileged user may not be allowed to read Python's own files.
_NEEDED_LATER = ("datetime", "difflib", "encodings.idna", "json", "shlex", "tempfile", "traceback", "yaml", "zlib", "concurrent.futures", "replay.histogram")


def preload() -> None:
    """Call it before the rights are dropped."""
    for name in _NEEDED_LATER:
        importlib.import_module(name)
    _fastpath.blocks_zstd()


def _ids(user: str) -> tuple[int, int]:
    """Raises UsageError for a user that there is not."""
    try:
        who = pwd.getpwnam(user)
    except (KeyError, ValueError):
        if re.fullmatch(r"[0-9]{1,10}", user, re.ASCII) and int(user) <= _LAST_ID:
            return int(user), int(user)
        raise UsageError(f"--user {user}: there is no such user here; name one of /etc/passwd, or give a number from 0 to {_LAST_ID}") from None
    return who.pw_uid, who.pw_gid


def owner(user: str) -> tuple[int, int] | None:
    """(user, group) that files are given to which it has to open again; None: they are ours already. Raises UsageError."""
    return _ids(user) if os.geteuid() == 0 and user not in ("", "root") else None


def drop(user: str) -> str:
    """Gives up everything; call it before threads are started. Returns what was dropped, in words.

    user: whom to become when this is root ("" or "root": stay root, without capabilities). Raises UsageError for a user that there is not."""
    libc = _libc()
    preload()
    said = []
    had = capabilities()
    if os.geteuid() == 0 and user not in ("", "root"):
        uid, gid = _ids(user)
        try:
            os.setgroups([])
            os.setresgid(gid, gid, gid)
            os.setresuid(uid, uid, uid)
            if os.getresuid() != (uid,) * 3 or os.getresgid() != (gid,) * 3:
                raise UsageError(f"--user {user}: it did not become {uid}:{gid}, but is {os.geteuid()}:{os.getegid()} still; name another, or root to stay")
            said.append(f"runs as {user} ({uid}:{gid}), was root")
        except PermissionError:
            said.append("stays root: no CAP_SETUID and CAP_SETGID to become another user")
        except OSError as error:
            raise UsageError(f"--user {user}: {error.strerror}; does this user namespace have {uid}:{gid}? Name another, or root to stay") from None
    for n in range(64):
        libc.prctl(_PR_CAPBSET_DROP, n, 0, 0, 0)  # needs SETPCAP; without it no_new_privs does the same for what we could execute
    libc.prctl(_PR_CAP_AMBIENT, _CLEAR_ALL, 0, 0, 0)
    empty = (_Data * 2)()
    libc.capset(ctypes.byref(_Header(_VERSION_3, 0)), empty)
    if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0:
        said.append("no_new_privs is set")
    left = capabilities()
    gone = sorted(had - left, key=lambda name: (name.isdigit(), name))
    named = [name for name in gone if not name.isdigit()]
    if gone:
        among = f" ({', '.join(named)} among them)" if len(gone) > len(named) else f": {', '.join(named)}"
        said.append(f"dropped {len(gone)} capabilities{among}")
    if left:
        said.append("kept " + ", ".join(sorted(left)))
    return "; ".join(said) or "nothing to drop"
