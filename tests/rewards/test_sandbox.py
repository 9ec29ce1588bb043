"""The sandbox: code runs, and whatever it tries, nothing of this machine is read, written, called or left behind."""

import os
import socket
import tempfile
import time

import pytest
from errors import refuses

from alignax.rewards.sandbox.run import Limits, SandboxError, run
from tests.marks import needs_sandbox

SHORT = Limits(timeout_s=1.0, memory_mb=256, files_mb=1, output_kb=16)


pytestmark = needs_sandbox


def test_code_and_tests_share_their_names_and_input_and_output_are_there():
    code = "import math, re, json, collections\nx = int(input())\nprint(math.comb(x, 2))\ndef f(n): return n * x"
    ran = run(code, "assert f(2) == 10", stdin="5\n")
    assert ran == (True, "10\n", "", "")
    wrong = run(code, "assert f(2) == 11", stdin="5\n")
    assert not wrong.passed and "AssertionError" in wrong.error and "tests.py" in wrong.error and not wrong.reason
    assert "SyntaxError" in run("def f(").error


def test_it_may_write_into_its_own_folder_and_use_threads():
    code = """
import os, threading
open("a.txt", "w").write("tea")
os.makedirs("b"); os.rename("a.txt", "b/c.txt")
found = []
threads = [threading.Thread(target=lambda: found.append(open("b/c.txt").read())) for _ in range(3)]
[t.start() for t in threads]; [t.join() for t in threads]
"""
    assert run(code, "assert found == ['tea'] * 3").passed


MACHINE = os.uname().machine
# (number on x86_64, on aarch64, arguments), by ctypes: past all that Python's own functions may refuse
RAW = {
    "vfork": (58, None, ""),
    "clone": (56, 220, "17, 0, 0, 0, 0"),
    "clone3": (435, 435, "ctypes.create_string_buffer(88), 88"),
    "io_uring": (425, 425, "8, ctypes.create_string_buffer(120)"),
    "tgkill": (234, 131, "PARENT, PARENT, 0"),
    "ptrace": (101, 117, "16, PARENT, 0, 0"),
    "unshare": (272, 97, "0x10000000"),
    "prlimit": (302, 261, "0, 9, (ctypes.c_long * 2)(-1, -1), 0"),
    "the other numbering of x86_64": (0x40000000 + 39, None, ""),
}


def by_number(x86: int, arm: int | None, arguments: str) -> str:
    number = x86 if MACHINE == "x86_64" else arm
    if number is None:
        return ""
    call = f"ctypes.CDLL(None).syscall({number}{', ' * bool(arguments)}{arguments})"
    return f"import ctypes\nprint('ESCAPED' if {call} >= 0 else '')"


