"""Tunix's own trainers (JAX, Flax NNX), on the prepared token ids. It has none for reward models.

As its examples do, rows are padded to the longest of the data, prompts on the left and replies on the right in DPO: one
shape, so that nothing is compiled twice.
"""

import jax
import measure
import numpy as np
import optax
from flax import nnx
from tunix.models.llama3.model import Llama3, ModelConfig
from tunix.sft import hooks, utils
from tunix.sft.dpo.dpo_trainer import DPOTrainer, DPOTrainingConfig, TrainingInput
from tunix.sft.peft_trainer import PeftTrainer, TrainingConfig
from tunix.sft.peft_trainer import TrainingInput as Demonstrations


def model_of(shape: dict, vocab_size: int) -> nnx.Module:
    """The same shape with random weights; Tunix's own start has zeros in the feed-forward layers."""
    config = ModelConfig(
        num_layers=shape["layers"], vocab_size=vocab_size, embed_dim=shape["dim"], hidden_dim=shape["ffn"],
        num_heads=shape["heads"], head_dim=shape["head_dim"], num_kv_heads=shape["kv_heads"], rope_theta=10_000,
        norm_eps=1e-5, weight_tying=True,
    )  # fmt: skip
    model = Llama3(config, rngs=nnx.Rngs(0))
    keys = iter(jax.random.split(jax.random.key(1), 1000))
    state = jax.tree.map(
        lambda x: 0.02 * jax.random.normal(next(keys), x.shape, x.dtype) if x.ndim > 1 else x, nnx.state(model)
    )
    nnx.update(model, state)
    return model


def padded(sequences: list[list[int]], length: int, *, left: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """(ids, mask) [B, length]."""
    ids, mask = np.zeros((len(sequences), length), np.int32), np.zeros((len(sequences), length), np.int32)
    for row, sequence in enumerate(sequences):
        place = slice(length - len(sequence), None) if left else slice(len(sequence))
        ids[row, place], mask[row, place] = sequence, 1
    return ids, mask


def batches(settings: dict, pairs: list[dict], tokens: list[int]):
    """Shuffled batches, epoch after epoch; what they hold is noted in `tokens`."""
    loss, size, rng = settings["loss"], settings["batch"], np.random.default_rng(0)
    longest = {name: max(len(pair[f"{name}_ids"]) for pair in pairs) for name in ("prompt", "chosen", "rejected")}
    prompt, reply = -(-longest["prompt"] // 8) * 8, -(-max(longest["chosen"], longest["rejected"]) // 8) * 8
    whole = -(-max(len(pair["prompt_ids"]) + len(pair["chosen_ids"]) for pair in pairs) // 8) * 8
    order: list[int] = []
    for _ in range(settings["total_steps"]):
        while len(order) < size:
            order += rng.permutation(len(pairs)).tolist()
        rows, order = [pairs[i] for i in order[:size]], order[size:]
        tokens.append(sum(measure.real_tokens(loss, pair) for pair in rows))
        if loss == "sft":
            ids, mask = padded([pair["prompt_ids"] + pair["chosen_ids"] for pair in rows], whole)
            starts = np.array([len(pair["prompt_ids"]) for pair in rows])[:, None]
            # the mask of the loss: replies alone; that of the attention comes from the lengths
            yield Demonstrations(input_tokens=ids, input_mask=mask * (np.arange(whole)[None] >= starts)), mask
            continue
        sides = (padded([p[f"{name}_ids"] for p in rows], reply) for name in ("chosen", "rejected"))
        (chosen, chosen_mask), (rejected, rejected_mask) = sides
        ids, mask = padded([pair["prompt_ids"] for pair in rows], prompt, left=True)
        yield TrainingInput(
            prompt_ids=ids, prompt_mask=mask, chosen_ids=chosen, chosen_mask=chosen_mask, rejected_ids=rejected,
            rejected_mask=rejected_mask,
        )  # fmt: skip


def model_input(batch) -> dict:
    """What the SFT loss takes, as in Tunix's examples."""
    demonstrations, valid = batch
    return {
        "input_tokens": demonstrations.input_tokens,
        "input_mask": demonstrations.input_mask,
        "positions": utils.build_positions_from_mask(valid),
        "attention_mask": utils.make_causal_attn_mask(valid),
    }


class Watch(hooks.TrainingHooks):
    """Notes when the loss of each step is there."""

    def __init__(self):
        self.ends, self.losses = measure.Ends(), []

    def on_train_step_end(self, train_ctx, train_step, train_loss):
        self.ends.note()
        self.losses.append(float(train_loss))

    def _nothing(self, *args, **kwargs):
        pass

    on_train_start = on_train_end = on_train_step_start = on_eval_step_start = on_eval_step_end = _nothing


def trainer_of(settings: dict, vocab_size: int):
    """The trainer of a loss, with alignax's optimizer: AdamW on a cosine after clipping the gradient's norm."""
    total = settings["total_steps"]
    rate = optax.warmup_cosine_decay_schedule(0.0, settings["learning_rate"], max(total // 30, 1), max(total, 2))
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(rate, b2=0.95, weight_decay=0.0))
    common = {"eval_every_n_steps": 10**9, "max_steps": total} | settings["options"]
    model = model_of(settings["shape"], vocab_size)
    if settings["loss"] == "sft":
        return PeftTrainer(model, optimizer, TrainingConfig(**common)).with_gen_model_input_fn(model_input)
    return DPOTrainer(model, nnx.clone(model), optimizer, DPOTrainingConfig(**common))


def main() -> None:
    """One training run."""
    settings, pairs = measure.load()
    if settings["loss"] not in ("sft", "dpo") or settings["dtype"] != "float32":
        raise SystemExit(f"Tunix has no {settings['loss']} in {settings['dtype']} here")
    compiles, watch, tokens = measure.Compiles(), Watch(), []
    trainer = trainer_of(settings, settings["vocab_size"])
    trainer.with_training_hooks(watch)
    trainer.train(batches(settings, pairs, tokens))
    parameters = sum(x.size for x in jax.tree.leaves(nnx.state(trainer.model, nnx.Param)))
    packages = ("google-tunix", "jax", "jaxlib", "flax", "optax")
    measure.finish(settings, watch.ends, tokens, watch.losses, packages, compiles, parameters=parameters)


if __name__ == "__main__":
    main()
