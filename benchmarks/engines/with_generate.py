"""Hugging Face's `generate` (PyTorch), for benchmarks/rollouts.py."""

import timed
import torch
import transformers
from transformers import AutoModelForCausalLM


def main() -> None:
    """The command line."""
    asked = timed.settings()
    model = AutoModelForCausalLM.from_pretrained(asked["folder"], dtype=getattr(torch, asked["dtype"]))
    longest = max(map(len, asked["prompts"]))
    rows = [[0] * (longest - len(ids)) + ids for ids in asked["prompts"]]
    tokens = torch.tensor(rows)
    there = torch.tensor([[0] * (longest - len(ids)) + [1] * len(ids) for ids in asked["prompts"]])
    ends = torch.tensor(asked["ends"])

    def rollout(number: int) -> list[int]:
        torch.manual_seed(number)  # the first round, which does not count, is short: nothing is compiled
        out = model.generate(
            tokens, attention_mask=there, do_sample=True, temperature=1.0, top_k=0, top_p=1.0,
            num_return_sequences=asked["samples"], max_new_tokens=asked["cap"] if number else 8,
            eos_token_id=asked["ends"], pad_token_id=0,
        )[:, longest:]  # fmt: skip
        over = torch.isin(out, ends)
        first = torch.where(over.any(1), over.int().argmax(1) + 1, out.shape[1])
        return first.tolist()

    timed.run(asked, transformers.__version__, rollout)


if __name__ == "__main__":
    main()
