"""`alignax chat`: a dialogue with a checkpoint in the terminal; replies come as they are written."""

import argparse
import sys
from collections.abc import Iterator
from contextlib import closing

from alignax.config import ConfigError
from alignax.data.counts import DataError
from alignax.data.messages import Message
from alignax.sampling.programs import Ask, check
from alignax.sampling.service import Service
from alignax.serving.slots import opened
from alignax.stages.playground import Policy

HELP = "/reset begins anew, /quit ends, Ctrl-C stops a reply"
LEAST = 16  # tokens that a reply has room for, at least


class Dialogue:
    """What has been said, within what the model reads."""

    def __init__(self, policy: Policy, length: int, system: str = ""):
        if system and policy.template != "chat":
            raise ConfigError(
                f"--system={system!r}: {policy.folder} was trained on template {policy.template!r}, which has no place "
                "for it; leave it out"
            )
        self.policy, self.length = policy, length
        self.first: list[Message] = [{"role": "system", "content": system}] if system else []
        self.turns: list[Message] = []

    @property
    def remembers(self) -> bool:
        """Whether the checkpoint reads dialogues; else each line is a prompt by itself."""
        return self.policy.template == "chat"

    def reset(self) -> None:
        """Forgets what was said, but for the system's words."""
        self.turns = []

    def asked(self, text: str) -> tuple[tuple[int, ...], int]:
        """(ids of the prompt, how many earlier turns were left out of it and are forgotten).

        Raises DataError for a text that cannot be read, or does not fit alone: then nothing is changed.
        """
        turns, left = [*self.turns, {"role": "user", "content": text}], 0
        while True:
            ids = self.policy.encode([*self.first, *turns] if self.remembers else text)
            if len(ids) + LEAST <= self.length:
                break
            if len(turns) == 1:
                raise DataError(
                    f"this has {len(ids)} tokens: expected at most {self.length - LEAST}, so that a reply has room in "
                    f"{self.length}; say less, or start with a larger --max-length if the model allows it"
                )
            turns, left = turns[2:], left + 2
        self.turns = turns if self.remembers else []
        return tuple(ids), left

    def answered(self, text: str) -> str:
        """Adds a reply; a turn without one is taken back, since no template writes it. Returns why all is forgotten, or
        "": a reply may spell what may stand in no dialogue, a control token for one."""
        if not self.remembers:
            return ""
        if not text.strip():
            self.turns.pop()
            return ""
        self.turns.append({"role": "assistant", "content": text})
        try:
            self.policy.encode([*self.first, *self.turns, self.turns[-2]])
        except DataError as error:
            self.reset()
            return f"the dialogue begins anew, since this reply cannot be read again: {error}"
        return ""


def command(args: argparse.Namespace) -> None:
    """Reads lines until /quit or the end of the input."""
    settings = ask_of(args)
    policy, service = opened(args.checkpoint, slots=1, max_length=args.max_length)
    with service:
        dialogue = Dialogue(policy, service.length, args.system)
        say(f"{policy.folder}: {service.length} tokens of dialogue; {HELP}")
        if not dialogue.remembers:
            say("this checkpoint has no chat template: each line is a prompt of its own")
        for number, line in enumerate(lines()):
            if line == "/reset":
                dialogue.reset()
                say("a new dialogue")
            elif line.startswith("/"):
                say(f"{line}: no such command; {HELP}")
            elif line:
                turn(service, dialogue, line, settings._replace(number=number))


def ask_of(args: argparse.Namespace) -> Ask:
    """The settings of the command. Raises ConfigError for one that is out of range, before anything is loaded."""
    names = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty", "seed")
    ask = Ask((0,), args.max_new_tokens, **{name: getattr(args, name) for name in names})
    check(ask, sys.maxsize, 1)
    if args.max_length and args.max_length <= LEAST:
        raise ConfigError(f"--max-length={args.max_length}: expected more than {LEAST} tokens, or 0 for the default")
    return ask


def lines() -> Iterator[str]:
    """What is typed, or piped in; Ctrl-C at the prompt does not end it."""
    ask = "> " if sys.stdin.isatty() else ""
    while True:
        try:
            line = input(ask).strip()
        except EOFError:
            return
        except KeyboardInterrupt:
            say(f"\n{HELP}")
            continue
        if line == "/quit":
            return
        yield line


def turn(service: Service, dialogue: Dialogue, line: str, settings: Ask) -> None:
    """Asks, and prints the reply as it comes."""
    try:
        ids, left = dialogue.asked(line)
    except DataError as error:
        say(str(error))
        return
    if left:
        say(f"the first {left} turns no longer fit into {service.length} tokens and are forgotten")
    room = service.length - len(ids)
    said, reason = "", ""
    with closing(service.pieces(settings._replace(ids=ids, max_tokens=min(settings.max_tokens, room)))) as pieces:
        try:
            for piece in pieces:
                said, reason = said + piece.text, piece.reason
                print(piece.text, end="", flush=True)
        except KeyboardInterrupt:
            reason = "stopped"
    print({"length": " [cut off]", "stopped": " [stopped]"}.get(reason, ""), flush=True)
    if why := dialogue.answered(said):
        say(why)


def say(text: str) -> None:
    """What is not the model's goes to stderr: a pipe gets replies alone."""
    print(text, file=sys.stderr, flush=True)
