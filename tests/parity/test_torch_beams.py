"""Beam search is transformers' `generate(num_beams=...)`, on a small Llama."""

import functools
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")
sys.path.insert(0, str(Path(__file__).parents[1] / "models"))

import hf_cases  # noqa: E402
import hf_runs  # noqa: E402
import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402
import torch_families  # noqa: E402
import transformers  # noqa: E402

from alignax.sampling.beam import beam  # noqa: E402
from tests.marks import quick  # noqa: E402

W, L, C, ENDS = 4, 6, 9, (2, 7, 11)


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """(their model, our search by `early_stopping`); logits are four times as far apart, else all replies are level."""
    folder = tmp_path_factory.mktemp("llama")
    torch_families.save(torch_families.build("llama"), folder)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    theirs.lm_head.weight.data *= 4
    theirs.save_pretrained(folder)
    model, params = hf_runs.load(folder)

    @functools.cache
    def program(early):
        fixed = dict(beams=W, n=W, capacity=C, eos_ids=jnp.array(ENDS), pad_id=0, early_stopping=early)
        return jax.jit(lambda *prompts, penalty: beam(model, params, *prompts, length_penalty=penalty, **fixed))

    return theirs, program


CASES = {"False, 1": (False, 1.0), "False, 0": (False, 0.0), "False, 2": (False, 2.0)}
CASES |= {"True, 1": (True, 1.0), "never, 1": ("never", 1.0)}


@pytest.mark.parametrize("name", quick(CASES, "False, 1", "False, 0"))
def test_the_same_replies_with_the_same_scores(both, name):
    (theirs, ours), (early, penalty) = both, CASES[name]
    rng = np.random.default_rng(0)
    tokens = rng.integers(12, hf_cases.V, (5, L)).astype(np.int32)
    valid = np.arange(L)[None] >= np.array([0, 3, 1, 0, 2])[:, None]
    tokens = np.where(valid, tokens, 0)
    with torch.no_grad():
        want = theirs.generate(
            input_ids=torch.tensor(tokens).long(), attention_mask=torch.tensor(valid).long(), max_new_tokens=C,
            num_beams=W, num_return_sequences=W, length_penalty=penalty, early_stopping=early, do_sample=False,
            eos_token_id=list(ENDS), pad_token_id=0, return_dict_in_generate=True, output_scores=True,
        )  # fmt: skip
    got = ours(early)(tokens, valid, penalty=penalty)
    replies = want.sequences[:, L:].numpy()
    replies = np.pad(replies, ((0, 0), (0, C - replies.shape[1])))
    np.testing.assert_allclose(got.score, want.sequences_scores.numpy(), atol=2e-4)
    mask = np.asarray(got.rollout.mask)[:, L:]
    np.testing.assert_array_equal(np.where(mask, got.rollout.tokens[:, L:], 0), np.where(mask, replies, 0))
    assert 0 < got.rollout.finished.sum() < 5 * W
