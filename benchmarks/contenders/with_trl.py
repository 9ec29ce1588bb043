"""TRL's own trainers (PyTorch), on the prepared token ids.

Options are fields of the trainer's config. Left at what a user would choose on a machine that holds the model:
no gradient checkpointing, the fused AdamW, SDPA attention, batches padded to their longest row, no saving.
"""

import copy
import math
import sys
import time
import warnings
from pathlib import Path

import measure
import torch
import transformers
from datasets import Dataset
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification, TrainerCallback
from trl import DPOConfig, DPOTrainer, RewardConfig, RewardTrainer, SFTConfig, SFTTrainer

CONFIGS = {"sft": SFTConfig, "dpo": DPOConfig, "reward": RewardConfig}


def model_of(settings: dict, vocab_size: int):
    """The same shape with random weights."""
    shape = settings["shape"]
    config = LlamaConfig(
        vocab_size=vocab_size, hidden_size=shape["dim"], num_hidden_layers=shape["layers"],
        num_attention_heads=shape["heads"], num_key_value_heads=shape["kv_heads"], head_dim=shape["head_dim"],
        intermediate_size=shape["ffn"], tie_word_embeddings=True, max_position_embeddings=2048, num_labels=1,
    )  # fmt: skip
    torch.manual_seed(0)
    return (LlamaForSequenceClassification if settings["loss"] == "reward" else LlamaForCausalLM)(config)


def dataset_of(loss: str, pairs: list[dict]) -> Dataset:
    """The ids in the columns that the trainers make for themselves."""
    if loss == "sft":
        masks = [[0] * len(pair["prompt_ids"]) + [1] * len(pair["chosen_ids"]) for pair in pairs]
        return Dataset.from_dict(
            {"input_ids": [pair["prompt_ids"] + pair["chosen_ids"] for pair in pairs], "completion_mask": masks}
        )
    if loss == "reward":
        names = ("chosen", "rejected")
        return Dataset.from_dict(
            {f"{name}_ids": [pair["prompt_ids"] + pair[f"{name}_ids"] for pair in pairs] for name in names}
        )
    return Dataset.from_dict({name: [pair[name] for pair in pairs] for name in ("prompt", "chosen", "rejected")})


def arguments(settings: dict):
    """The trainer's config."""
    options = {
        "output_dir": str(Path(sys.argv[2]).with_suffix("")), "max_length": settings["max_length"],
        "per_device_train_batch_size": settings["batch"], "max_steps": settings["total_steps"],
        "learning_rate": settings["learning_rate"], "lr_scheduler_type": "cosine", "seed": 0,
        "bf16": settings["dtype"] == "bfloat16", "use_cpu": not torch.cuda.is_available(), "save_strategy": "no",
        "gradient_checkpointing": False, "report_to": "none", "logging_first_step": True, "disable_tqdm": True,
        "dataloader_pin_memory": torch.cuda.is_available(),
    }  # fmt: skip
    return CONFIGS[settings["loss"]](**options | settings["options"])


def trainer_of(settings: dict, pairs: list[dict], tokenizer):
    """The trainer of a loss; that of DPO tokenises for itself, and must find the ids that the others are given."""
    loss, model, data = settings["loss"], model_of(settings, len(tokenizer)), dataset_of(settings["loss"], pairs)
    common = {"args": arguments(settings), "train_dataset": data, "processing_class": tokenizer}
    if loss == "sft":
        return SFTTrainer(model, **common)
    if loss == "reward":
        return RewardTrainer(model, **common)
    reference = None if common["args"].precompute_ref_log_probs else copy.deepcopy(model)
    trainer = DPOTrainer(model, reference, **common)
    names = ("prompt_ids", "chosen_ids", "rejected_ids")
    if any(list(trainer.train_dataset[name]) != [pair[name] for pair in pairs] for name in names):
        warnings.warn("TRL's tokens are not those of the other contenders", stacklevel=1)
    return trainer


class Watch(TrainerCallback):
    """Notes the end of every step."""

    def __init__(self):
        self.ends = measure.Ends()

    def on_step_end(self, args, state, control, **kwargs):
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.ends.note()


def count_tokens(trainer, loss: str) -> list[int]:
    """A list that fills with the real tokens of each batch, counted as `measure.real_tokens` does."""
    tokens, collate = [], trainer.data_collator

    def length(row: dict) -> int:
        if loss == "dpo":
            return 2 * len(row["prompt_ids"]) + len(row["chosen_ids"]) + len(row["rejected_ids"])
        return len(row["input_ids"]) if loss == "sft" else len(row["chosen_ids"]) + len(row["rejected_ids"])

    def counted(rows):
        tokens.append(sum(map(length, rows)))
        return collate(rows)

    trainer.data_collator = counted
    return tokens


def main() -> None:
    """One training run."""
    settings, pairs = measure.load()
    tokenizer = transformers.AutoTokenizer.from_pretrained(settings["tokenizer"])
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    begun = time.perf_counter()
    trainer, watch = trainer_of(settings, pairs, tokenizer), Watch()
    setup = time.perf_counter() - begun
    trainer.add_callback(watch)
    tokens = count_tokens(trainer, settings["loss"])
    trainer.train()
    losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    measure.finish(
        settings, watch.ends, tokens, losses, ("trl", "transformers", "torch"), setup_s=setup,
        threads=torch.get_num_threads(), parameters=sum(math.prod(p.shape) for p in trainer.model.parameters()),
    )  # fmt: skip


if __name__ == "__main__":
    main()
