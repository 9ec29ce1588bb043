"""The sandboxed interpreter: reads what to run, locks itself in, runs it, and says whether it came to its end.

Called as `python -I -S -B inside.py WORD_FD`, in an empty folder, with a JSON line on its input. It is a program, not a
module: nothing of alignax but `locks.py` is read here, so that an interpreter starts in some 20 ms.
"""

import io
import json
import os
import sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import locks  # noqa: E402

LIBRARIES = ("/usr/lib", "/usr/lib64", "/lib", "/lib64", "/usr/local/lib", "/etc/ld.so.cache", "/etc/localtime")
DEVICES = ("/dev/null", "/dev/zero", "/dev/random", "/dev/urandom", "/usr/share/zoneinfo")


def main() -> None:
    """Runs the code, then the tests in its names; then writes the word to the file descriptor."""
    asked = json.loads(sys.stdin.buffer.readline())
    word_to, folder = int(sys.argv[1]), os.getcwd()
    standard = os.path.dirname(os.__file__)
    sys.path[:] = [path for path in sys.path if path.startswith(standard)] + [folder]
    sys.stdin, sys.argv = io.StringIO(asked["stdin"]), ["solution.py"]
    lock(asked, [standard, os.path.join(sys.base_prefix, "lib"), *LIBRARIES, *DEVICES], folder)
    names = {"__name__": "__main__"}
    for name, text in (("solution.py", asked["code"]), ("tests.py", asked["tests"])):
        exec(compile(text, name, "exec"), names)
    sys.stdout.flush()
    os.write(word_to, asked["word"].encode())


def lock(asked: dict, readable: list[str], folder: str) -> None:
    """All that the process gives up. A kernel that lacks a lock ends it, with a word of its own."""
    try:
        locks.limit(asked["timeout_s"], asked["memory_mb"], asked["files_mb"])
        locks.give_up_privileges()
        locks.confine_files(readable, [folder])
        locks.confine_calls()
    except OSError as error:
        os.write(2, f"{error}\n".encode())
        os._exit(locks.NO_LOCK)


if __name__ == "__main__":
    main()
