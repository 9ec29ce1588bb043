"""vLLM's part of benchmarks/rollouts.py. No seed: on a CPU its generator fails with one."""

import os

import timed

os.environ |= {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "4")  # GB


def main() -> None:
    """The command line."""
    import vllm

    asked = timed.settings()
    longest = max(map(len, asked["prompts"])) + asked["cap"]
    options = {"dtype": asked["dtype"], "skip_tokenizer_init": True, "max_model_len": longest}
    engine = vllm.LLM(asked["folder"], **options)
    sampling = vllm.SamplingParams(
        n=asked["samples"], temperature=1.0, max_tokens=asked["cap"], stop_token_ids=asked["ends"], logprobs=0,
        detokenize=False,
    )  # fmt: skip
    prompts = [{"prompt_token_ids": ids} for ids in asked["prompts"]]

    def rollout(number: int) -> list[int]:
        del number
        found = engine.generate(prompts, sampling, use_tqdm=False)
        return [len(reply.token_ids) for one in found for reply in one.outputs]

    timed.run(asked, vllm.__version__, rollout)


if __name__ == "__main__":
    main()
