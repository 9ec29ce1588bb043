"""vLLM's part of benchmarks/served.py: greedy replies to prompts of token ids, with their log-probabilities.

Command: PYTHON with_vllm.py settings.json run.json, where PYTHON has vLLM. It loads the folder as anybody would: no
length, no end and no template are told. Its sampling parameters get no seed, for which its generator on a CPU fails.
"""

import json
import os
import sys
from pathlib import Path

os.environ |= {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")  # GB


def main() -> None:
    """Writes {"version", "context", "replies": [{"ids", "logp", "gap"}, ...]}; gap: of the two most probable tokens."""
    import vllm

    asked = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    engine = vllm.LLM(asked["folder"], enforce_eager=True, dtype="float32")
    sampling = vllm.SamplingParams(temperature=0, max_tokens=asked["max_new_tokens"], logprobs=2)
    prompts = [{"prompt_token_ids": ids} for ids in asked["prompts"]]
    replies = []
    for found in engine.generate(prompts, sampling):
        (reply,) = found.outputs
        told = [{i: one.logprob for i, one in step.items()} for step in reply.logprobs]
        best = [sorted(step.values(), reverse=True) for step in told]
        replies.append({
            "ids": list(reply.token_ids),
            "logp": [step[i] for step, i in zip(told, reply.token_ids)],
            "gap": [first - second for first, second, *_ in best],
        })  # fmt: skip
    context = engine.llm_engine.model_config.max_model_len
    made = {"version": vllm.__version__, "context": context, "replies": replies}
    Path(sys.argv[2]).write_text(json.dumps(made), encoding="utf-8")


if __name__ == "__main__":
    main()
