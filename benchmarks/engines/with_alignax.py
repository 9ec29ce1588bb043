"""alignax's part of benchmarks/rollouts.py; `plain`: without refilled or fewer slots, shared prompts and blocks."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import timed

from alignax import __version__
from alignax.data.arrays import pad
from alignax.models import decoder as decoders
from alignax.sampling import slots
from alignax.sampling.sample import row_keys, sample
from benchmarks.policies import load


def main() -> None:
    """The command line."""
    asked = timed.settings()
    if asked["plain"]:
        slots.LEAST, decoders.BLOCKS = 1 << 30, 1
    model, params = load(asked["folder"])
    model = decoders.decoder(dataclasses.replace(model.config, dtype=asked["dtype"]))
    prompts, M = asked["prompts"], 1 if asked["plain"] else asked["samples"]
    each = [prompt for prompt in prompts for _ in range(asked["samples"] // M)]
    tokens, valid = pad(each, max(map(len, prompts)), 0, left=True)
    ends, rows = jnp.asarray(asked["ends"], jnp.int32), jnp.arange(len(each) * M)

    @jax.jit
    def draw(params, key):
        fixed = {"capacity": asked["cap"], "eos_ids": ends, "pad_id": 0, "group": M, "slots": asked["slots"]}
        return sample(model, params, jnp.asarray(tokens), jnp.asarray(valid), row_keys(key, rows), **fixed).mask.sum(1)

    program = draw.lower(params, jax.random.key(0)).compile()
    memory = program.memory_analysis()
    lengths = lambda number: np.asarray(program(params, jax.random.key(number))).tolist()  # noqa: E731
    timed.run(asked, __version__, lengths, temporary_mb=memory.temp_size_in_bytes / 1e6, jax=jax.__version__)


if __name__ == "__main__":
    main()
