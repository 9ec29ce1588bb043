"""TRL's part of benchmarks/iterations.py: its GRPO trainer, generation by transformers, everything else as it comes."""

import json
import sys
import tempfile
import time
from pathlib import Path

import timed
import torch
import trl
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast, TrainerCallback
from trl import GRPOConfig, GRPOTrainer


class Steps(TrainerCallback):
    """When optimizer steps end."""

    def __init__(self):
        self.at = [time.perf_counter()]

    def on_step_end(self, *_, **__):
        self.at.append(time.perf_counter())
        print(self.at[-1] - self.at[-2], flush=True)


LENGTHS = []  # mean length of the replies, by iteration


def even(completion_ids, **_) -> list[float]:
    """The share of even ids."""
    LENGTHS.append(sum(map(len, completion_ids)) / len(completion_ids))
    return [sum(i % 2 == 0 for i in ids) / max(len(ids), 1) for ids in completion_ids]


def main() -> None:
    """The command line."""
    asked = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    # a word for each id; the end is an id that random weights do not reach more often than others
    words = Tokenizer(models.WordLevel({f"t{i}": i for i in range(asked["vocab"])}, unk_token="t0"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, eos_token="t0", pad_token="t0", padding_side="left")
    model = AutoModelForCausalLM.from_pretrained(asked["folder"], dtype=torch.float32)
    prompts = [" ".join(f"t{i}" for i in ids) for ids in asked["prompts"]]
    rows = len(prompts) * asked["samples"]
    with tempfile.TemporaryDirectory() as folder:
        config = GRPOConfig(
            output_dir=folder, use_cpu=True, per_device_train_batch_size=rows // asked["micro"],
            gradient_accumulation_steps=asked["micro"], num_generations=asked["samples"],
            max_completion_length=asked["cap"], max_steps=asked["steps"], beta=0.04, learning_rate=1e-6,
            temperature=1.0, top_p=1.0, top_k=0, report_to=[], save_strategy="no", logging_steps=100,
            generation_kwargs={} if asked["ends"] else {"min_new_tokens": asked["cap"]},
            gradient_checkpointing=False, bf16=False,
        )  # fmt: skip
        steps = Steps()
        trainer = GRPOTrainer(
            model=model, reward_funcs=even, args=config, processing_class=tokenizer, callbacks=[steps],
            train_dataset=Dataset.from_dict({"prompt": prompts}),
        )  # fmt: skip
        steps.at = [time.perf_counter()]
        trainer.train()
    seconds = [b - a for a, b in zip(steps.at, steps.at[1:])]
    peak = timed.peak_mb()
    made = {"seconds": seconds, "lengths": LENGTHS[: len(seconds)], "peak_mb": peak, "version": trl.__version__}
    Path(sys.argv[2]).write_text(json.dumps(made), encoding="utf-8")


if __name__ == "__main__":
    main()