# what is tried, by one that says ESCAPED where it came through. PORT, SECRET, PARENT are the test's own.
ATTEMPTS = {
    "fork": "import os; os.fork(); print('ESCAPED')",
    "posix_spawn": "import os; os.posix_spawn('/bin/true', ['true'], {}); print('ESCAPED')",
    "subprocess": "import subprocess; subprocess.run(['true']); print('ESCAPED')",
    "execve": "import os; os.execv('/bin/echo', ['echo', 'ESCAPED'])",
    "a shell": "import os; print('ESCAPED' if os.system('true') == 0 else '')",
    "multiprocessing": "import multiprocessing as m; p = m.Process(target=print); p.start(); print('ESCAPED')",
    "a fork bomb": "import os\nwhile True:\n    try: os.fork()\n    except OSError: pass",
    "a bomb of threads": "from threading import *; e = Event()\n"
    "for _ in range(10**5): Thread(target=e.wait).start()\nprint('ESCAPED')",
    "memory in a list": "x = [0] * 10**9; print('ESCAPED')",
    "memory by mmap": "import mmap; mmap.mmap(-1, 1 << 32); print('ESCAPED')",
    "memory in a file of memory": "import os; os.memfd_create('x'); print('ESCAPED')",
    "endless output": "while True: print('x' * 4096)",
    "endless errors": "import sys\nwhile True: sys.stderr.write('x' * 4096)",
    "an endless loop": "while True: pass",
    "sleep": "import time; time.sleep(60); print('ESCAPED')",
    "deaf to signals": "import signal\nfor s in (15, 24, 1, 2): signal.signal(s, signal.SIG_IGN)\nwhile True: pass",
    "output closed, then on": "import os, time; os.close(1); os.close(2); time.sleep(60)",
    "a file outside": "open('OUTSIDE', 'w').write('x'); print('ESCAPED')",
    "a file beside its folder": "open('../escaped-sandbox', 'w').write('x'); print('ESCAPED')",
    "a file of the parent": "open('SECRET', 'a').write('x'); print('ESCAPED')",
    "reading a file of the parent": "print('ESCAPED', open('SECRET').read())",
    "a link to it": "import os; os.symlink('SECRET', 'x'); print('ESCAPED', open('x').read())",
    "another name for it": "import os; os.link('SECRET', 'x'); print('ESCAPED', open('x').read())",
    "taking it away": "import os; os.rename('SECRET', 'x'); print('ESCAPED')",
    "removing it": "import os; os.unlink('SECRET'); print('ESCAPED')",
    "the parent's folder": "import os; os.listdir(os.path.dirname('SECRET')); print('ESCAPED')",
    "passwords": "print('ESCAPED', open('/etc/passwd').read())",
    "the parent's environment": "print('ESCAPED', open('/proc/PARENT/environ').read())",
    "its own memory": "open('/proc/self/mem', 'rb').read(1); print('ESCAPED')",
    "a connection": "import socket; socket.create_connection(('127.0.0.1', PORT), 1); print('ESCAPED')",
    "a datagram": "import socket; socket.socket(2, 2).sendto(b'x', ('127.0.0.1', PORT)); print('ESCAPED')",
    "a server": "import socket; socket.create_server(('127.0.0.1', 0)); print('ESCAPED')",
    "a socket of this machine": "import socket; socket.socket(socket.AF_UNIX).bind('\\0x'); print('ESCAPED')",
    "a pair of sockets": "import socket; socket.socketpair(); print('ESCAPED')",
    "a signal to the parent": "import os; os.kill(PARENT, 0); print('ESCAPED')",
    "a signal to everybody": "import os; os.kill(-1, 9); print('ESCAPED')",
    "a signal by a file": "import fcntl, os; r, w = os.pipe(); fcntl.fcntl(r, 8, PARENT); print('ESCAPED')",
    "more memory": "import resource as r; r.setrlimit(r.RLIMIT_AS, (-1, -1)); print('ESCAPED')",
    "another user": "import os; os.setuid(65534); print('ESCAPED')",
    "its session": "import os; os.setsid(); print('ESCAPED')",
    "many files": "i = 0\nwhile True:\n    open(str(i), 'w').write('x'); i += 1",
    "a large file": "f = open('x', 'wb')\nfor _ in range(9): f.write(b'x' * (1 << 20))\nprint('ESCAPED')",
    "exit before the tests": "import os; os._exit(0)",
    "an end that is none": "import sys; sys.exit(0)",
    "a word of its own": "import os\nfor fd in range(3, 64):\n"
    "    try: os.write(fd, b'0' * 32)\n    except OSError: pass\nos._exit(0)",
    "alignax itself": "import alignax; print('ESCAPED')",
    "packages": "import numpy; print('ESCAPED')",
    **{f"{name} by number": by_number(*call) for name, call in RAW.items()},
}  # fmt: skip


@pytest.mark.parametrize("name", [name for name, code in ATTEMPTS.items() if code])
def test_nothing_comes_through(name, tmp_path):
    secret = tmp_path / "secret.txt"
    secret.write_text("sugar")
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.0)
        code = ATTEMPTS[name]
        for word, value in {"OUTSIDE": tmp_path / "new", "SECRET": secret, "PARENT": os.getpid()}.items():
            code = code.replace(word, str(value))
        start = time.monotonic()
        ran = run(code.replace("PORT", str(server.getsockname()[1])), "assert False, 'the tests'", limits=SHORT)
        assert time.monotonic() - start < 10  # a second, on a machine that is busy
        with pytest.raises(BlockingIOError):
            server.accept()
    assert not ran.passed and "ESCAPED" not in ran.output and "sugar" not in ran.output
    assert secret.read_text() == "sugar" and [p.name for p in tmp_path.iterdir()] == ["secret.txt"]
    assert not os.path.exists(os.path.join(tempfile.gettempdir(), "escaped-sandbox"))
    assert len(ran.output) <= 16 << 10 and len(ran.error) <= 16 << 10


@pytest.mark.parametrize(
    "code, reason",
    [("while True: pass", "time"), ("while True: print('x' * 999)", "output"), (ATTEMPTS["many files"], "files")],
)
def test_what_stopped_it_is_said_and_the_next_run_is_a_clean_one(code, reason):
    assert run(code, limits=SHORT).reason == reason
    assert run("import os; print(os.listdir('.'))").output == "[]\n"


def test_limits_are_positive_and_a_machine_without_locks_is_refused(monkeypatch, tmp_path):
    with refuses(ValueError, "timeout_s = 0:", "positive"):
        run("", limits=Limits(timeout_s=0))
    fake = tmp_path / "inside.py"
    fake.write_text("import os, sys; sys.stdin.readline(); os.write(2, b'this kernel has no Landlock'); os._exit(97)\n")
    monkeypatch.setattr("alignax.rewards.sandbox.run.INSIDE", fake)
    with refuses(SandboxError, "no Landlock", "Linux"):
        run("")
