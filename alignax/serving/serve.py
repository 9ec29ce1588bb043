"""`alignax serve`: a checkpoint behind OpenAI's endpoints."""

import argparse
import errno
import socket
import time
from pathlib import Path

from alignax.config import ConfigError

NEEDS = "pip install 'alignax[serve]'"


def command(args: argparse.Namespace) -> None:
    """Serves a checkpoint until it is interrupted. What cannot be is said before the model is loaded."""
    try:
        import starlette  # noqa: F401
        import uvicorn
    except ImportError as error:
        raise ConfigError(f"alignax serve needs the package {error.name!r}, which is not there: {NEEDS}") from error
    if args.slots < 1 or args.max_length < 0:
        given = f"--slots={args.slots} --max-length={args.max_length}"
        raise ConfigError(f"{given}: expected 1 slot or more, and a positive number of tokens or 0")
    door = listening(args.host, args.port)
    from alignax.serving.app import app
    from alignax.serving.slots import opened

    with door:
        began = time.time()
        policy, service = opened(args.checkpoint, slots=args.slots, max_length=args.max_length)
        name = args.name or Path(args.checkpoint).resolve().name
        host, port = door.getsockname()[:2]
        where = f"http://{f'[{host}]' if ':' in host else host}:{port}/v1"
        shape = f"{args.slots} slots of {service.length} tokens, ready after {time.time() - began:.0f} s"
        print(f"serving {name!r} at {where} ({shape}; Ctrl-C ends)", flush=True)
        # a stream that is still open when the server ends gets a moment, and is cut
        quiet = {"log_config": None, "log_level": "warning", "access_log": False}  # logging stays as it is
        config = uvicorn.Config(app(service, policy, name), timeout_graceful_shutdown=3, **quiet)
        try:
            with service:
                uvicorn.Server(config).run(sockets=[door])
        except KeyboardInterrupt:
            print("stopped")


def listening(host: str, port: int) -> socket.socket:
    """A socket that listens: who connects while the model is loaded waits. Raises ConfigError where it cannot."""
    if not 0 <= port < 65536:
        raise ConfigError(f"--port={port}: expected 1 to 65535, or 0 for a free one")
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        door = socket.socket(family)
    except OSError as error:
        raise ConfigError(f"--host={host}: {error}; expected an address of this machine, as 127.0.0.1") from error
    try:
        door.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # of a server that has just ended
        door.bind(address)
        door.listen(2048)
    except OSError as error:
        door.close()
        if error.errno == errno.EADDRINUSE:
            raise ConfigError(
                f"--port={port}: the port is in use on {host}; expected a free one: end the program that has it, or "
                f"take another, as --port={port + 1 if port < 65535 else 8001}, or --port=0 for any that is free"
            ) from error
        raise ConfigError(
            f"--host={host} --port={port}: {error}; expected an address of this machine and a port that you may use"
        ) from error
    return door
