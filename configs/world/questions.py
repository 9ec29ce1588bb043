"""Twenty questions between two policies: one learns to ask, by GRPO, another that was trained to answers.

Command: alignax run --config=configs/world/questions.py --workdir=runs/questions
Eight questions, the last of them a guess, for 32 things. Of 24 facts that may be asked for half are true of none of
them; who halves what is left needs five, and a guess.
"""

from ml_collections import ConfigDict, FieldReference

from alignax.stages import evaluate, online
from alignax.worlds.things import TURNS
from configs.world import sft

GAME = "alignax.envs.questions:TwoPolicies"
ROOM = dict(max_prompt_length=4, max_new_tokens=80)  # five words of a question, and three of an answer


def get_config():
    c = ConfigDict()
    seed = FieldReference(0)
    c.seed = seed  # of every step
    c.steps = ("asker", "answerer", "grpo", "played")
    c.asker = demonstrated("games", count=12_000)
    c.answerer = demonstrated("answers", count=12_000)
    c.grpo = grpo()
    c.played = played()
    for name in c.steps:
        c[name].seed = seed
    for name in ("asker", "answerer", "grpo"):
        c[name].data.seed = seed
    return c


def demonstrated(source, count):
    c = sft.get_config()  # the harbour desk's
    c.tokenizer = "alignax.worlds.things:build_tokenizer"
    c.source, c.data = f"alignax.worlds.things:{source}", dict(count=count, heldout=256)
    c.train_on, c.max_length, c.total_steps = "assistant", 96, 800
    c.eval_every_steps = c.save_every_steps = 200
    return c


def game(c):
    """The keys of a game."""
    c.env, c.env_args = GAME, dict(ask="{answer} : {question}", count=TURNS, cost=0.05)
    c.env_partner.update(init_from="@answerer", max_prompt_length=16, max_new_tokens=3)
    c.max_turns, c.max_observation = TURNS, 4
    c.update(ROOM)


def grpo():
    """GRPO whose reward is the game's: 1, less a twentieth for each question before the guess."""
    c = online.get_config()
    c.init_from = "@asker"
    c.source, c.data = "alignax.worlds.things:prompts", dict(count=512)
    game(c)
    c.rewards = {}
    c.samples_per_prompt, c.batch_size, c.total_steps = 8, 16, 60
    c.compute.remat = "dots"
    c.critic_init, c.advantage, c.advantage_args = "none", "group_baseline", dict(baseline="standardise")
    c.scoring_args = dict(normalize=False, clip=0.0, missing_eos_penalty=0.0)
    c.loss, c.kl_coef = "grpo", 0.0
    c.update_args = dict(epochs=2, minibatches=2)
    c.optimizer_args = dict(learning_rate=2e-4, schedule="linear", warmup_percent=5.0)
    c.eval_every_steps, c.save_every_steps = 0, 20
    return c


def played():
    """Games of the policies before and after, 16 of each thing; the gold reward is the game's."""
    c = evaluate.get_config()
    c.init_from = "@asker"
    c.policies = dict(sft="@asker", grpo="@grpo")
    p = c.probe
    p.source, p.data, p.batch_size = "alignax.worlds.things:prompts", dict(count=512), 256
    game(p)
    return c
