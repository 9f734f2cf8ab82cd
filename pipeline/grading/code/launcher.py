"""Puts a process into its sandbox and starts a bare interpreter there. Run as a script; it imports nothing of ours.

Arguments: the descriptors to report to and to hand on with the password; they become 3 and 4. Standard input: JSON with
``interpreter``, ``prefix``, ``runner``, ``work`` (an empty folder), ``limits``, ``isolate`` and ``program``.

Three processes: this one; the first of its own process namespace, whose end kills all others there; and the one that
runs the program, as another user where this one is root.
"""

import ctypes
import fcntl
import json
import os
import resource
import signal
import sys
from typing import Any

REPORT, PASSWORD = 3, 4
NEW_NAMESPACES = 0x00020000 | 0x08000000 | 0x20000000 | 0x40000000
"""CLONE_NEWNS, CLONE_NEWIPC, CLONE_NEWPID, CLONE_NEWNET."""
NEW_USER = 0x10000000
BIND, RECURSIVE, PRIVATE, REMOUNT = 4096, 16384, 1 << 18, 32
READ_ONLY, NO_SUID, NO_DEV = 1, 2, 4
DEATH_SIGNAL, NO_NEW_PRIVILEGES = 1, 38
NOBODY = 65534
FIRST_USER = 2_000_000_000
"""Users of no name, one per run: a limit on processes counts by user, and two runs cannot send each other signals."""
SYSTEM = ("/usr", "/lib", "/lib64", "/lib32", "/bin", "/etc/ld.so.cache", "/dev/null", "/dev/urandom")
libc = ctypes.CDLL(None, use_errno=True)


def checked(result: int, what: str) -> None:
    if result != 0:
        raise OSError(ctypes.get_errno(), f"{what}: {os.strerror(ctypes.get_errno())}")


def mount(source: str, target: str, kind: str, flags: int, options: str = "") -> None:
    encoded = (text.encode() if text else None for text in (source, target, kind))
    checked(libc.mount(*encoded, ctypes.c_ulong(flags), options.encode() or None), f"mount {target}")


def leave_namespaces() -> None:
    """Into namespaces of our own: without network, without other processes, with mounts of our own."""
    uid, gid = os.geteuid(), os.getegid()
    flags = NEW_NAMESPACES | (NEW_USER if uid else 0)
    checked(libc.unshare(flags), "unshare")
    if uid:
        for name, text in (("setgroups", "deny"), ("uid_map", f"{NOBODY} {uid} 1"), ("gid_map", f"{NOBODY} {gid} 1")):
            with open(f"/proc/self/{name}", "w") as file:
                file.write(text)


def build_root(root: str, prefix: str) -> None:
    """A file system of the interpreter and the system's libraries, read-only, and an empty /tmp of 64 MiB."""
    mount("", "/", "", RECURSIVE | PRIVATE)
    mount("tmpfs", root, "tmpfs", NO_SUID | NO_DEV, "size=64m,nr_inodes=20000,mode=755")
    for path in dict.fromkeys((*SYSTEM, prefix)):
        target = root + path
        if os.path.islink(path):
            os.symlink(os.readlink(path), target)
        elif os.path.exists(path) and not os.path.exists(target):
            show(path, target)
    os.mkdir(f"{root}/tmp")
    os.chmod(f"{root}/tmp", 0o1777)


def show(path: str, target: str) -> None:
    os.makedirs(os.path.dirname(target), exist_ok=True)
    if os.path.isdir(path):
        os.mkdir(target)
    else:
        os.close(os.open(target, os.O_CREAT | os.O_WRONLY))
    mount(path, target, "", BIND | RECURSIVE)
    kept = os.statvfs(target).f_flag & ~(REMOUNT | BIND)  # a user namespace may not take off what is set
    mount("", target, "", BIND | REMOUNT | READ_ONLY | NO_SUID | (0 if path.startswith("/dev/") else NO_DEV) | kept)


def become_nobody() -> None:
    """Give up root, for a user whom nothing here belongs to."""
    if os.geteuid() != 0:
        return
    os.setgroups([])
    for user in (FIRST_USER + os.getpid() % 2**20 + int.from_bytes(os.urandom(2), "big") * 2**10, NOBODY):
        try:
            os.setresgid(user, user, user)
            os.setresuid(user, user, user)
            return
        except OSError:  # the user namespace of a container may know few users
            continue
    raise OSError("cannot give up root")


def set_limits(limits: dict[str, int]) -> None:
    for name, limit in limits.items():
        resource.setrlimit(getattr(resource, f"RLIMIT_{name}"), (limit, limit))


def start_program(given: dict[str, Any], program: int) -> None:
    """Never returns: this process becomes the interpreter, in an empty folder, with an environment of three names."""
    libc.prctl(DEATH_SIGNAL, signal.SIGKILL)
    folder = given["work"]
    if given["isolate"]:
        os.chroot(given["work"])
        folder = "/tmp"
    elif os.geteuid() == 0:
        os.chmod(folder, 0o777)
    os.chdir(folder)
    become_nobody()
    libc.prctl(DEATH_SIGNAL, signal.SIGKILL)  # a change of user takes it off
    checked(libc.prctl(NO_NEW_PRIVILEGES, 1, 0, 0, 0), "prctl")
    nowhere = os.open("/dev/null", os.O_WRONLY)
    for target, source in ((0, program), (1, nowhere), (2, nowhere)):
        os.dup2(source, target)
    os.closerange(5, 1024)
    set_limits(given["limits"])
    environment = {"HOME": folder, "LANG": "C.UTF-8", "PYTHONHASHSEED": "0"}
    os.execve(given["interpreter"][0], [*given["interpreter"], "-c", given["runner"]], environment)


def tell(**report: object) -> None:
    os.write(REPORT, json.dumps(report).encode() + b"\n")


def run(given: dict[str, Any]) -> None:
    """As the first process of its namespace: start the program, and say how it ended where it said nothing itself."""
    libc.prctl(DEATH_SIGNAL, signal.SIGKILL)
    program = os.memfd_create("program")
    os.write(program, json.dumps(given["program"]).encode())
    os.lseek(program, 0, os.SEEK_SET)
    if given["isolate"]:
        build_root(given["work"], given["prefix"])
    child = os.fork()
    if child == 0:
        start_program(given, program)
    _, status = os.waitpid(child, 0)
    tell(outcome="ended", signal=os.WTERMSIG(status) if os.WIFSIGNALED(status) else None)


def main() -> None:
    libc.prctl(DEATH_SIGNAL, signal.SIGKILL)
    given = json.loads(sys.stdin.buffer.read())
    if given["isolate"]:
        leave_namespaces()
    child = os.fork()
    if child == 0:
        run(given)
    else:
        os.waitpid(child, 0)


if __name__ == "__main__":
    beyond = [fcntl.fcntl(int(descriptor), fcntl.F_DUPFD, 10) for descriptor in sys.argv[1:]]
    for descriptor, fixed in zip(beyond, (REPORT, PASSWORD), strict=True):
        os.dup2(descriptor, fixed)
        os.close(descriptor)
    os.closerange(PASSWORD + 1, 1024)
    try:
        main()
    except BaseException as error:
        tell(outcome="no sandbox", error=str(error))
    os._exit(0)
