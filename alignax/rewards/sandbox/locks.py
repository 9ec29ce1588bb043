"""What a process gives up for good, on Linux, by its own hand: files, network, signals, other processes, privileges.

Standard library alone, and read by the sandboxed interpreter before anything else. Every lock is the kernel's
(Landlock, seccomp, resource limits), so no trick inside of Python, ctypes included, opens it again. A kernel that lacks
one is an error, never a sandbox with a hole.
"""

import ctypes
import os
import platform
import resource
import struct

LIBC = ctypes.CDLL(None, use_errno=True)
NO_LOCK = 97  # the exit status of an interpreter whose kernel lacks a lock
NO_NEW_PRIVILEGES, SECCOMP, SECCOMP_FILTER, DEATH_SIGNAL, DUMPABLE = 38, 22, 2, 1, 4  # of prctl

# ---- files and network: Landlock (landlock(7)), the same numbers on every architecture

CREATE_RULESET, ADD_RULE, RESTRICT_SELF = 444, 445, 446
EVERY_FILE_RIGHT = {1: (1 << 13) - 1, 2: (1 << 14) - 1, 3: (1 << 15) - 1}  # by version; later ones add ioctl
EXECUTE, WRITE_FILE, READ_FILE, READ_DIR = 1, 2, 4, 8
OF_A_FILE = EXECUTE | WRITE_FILE | READ_FILE | 1 << 14 | 1 << 15  # the rights that a rule for a file may have
BENEATH, NET_BIND_AND_CONNECT, ABSTRACT_SOCKETS_AND_SIGNALS = 1, 3, 3


def confine_files(readable: list[str], writable: list[str]) -> None:
    """Leaves the process these folders and files. Raises OSError where the kernel has no Landlock."""
    version = LIBC.syscall(CREATE_RULESET, None, ctypes.c_size_t(0), 1)
    if version < 1:
        raise OSError("this kernel has no Landlock (Linux 5.13 or later, with 'landlock' among its security modules)")
    files = EVERY_FILE_RIGHT.get(version, (1 << 15) - 1 if version < 5 else (1 << 16) - 1)
    parts = [files, NET_BIND_AND_CONNECT if version >= 4 else 0, ABSTRACT_SOCKETS_AND_SIGNALS if version >= 6 else 0]
    size = 8 if version < 4 else 16 if version < 6 else 24
    ruleset = _call(CREATE_RULESET, struct.pack("=QQQ", *parts)[:size], ctypes.c_size_t(size), 0)
    for paths, rights in ((readable, READ_FILE | READ_DIR), (writable, files & ~EXECUTE)):
        for path in filter(os.path.exists, paths):
            opened = os.open(path, os.O_PATH | os.O_CLOEXEC)
            allowed = rights if os.path.isdir(path) else rights & OF_A_FILE
            _call(ADD_RULE, ruleset, BENEATH, struct.pack("=Qi", allowed, opened), 0)
            os.close(opened)
    _call(RESTRICT_SELF, ruleset, 0)
    os.close(ruleset)


def _call(number: int, *args) -> int:
    found = LIBC.syscall(number, *args)
    if found < 0:
        raise OSError(ctypes.get_errno(), f"system call {number}: {os.strerror(ctypes.get_errno())}")
    return found


# ---- system calls: seccomp (seccomp(2)), a program in BPF

ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
# name: its number on x86_64 and on aarch64; None: there is none
CALLS: dict[str, tuple[int | None, int | None]] = {
    # processes
    "fork": (57, None), "vfork": (58, None), "execve": (59, 221), "execveat": (322, 281), "ptrace": (101, 117),
    "process_vm_readv": (310, 270), "process_vm_writev": (311, 271), "unshare": (272, 97), "setns": (308, 268),
    "pidfd_open": (434, 434), "pidfd_getfd": (438, 438), "pidfd_send_signal": (424, 424), "kcmp": (312, 272),
    # signals to others
    "kill": (62, 129), "tkill": (200, 130), "rt_sigqueueinfo": (129, 138), "rt_tgsigqueueinfo": (297, 240),
    # network and what processes share
    "socket": (41, 198), "socketpair": (53, 199), "connect": (42, 203), "bind": (49, 200), "listen": (50, 201),
    "accept": (43, 202), "accept4": (288, 242), "sendto": (44, 206), "sendmsg": (46, 211), "sendmmsg": (307, 269),
    "shmget": (29, 194), "shmat": (30, 196), "msgget": (68, 186), "semget": (64, 190), "mq_open": (240, 180),
    "io_uring_setup": (425, 425), "io_uring_enter": (426, 426), "io_uring_register": (427, 427),
    # the system
    "mount": (165, 40), "umount2": (166, 39), "pivot_root": (155, 41), "chroot": (161, 51), "reboot": (169, 142),
    "open_tree": (428, 428), "move_mount": (429, 429), "fsopen": (430, 430), "fsmount": (432, 432),
    "swapon": (167, 224), "swapoff": (168, 225), "init_module": (175, 105), "finit_module": (313, 273),
    "delete_module": (176, 106), "kexec_load": (246, 104), "bpf": (321, 280), "perf_event_open": (298, 241),
    "userfaultfd": (323, 282), "open_by_handle_at": (304, 265), "name_to_handle_at": (303, 264),
    "add_key": (248, 217), "request_key": (249, 218), "keyctl": (250, 219), "settimeofday": (164, 170),
    "clock_settime": (227, 112), "adjtimex": (159, 171), "sethostname": (170, 161), "setdomainname": (171, 162),
    "acct": (163, 89), "quotactl": (179, 60), "syslog": (103, 116), "personality": (135, 92), "mknod": (133, None),
    "mknodat": (259, 33), "chmod": (90, None), "fchmod": (91, 52), "fchmodat": (268, 53), "chown": (92, None),
    "lchown": (94, None), "fchown": (93, 55), "fchownat": (260, 54),
    # its own limits and rights
    "setrlimit": (160, 164), "prlimit64": (302, 261), "prctl": (157, 167),
    "setuid": (105, 146), "setgid": (106, 144), "setresuid": (117, 147),
    "setresgid": (119, 149), "setgroups": (116, 159), "capset": (126, 91), "setpriority": (141, 140),
    "sched_setscheduler": (144, 119), "sched_setattr": (314, 274), "setsid": (112, 157), "setpgid": (109, 154),
    "memfd_create": (319, 279), "memfd_secret": (447, 447), "mlock": (149, 228), "mlockall": (151, 230),
}  # fmt: skip
CLONE, CLONE3, TGKILL, IOCTL, FCNTL = (56, 220), (435, 435), (234, 131), (16, 29), (72, 25)
THREAD = 0x00010000  # flag of clone
# characters into the parent's terminal; who gets the signals of a file
FORBIDDEN = ((IOCTL, (0x5412,)), (FCNTL, (8, 10, 15)))
ALLOW, KILL, REFUSE, ABSENT = 0x7FFF0000, 0x80000000, 0x00050000 | 1, 0x00050000 | 38  # EPERM, ENOSYS
LOAD, EQUAL, AT_LEAST, ANY_BIT, RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
NUMBER, ARCHITECTURE, FIRST, SECOND = 0, 4, 16, 24  # where the kernel puts them: the low halves of arguments


