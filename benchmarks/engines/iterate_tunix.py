"""Tunix's part of benchmarks/iterations.py: its GRPO learner with its own sampler (JAX, Flax NNX), else as it comes.

`seconds` are from one pull of the prompts to the next, the last to the end of training: Tunix pulls them once an
iteration, when the update before is done. It cuts the end off a reply, so neither the reward nor the loss sees it; an
end alone has reward 0 and no place in the loss. Prompts and replies are padded to one length each, so that nothing
compiles twice; the seed is set anew for every rollout, or all would draw alike. Its Llama has a RoPE of base 1,000,000
whatever the checkpoint's, which changes no shape.
"""

import json
import sys
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import jax
import numpy as np
import optax
import timed
import with_tunix
from jax.sharding import AxisType
from tunix.rl.grpo.grpo_learner import GRPOConfig, GRPOLearner
from tunix.rl.rl_cluster import ClusterConfig, RLCluster, RLTrainingConfig, Role
from tunix.rl.rollout.base_rollout import RolloutConfig


class Ids(with_tunix.Ids):
    """The same with an end of its own. It is the padding too: what equals the padding is out of the loss anywhere."""

    def __init__(self, end: int):
        self.end = end

    def eos_id(self) -> int:
        return self.end

    pad_id = eos_id


class Rewards:
    """The share of even ids; the mean length of each rollout's replies, their ends included, is noted."""

    __name__ = "even"

    def __init__(self, cap: int):
        self.cap, self.lengths = cap, []

    def __call__(self, prompts, completions, **_) -> list[float]:
        replies = [[int(i) for i in text.split()] for text in completions]
        self.lengths.append(float(np.mean([min(len(ids) + 1, self.cap) for ids in replies])))
        return [sum(i % 2 == 0 for i in ids) / max(len(ids), 1) for ids in replies]


def main() -> None:
    """The command line."""
    asked = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    mesh = jax.make_mesh((1, 1), ("fsdp", "tp"), axis_types=(AxisType.Auto,) * 2)
    count, longest = len(asked["prompts"]), max(map(len, asked["prompts"]))
    rollout = RolloutConfig(
        max_tokens_to_generate=asked["cap"], max_prompt_length=longest, kv_cache_size=longest + asked["cap"],
        temperature=1.0, top_p=1.0, top_k=None,
    )  # fmt: skip
    # the rollout is of all prompts at once whatever the micro batches of the reference and the update
    training = RLTrainingConfig(
        actor_optimizer=optax.adamw(1e-6), max_steps=asked["steps"], eval_every_n_steps=10**9, mini_batch_size=count,
        train_micro_batch_size=count // asked["micro"], rollout_micro_batch_size=count,
    )  # fmt: skip
    cluster = RLCluster(
        actor=with_tunix.load(asked["folder"], mesh), reference=with_tunix.load(asked["folder"], mesh),
        tokenizer=Ids(asked["end"]),
        cluster_config=ClusterConfig(
            role_to_mesh=dict.fromkeys((Role.ACTOR, Role.REFERENCE, Role.ROLLOUT), mesh), rollout_engine="vanilla",
            training_config=training, rollout_config=rollout,
        ),
    )  # fmt: skip
    rewards = Rewards(asked["cap"])
    # k3 is Tunix's low_var_kl
    method = GRPOConfig(num_generations=asked["samples"], num_iterations=1, beta=0.04, kl_loss_mode="low_var_kl")
    learner = GRPOLearner(cluster, method, rewards)
    texts, at = np.array([" ".join(map(str, ids)) for ids in asked["prompts"]]), []

    def batches() -> Iterator[dict]:
        """The prompts again and again; when they are pulled is noted."""
        for number in range(asked["steps"]):
            rollout.seed = number
            at.append(time.perf_counter())
            if number:
                print(at[-1] - at[-2], rewards.lengths[-1], flush=True)
            yield {"prompts": texts}

    learner.train(batches())
    at.append(time.perf_counter())
    seconds = [b - a for a, b in zip(at, at[1:])]
    peak = timed.peak_mb()
    made = {"seconds": seconds, "peak_mb": peak, "version": version("google-tunix")}
    made |= {"lengths": rewards.lengths, "jax": jax.__version__}
    Path(sys.argv[2]).write_text(json.dumps(made), encoding="utf-8")


if __name__ == "__main__":
    main()
