"""Dialogues that are one text, turns marked "\\n\\nHuman:" and "\\n\\nAssistant:", as HH-RLHF has them: where the reply
begins, and the turns as messages."""

import re

from alignax.data.messages import SPEAKERS, Message

HUMAN, ASSISTANT = "\n\nHuman:", "\n\nAssistant:"
TURN = re.compile(r"\n\n(Human|Assistant):")


def is_transcript(text: str) -> bool:
    """Whether a text is such a dialogue: it begins with a human turn, and has one of the assistant."""
    return text.lstrip().startswith("Human:") and ASSISTANT in text


def has_turns(text: str) -> bool:
    """Whether a text has turns of both, whatever stands before them."""
    return is_transcript(text) or (HUMAN in text and ASSISTANT in text.partition(HUMAN)[2])


def split_last(prompt: str, replies: list[str]) -> tuple[str, list[str]] | str:
    """The prompt up to "\\n\\nAssistant:" of the last turn, and what follows in each of the texts prompt + reply; or
    the reason, a key of REASONS, why they have no such prompt in common. Nothing of them is lost."""
    heads, tails = set(), []
    for reply in replies:
        head, mark, tail = (prompt + reply).rpartition(ASSISTANT)
        if not mark:
            return "no_reply_turn"
        if HUMAN in tail:
            return "human_last"
        heads.add(head)
        tails.append(tail)
    return (heads.pop() + ASSISTANT, tails) if len(heads) == 1 else "prompt_mismatch"


def messages(text: str) -> list[Message]:
    """The turns of a dialogue, without the white space around their words; what stands before them is the system's.

    An assistant turn at the end that has no words is where the assistant is to speak, and is left out.
    """
    before, *rest = TURN.split("\n\n" + text.lstrip())
    turns = [{"role": _ROLES[who], "content": words.strip()} for who, words in zip(rest[::2], rest[1::2])]
    turns = [{"role": "system", "content": before.strip()}, *turns] if before.strip() else turns
    return turns[:-1] if turns and turns[-1] == {"role": "assistant", "content": ""} else turns


_ROLES = {"Human": SPEAKERS["human"], "Assistant": "assistant"}