def confine_calls() -> None:
    """Refuses what `CALLS` names, new processes, and signals to others. Raises OSError where it cannot."""
    machine = platform.machine()
    if machine not in ARCHITECTURES:
        raise OSError(f"the sandbox knows the system calls of {' and '.join(ARCHITECTURES)}, not of {machine!r}")
    column = list(ARCHITECTURES).index(machine)
    program = [
        (LOAD, 0, 0, ARCHITECTURE), (EQUAL, 1, 0, ARCHITECTURES[machine]), (RETURN, 0, 0, KILL), (LOAD, 0, 0, NUMBER),
        (AT_LEAST, 0, 1, 0x40000000), (RETURN, 0, 0, KILL),  # the other numbering of x86_64 processes
    ]  # fmt: skip
    for numbers in CALLS.values():
        if numbers[column] is not None:
            program += [(EQUAL, 0, 1, numbers[column]), (RETURN, 0, 0, REFUSE)]
    # the C library asks for clone3 first; its arguments are in memory, where no filter can read them
    program += [(EQUAL, 0, 1, CLONE3[column]), (RETURN, 0, 0, ABSENT)]
    for numbers, test, operand in ((CLONE, ANY_BIT, THREAD), (TGKILL, EQUAL, os.getpid())):  # what passes is allowed
        program += [
            (EQUAL, 0, 4, numbers[column]), (LOAD, 0, 0, FIRST), (test, 1, 0, operand), (RETURN, 0, 0, REFUSE),
            (RETURN, 0, 0, ALLOW),
        ]  # fmt: skip
    for numbers, values in FORBIDDEN:
        each = [line for value in values for line in ((EQUAL, 0, 1, value), (RETURN, 0, 0, REFUSE))]
        program += [(EQUAL, 0, len(each) + 2, numbers[column]), (LOAD, 0, 0, SECOND), *each, (RETURN, 0, 0, ALLOW)]
    program += [(RETURN, 0, 0, ALLOW)]
    code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *line) for line in program))
    loaded = struct.pack("@HxxxxxxQ", len(program), ctypes.addressof(code))
    _prctl(SECCOMP, SECCOMP_FILTER, ctypes.c_char_p(loaded))


def _prctl(what: int, *args) -> None:
    padded = [ctypes.c_ulong(x) if isinstance(x, int) else x for x in (*args, *[0] * (4 - len(args)))]
    if LIBC.prctl(what, *padded):
        raise OSError(ctypes.get_errno(), f"prctl {what}: {os.strerror(ctypes.get_errno())}")


# ---- privileges and amounts


def give_up_privileges() -> None:
    """No capability is left, even to root, and the kernel ends the process with its parent."""
    _prctl(NO_NEW_PRIVILEGES, 1)
    _prctl(DEATH_SIGNAL, 9)
    _prctl(DUMPABLE, 0)
    header, none = struct.pack("=Ii", 0x20080522, 0), bytes(24)  # version 3 of the interface, this process
    if LIBC.capset(ctypes.c_char_p(header), ctypes.c_char_p(none)):
        raise OSError(ctypes.get_errno(), "capset failed")


def limit(seconds: float, memory_mb: int, file_mb: int) -> None:
    """Processor time, address space, the size of a file, open files; no core dumps."""
    whole = lambda x: int(-(-x // 1))  # noqa: E731
    for kind, most in (
        (resource.RLIMIT_CPU, whole(seconds) + 1),
        (resource.RLIMIT_AS, memory_mb << 20),
        (resource.RLIMIT_FSIZE, file_mb << 20),
        (resource.RLIMIT_NOFILE, 64),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(kind, (most, most))
