#!/usr/bin/env python3
"""Runs a command where programs for other processors start by themselves.

    QEMU_DIR=/usr/bin cross/binfmt.py COMMAND...

The kernel asks its list of foreign formats (binfmt_misc) which emulator takes a program. Since
Linux 6.7 a user namespace has a list of its own: this makes one, puts qemu's emulators on it, and
becomes COMMAND there. Nothing on the machine changes, no rights are needed, and with COMMAND
everything is gone. Ends with 77 if the kernel does not let it.
"""

import ctypes
import os
import struct
import sys

CLONE_NEWNS, CLONE_NEWUSER = 0x00020000, 0x10000000
CANNOT = 77
LIST = "/proc/sys/fs/binfmt_misc"
# Name of the emulator: word size (1 for 32 bits, 2 for 64), byte order (1 little, 2 big), and the
# machine, as the head of an ELF file has them.
FORMATS = {
    "x86_64": (2, 1, 62),
    "aarch64": (2, 1, 183),
    "arm": (1, 1, 40),
    "riscv64": (2, 1, 243),
    "mipsel": (1, 1, 8),
    "mips": (1, 2, 8),
}

libc = ctypes.CDLL(None, use_errno=True)


def cannot(what):
    print(f"SKIPPED: {what}", file=sys.stderr)
    sys.exit(CANNOT)


def call(function, *arguments):
    if getattr(libc, function)(*arguments) != 0:
        cannot(f"{function} failed: {os.strerror(ctypes.get_errno())}")


def entry(name, emulator):
    """The line of the list for one kind of program."""
    size, order, machine = FORMATS[name]
    half = "<H" if order == 1 else ">H"
    head = b"\x7fELF" + bytes([size, order, 1]) + bytes(9)
    magic = head + struct.pack(half, 2) + struct.pack(half, machine)
    # The system's name and version (bytes 7 and 8) may be anything, and the type 2 (fixed) or 3
    # (anywhere).
    mask = b"\xff" * 7 + b"\x00" * 2 + b"\xff" * 7
    mask += struct.pack(half, 0xFFFE) + struct.pack(half, 0xFFFF)
    text = ["".join(f"\\x{byte:02x}" for byte in part) for part in (magic, mask)]
    # F: opened now, so that it is found in every view of the files. P: keeps the program's name.
    return f":qemu-{name}:M::{text[0]}:{text[1]}:{emulator}:FP"


def map_ids(pid, uid, gid):
    """Root sees all ids in its new namespace, anybody else itself as root."""
    if uid != 0:
        with open(f"/proc/{pid}/setgroups", "w") as file:
            file.write("deny")
    for kind, own in (("uid", uid), ("gid", gid)):
        with open(f"/proc/{pid}/{kind}_map", "w") as file:
            file.write("0 0 4294967295" if uid == 0 else f"0 {own} 1")


def new_namespace():
    """Only a process outside may map more than its own id, so a child waits there."""
    me, uid, gid = os.getpid(), os.getuid(), os.getgid()
    ready, make_ready = os.pipe()
    done, make_done = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(make_ready)
        code = 1
        if os.read(ready, 1):
            map_ids(me, uid, gid)
            code = 0
            os.write(make_done, b"x")
        os._exit(code)
    call("unshare", CLONE_NEWUSER | CLONE_NEWNS)
    os.close(make_done)
    os.write(make_ready, b"x")
    if not os.read(done, 1):
        cannot("the ids of a user namespace cannot be mapped here")
    os.waitpid(child, 0)
    os.setresgid(0, 0, 0)
    os.setresuid(0, 0, 0)


def main():
    if len(sys.argv) < 2:
        print(__doc__, file=sys.stderr)
        sys.exit(2)
    folder = os.environ.get("QEMU_DIR", "/usr/bin")
    new_namespace()
    call("mount", b"binfmt_misc", LIST.encode(), b"binfmt_misc", 0, None)
    for name in FORMATS:
        emulator = f"{folder}/qemu-{name}-static"
        if name == os.uname().machine or not os.path.exists(emulator):
            continue
        with open(f"{LIST}/register", "w") as file:
            file.write(entry(name, emulator))
    os.execvp(sys.argv[1], sys.argv[1:])


main()
