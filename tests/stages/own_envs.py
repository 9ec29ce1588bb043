"""Environments of a user's own, for the stage `online`."""

from alignax.config import plain
from alignax.stages import online

STOP = {"at": None}  # a step of a run at which the environment fails, as a process that is killed would


class Echo:
    """Says how long a turn was, for `turns` turns; pays 1 for an answer with the letter that is asked for."""

    def __init__(self, *, turns: int = 3, pays: float = 1.0):
        self.turns, self.pays, self.heard = turns, pays, 0

    def reset(self, row):
        self.row = row
        if STOP["at"] is not None:
            STOP["at"] -= 1
            if STOP["at"] < 0:
                raise RuntimeError("killed")

    def step(self, text):
        self.heard += 1
        reward = self.pays * (self.row["answer"][0] in text)
        done = self.heard >= self.turns
        return None if done else str(len(text)), reward, done


class Once(Echo):
    """One turn."""

    def __init__(self):
        super().__init__(turns=1)


class Told(Once):
    """Adds to the prompt."""

    def reset(self, row):
        super().reset(row)
        return "=" * len(row["answer"])


class Asks(Echo):
    """Says what a second policy answers."""

    def __init__(self, *, partner):
        super().__init__(turns=2)
        self.partner = partner

    def step(self, text):
        _, reward, done = super().step(text)
        return None if done else self.partner([self.row["prompt"]])[0], reward, done


def first_digit(row, completion, *, finished):
    """The reward of `Echo` with one turn, over text."""
    return float(row["answer"][0] in completion)


def config(base, **values):
    """GRPO with an environment, on a policy of the sums."""
    c = online.get_config()
    c.init_from, c.source, c.data = str(base), "alignax.worlds.sums:prompts", dict(count=64)
    c.env, c.env_args, c.max_turns, c.max_observation = "own_envs:Echo", dict(turns=3), 4, 8
    c.max_prompt_length, c.max_new_tokens, c.samples_per_prompt, c.batch_size = 16, 32, 2, 8
    c.critic_init, c.advantage, c.advantage_args = "none", "group_baseline", dict(baseline="mean")
    c.loss, c.kl_coef, c.optimizer_args = "grpo", 0.0, dict(learning_rate=1e-3)
    c.total_steps, c.eval_every_steps, c.save_every_steps = 2, 0, 1
    for name, value in values.items():
        c[name] = value
    return plain(c)
