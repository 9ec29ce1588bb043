"""Runs a policy's Python in a process that has given up files, network, other processes and privileges."""

import contextlib
import json
import os
import secrets
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

from alignax.ops.checks import require
from alignax.rewards.sandbox.locks import NO_LOCK

INSIDE = Path(__file__).with_name("inside.py")
LOOK_S = 0.05  # seconds between two looks at the folder


class SandboxError(RuntimeError):
    """There is no sandbox on this machine."""


class Limits(NamedTuple):
    """What a run may take."""

    timeout_s: float = 5.0  # of the clock; as much processor time
    memory_mb: int = 512  # of address space; an interpreter takes some 30
    files_mb: int = 16  # that stand in its folder
    output_kb: int = 256  # that it writes to standard output and error


USUAL = Limits()


class Ran(NamedTuple):
    """How a run ended."""

    passed: bool  # code and tests came to their end
    output: str
    error: str
    reason: str = ""  # what stopped it: "time", "output" or "files"; "": it ended by itself


def run(code: str, tests: str = "", *, stdin: str = "", limits: Limits = USUAL) -> Ran:
    """Runs `code`, then `tests` in the same names, in an empty folder that is removed afterwards.

    The process is alone in a session of its own, which is killed with all that is in it. It may read Python's standard
    library and its folder, and write there; it cannot start a process, open a socket, signal another process, raise its
    limits or read other files: Landlock, seccomp, resource limits (`locks.py`). That it passed it has to say with a
    word that it was given, so an exit before the tests is no pass; code that searches the interpreter's memory for the
    word could find it.

    Raises:
      ValueError: limits that are not positive.
      SandboxError: the kernel has no Landlock or seccomp, or the machine is none that the filter knows.
    """
    for name, value in limits._asdict().items():
        require(value > 0, f"{name} = {value}: expected a positive number")
    word, (read, write) = secrets.token_hex(16), os.pipe()
    asked = {"code": code, "tests": tests, "stdin": stdin, "word": word} | limits._asdict()
    with tempfile.TemporaryDirectory(prefix="sandbox-", ignore_cleanup_errors=True) as folder:
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-B", str(INSIDE), str(write)], cwd=folder, env={"LANG": "C.UTF-8"},
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, pass_fds=(write,),
            start_new_session=True,
        )  # fmt: skip
        os.close(write)
        try:
            output, error, reason = _watch(process, json.dumps(asked).encode() + b"\n", Path(folder), limits)
        finally:
            _end(process)
        said = b"" if reason else os.read(read, 64)
        os.close(read)
    if process.returncode == NO_LOCK and not said:
        raise SandboxError(f"no sandbox here: {error.strip()}; run the policy's code on a Linux machine that has it")
    return Ran(said == word.encode(), output, error, reason)


def _watch(process: subprocess.Popen, asked: bytes, folder: Path, limits: Limits) -> tuple[str, str, str]:
    """(output, error, what stopped it) of a process, which is stopped where it takes too much."""
    until, said = time.monotonic() + limits.timeout_s, {"out": bytearray(), "err": bytearray()}
    assert process.stdin and process.stdout and process.stderr
    reason, looked = "", 0.0
    with contextlib.suppress(BrokenPipeError):
        process.stdin.write(asked)
        process.stdin.close()
    with selectors.DefaultSelector() as ready:
        for pipe, name in ((process.stdout, "out"), (process.stderr, "err")):
            os.set_blocking(pipe.fileno(), False)
            ready.register(pipe, selectors.EVENT_READ, name)
        while ready.get_map() and not reason:
            left = until - time.monotonic()
            for key, _ in ready.select(max(min(left, LOOK_S), 0)):
                piece = os.read(key.fd, 65536)
                said[key.data] += piece
                if not piece:
                    ready.unregister(key.fileobj)
            if sum(map(len, said.values())) > limits.output_kb << 10:
                reason = "output"
            elif left <= 0:
                reason = "time"
            elif time.monotonic() - looked > LOOK_S:
                reason, looked = "files" if _size(folder) > limits.files_mb << 20 else "", time.monotonic()
    if not reason:
        with contextlib.suppress(subprocess.TimeoutExpired):  # it has closed its output, and may go on
            process.wait(max(until - time.monotonic(), 0))
        reason = "time" if process.returncode is None else ""
    out, err = (bytes(x[: limits.output_kb << 10]).decode(errors="replace") for x in said.values())
    return out, err, reason


def _size(folder: Path) -> int:
    """Bytes of what stands in a folder, a file at least a block."""
    total = 0
    for at, folders, files in os.walk(folder):
        for name in (*folders, *files):
            with contextlib.suppress(OSError):
                total += max(os.lstat(os.path.join(at, name)).st_blocks * 512, 4096)
    return total


def _end(process: subprocess.Popen) -> None:
    """Kills all of the process's session, and closes what is open to it."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    for pipe in (process.stdin, process.stdout, process.stderr):
        if pipe:
            with contextlib.suppress(BrokenPipeError):
                pipe.close()
