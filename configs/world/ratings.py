"""A reward model with a score per part of the gold reward, by regression on ratings.

Command: alignax run --config=configs/world/ratings.py --config.init_from=RUN/sft --workdir=RUN/reward_ratings
What it reads comes from configs/world/collect.py:ratings, in RUN/ratings. The loss `ordinal` is for grades 0, 1, 2, ...
as in HelpSteer: these parts, many of them negative, it would cut at 0. Downstream it is one score, the sum unless
weighted: --config.reward_from=RUN/reward_ratings "--config.reward_weights={'warm': 0.0}".
"""

from configs.world import reward


def get_config():
    c = reward.get_config()
    c.loss = "regression"
    c.data.path = c.get_ref("init_from") + "/../ratings"
    return c
