"""A cage: what a process can no longer see, change or outlive. The strongest of three that a machine allows is used.

    namespaces  Linux: own processes, network and users, and of the files only Python's, read-only, beside a folder
                in memory; nothing of it is left when it ends
    user        for root, where there are no namespaces: it becomes `nobody`
    limits      elsewhere: limits on time, memory and files, and no new processes; other files, processes of the same
                user and the network stay within reach

All of them end with the process that started them (on Linux), and none may start a process.
"""

import contextlib
import ctypes
import os
import resource
import signal
import sys

NOBODY = 65534
FOLDER = "size=64m,nr_inodes=10k,mode=755"  # all that a solution can write, in memory

PDEATHSIG, NO_NEW_PRIVS = 1, 38  # of prctl
NEW_USERS, NEW_OTHERS = 0x10000000, 0x00020000 | 0x04000000 | 0x08000000 | 0x20000000 | 0x40000000  # CLONE_NEW…
READ_ONLY, NOSUID, NODEV, REMOUNT, BIND, RECURSIVE, PRIVATE = 1, 2, 4, 32, 4096, 16384, 1 << 18  # MS_…
DETACH = 2


def enter(way: str, seconds: int, clock: int, megabytes: int) -> None:
    """Put this process, which has one thread, in the cage. Raises OSError where the machine does not allow it.

    Args:
        way: one of those above.
        seconds: of processor time.
        clock: seconds by the clock, in namespaces (elsewhere a solution can undo the alarm).
        megabytes: of address space.
    """
    signal.alarm(clock)
    end_with_parent()
    root = os.geteuid() == 0
    if way == "namespaces":
        unshare()
        end_with_parent()
        narrow_files()
        if root:
            become_nobody()
        else:
            call("unshare", NEW_USERS)  # once more: the rights over the mounts stay with the users left behind
    else:
        if way == "user":
            become_nobody()
        import tempfile  # only here: it is slow to import

        folder = tempfile.mkdtemp()
        os.chdir(folder)
        os.rmdir(folder)  # a working folder that nothing can be written to, and nothing is left of
    end_with_parent()  # a change of rights undoes it
    limit(seconds, megabytes)


def limit(seconds: int, megabytes: int) -> None:
    """Limits that also hold where there is no cage."""
    memory = megabytes * 2**20
    for name, most in (("CPU", seconds), ("AS", memory), ("FSIZE", 2**24), ("CORE", 0), ("NPROC", 0)):
        with contextlib.suppress(AttributeError, ValueError, OSError):  # macOS refuses some; NPROC does not bind root
            resource.setrlimit(getattr(resource, f"RLIMIT_{name}"), (most, most))


def end_with_parent() -> None:
    """Let the system kill this process when its parent ends, however it ends; and gain no rights by a program."""
    if sys.platform == "linux":
        call("prctl", PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
        call("prctl", NO_NEW_PRIVS, 1, 0, 0, 0)


def unshare() -> None:
    """Go on as the first process of new namespaces. The one left behind keeps the time, and ends with it."""
    user, group = os.geteuid(), os.getegid()
    call("unshare", NEW_OTHERS | (NEW_USERS if user else 0))  # root needs no users of its own, and can leave its own
    if user:
        for name, line in (("setgroups", "deny"), ("uid_map", f"0 {user} 1"), ("gid_map", f"0 {group} 1")):
            with open(f"/proc/self/{name}", "w") as file:
                file.write(line)
    if first := os.fork():
        signal.signal(signal.SIGTERM, lambda *_: os.kill(first, signal.SIGKILL))
        for pipe in (0, 1):
            os.close(pipe)
        os.waitpid(first, 0)
        os._exit(0)


def narrow_files() -> None:
    """Leave of all files those that Python and its libraries are made of, read-only, and an empty /tmp."""
    root = "/sys"  # any folder that holds none of them
    call("mount", None, b"/", None, RECURSIVE | PRIVATE, None)
    call("mount", b"tmpfs", root.encode(), b"tmpfs", NOSUID | NODEV, FOLDER.encode())
    shown: list[str] = []
    libraries = ["/usr/lib", "/usr/lib64", "/lib", "/lib64", "/usr/share/zoneinfo"]
    for path in [sys.base_prefix, sys.prefix, *libraries, "/dev/null", "/dev/zero", "/dev/random", "/dev/urandom"]:
        if os.path.exists(path) and not any(f"{path}/".startswith(f"{above}/") for above in shown):
            show(path, root + path)
            shown.append(path)
    os.makedirs(f"{root}/tmp", exist_ok=True)
    os.chmod(f"{root}/tmp", 0o1777)
    os.chdir(root)
    call("pivot_root", b".", b".")
    call("umount2", b".", DETACH)
    os.chdir("/tmp")


def show(path: str, target: str) -> None:
    """Let `path` be seen at `target` as well, read-only."""
    os.makedirs(target if os.path.isdir(path) else os.path.dirname(target), exist_ok=True)
    if not os.path.isdir(path):
        open(target, "w").close()
    call("mount", path.encode(), target.encode(), None, BIND | RECURSIVE, None)
    kept = os.statvfs(target).f_flag & 14  # nosuid, nodev, noexec: not ours to take away
    call("mount", None, target.encode(), None, REMOUNT | BIND | READ_ONLY | kept, None)


def become_nobody() -> None:
    """Give up the rights of root."""
    os.setgroups([])
    os.setgid(NOBODY)
    os.setuid(NOBODY)


def call(name: str, *arguments: object) -> None:
    """A function of the C library that Python does not have. Raises OSError where it fails."""
    if getattr(ctypes.CDLL(None, use_errno=True), name)(*arguments):
        error = ctypes.get_errno()
        raise OSError(error, f"{name}: {os.strerror(error)}")
