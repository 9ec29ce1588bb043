"""Memory of PPO: four full copies of a model, against adapters and heads on one frozen base.

Command: python benchmarks/roles.py [--shapes llama-30M] [--rank 16] [--rollout] [--write benchmarks/results/roles.json]

Policy, reference, reward model and critic have one shape. "copies" trains all parameters of policy and critic, as the
online stage does without `lora_args`; "one base" is the stage with them. Columns, in MB: `model` is the decoder alone;
`held` is what lies on the device between two iterations, train state and frozen parameters, each array once; `live` is
the same as measured with `jax.live_arrays()`, once the state has gone through an iteration (small shapes only, the
others are planned from shapes and never allocated); `arguments` and `temporary` are those of the compiled iteration
(its memory analysis; outputs lie where the donated state was). `held/model` is how many models that is.

--rollout measures what the adapter costs the sampler: seconds and temporary MB of one rollout on the small shape with
no adapter, with the adapter beside its kernels, as it is, and worked into them once per rollout; and, in bfloat16, how
far the sampler's log-probabilities are from the learner's (root mean square, nats per token).
"""

import argparse
import dataclasses
import gc
import json
import platform
import statistics
import time
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from rich.console import Console
from rich.table import Table

import alignax
from alignax import forward, lora
from alignax.config import Reader, plain
from alignax.log import replace_file
from alignax.models.config import ModelConfig
from alignax.models.decoder import decoder
from alignax.models.presets import llama
from alignax.sampling.sample import row_keys, sample
from alignax.stages import online, parents, roles
from alignax.train import online as loop
from alignax.train.state import new_online_state

# shape -> (model, rows, prompt tokens, completion tokens, whether it is run as well as planned)
SHAPES = {
    "llama-30M": (llama(vocab_size=8192), 8, 64, 64, True),
    "llama-135M": (llama(vocab_size=49152, dim=576, layers=30, heads=9, kv_heads=3, ffn=1536), 8, 64, 64, False),
    "llama-1B": (llama(vocab_size=128256, dim=2048, layers=16, heads=32, kv_heads=8, ffn=8192), 8, 64, 64, False),
}
KINDS = ("copies", "one base")


def settings(kind: str, rank: int, rows: int, new: int) -> Reader:
    """The online stage's config of a kind."""
    c = online.get_config()
    c.batch_size, c.max_new_tokens, c.total_steps = rows, new, 2
    c.update_args = {"epochs": 2, "minibatches": 2}
    c.lora_args = {"rank": rank} if kind == "one base" else {}
    return Reader(plain(c))


def models(cfg: Reader, model: Any) -> roles.Roles:
    """Random parameters in every role, as `roles.load` finds them in the folders of finished stages."""
    whole = lambda seed: parents.init_params(model, jax.random.key(seed), scalar=seed > 0)  # noqa: E731
    policy, value = whole(0), whole(1)
    if not cfg.lora_args:
        return roles.Roles(model, policy, whole(2), (model, whole(3)), model, value, None, None)
    base = {"decoder": policy["decoder"]}
    judge = base | {"lora": lora.init(jax.random.key(2), base, **cfg.lora_args), "scalar": value["scalar"]}
    learns, still = parents.learner(cfg, base)
    values, beneath = parents.learner(cfg, judge)
    return roles.Roles(model, learns, base, (model, judge), model, values, {"policy": still, "critic": beneath}, {})
