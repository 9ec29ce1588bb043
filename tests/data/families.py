"""Chat templates in the token formats that model families have published, written anew, and goldens of one dialogue.

In a golden the assistant's turns stand between [[ and ]]: the words and the token by which the family ends a turn. The
tokenizer has one token per byte and one per control token, so that a golden can be read off; `spelled` turns it into
ids and mask without the tokenizer. Sources are the model cards: Qwen2.5, Llama 2, Llama 3, Mistral v0.3, Gemma, Phi-3,
Zephyr, TULU 2, SmolLM3, Gemma 3, Qwen3.
"""

import re
from typing import NamedTuple

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

ASK, TURN = {"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes"}
DIALOGUE = [ASK, TURN, {"role": "user", "content": "why"}, {"role": "assistant", "content": "so"}]
SYSTEM = {"role": "system", "content": "be kind"}


class Family(NamedTuple):
    """A template, its control tokens (end of sequence first, beginning second or ""), the turn's end, the golden."""

    template: str
    tokens: tuple[str, ...]
    end: str
    system: bool
    golden: str


FAMILIES = {
    "chatml": Family(
        "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
        ("<|endoftext|>", "", "<|im_start|>", "<|im_end|>"),
        "<|im_end|>",
        True,
        "<|im_start|>system\nbe kind<|im_end|>\n<|im_start|>user\nhi<|im_end|>\n"
        "<|im_start|>assistant\n[[yes<|im_end|>]]\n<|im_start|>user\nwhy<|im_end|>\n"
        "<|im_start|>assistant\n[[so<|im_end|>]]",
    ),
    "llama2": Family(
        "{% if messages[0].role == 'system' %}{% set told = '<<SYS>>\n' + messages[0].content + '\n<</SYS>>\n\n' %}"
        "{% set rest = messages[1:] %}{% else %}{% set told = '' %}{% set rest = messages %}{% endif %}"
        "{% for m in rest %}{% if m.role == 'user' %}"
        "{{ bos_token + '[INST] ' + (told if loop.first else '') + m.content + ' [/INST]' }}"
        "{% else %}{{ ' ' + m.content + ' ' + eos_token }}{% endif %}{% endfor %}",
        ("</s>", "<s>"),
        "</s>",
        True,
        "<s>[INST] <<SYS>>\nbe kind\n<</SYS>>\n\nhi [/INST][[ yes </s>]]<s>[INST] why [/INST][[ so </s>]]",
    ),
    "llama3": Family(
        "{{ bos_token }}{% for m in messages %}"
        "{{ '<|start_header_id|>' + m.role + '<|end_header_id|>\n\n' + m.content + '<|eot_id|>' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}",
        ("<|end_of_text|>", "<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
        "<|eot_id|>",
        True,
        "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nbe kind<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nhi<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n[[yes<|eot_id|>]]"
        "<|start_header_id|>user<|end_header_id|>\n\nwhy<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n[[so<|eot_id|>]]",
    ),
    "mistral": Family(
        "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}{{ '[INST] ' + m.content + '[/INST]' }}"
        "{% elif m.role == 'assistant' %}{{ ' ' + m.content + eos_token }}"
        "{% else %}{{ raise_exception('only user and assistant') }}{% endif %}{% endfor %}",
        ("</s>", "<s>", "[INST]", "[/INST]"),
        "</s>",
        False,
        "<s>[INST] hi[/INST][[ yes</s>]][INST] why[/INST][[ so</s>]]",
    ),
    "gemma": Family(
        "{{ bos_token }}{% for m in messages %}"
        "{% if m.role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
        "{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate') }}{% endif %}"
        "{{ '<start_of_turn>' + ('model' if m.role == 'assistant' else m.role) + '\n' + m.content | trim }}"
        "{{ '<end_of_turn>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}",
        ("<eos>", "<bos>", "<start_of_turn>", "<end_of_turn>"),
        "<end_of_turn>",
        False,
        "<bos><start_of_turn>user\nhi<end_of_turn>\n<start_of_turn>model\n[[yes<end_of_turn>]]\n"
        "<start_of_turn>user\nwhy<end_of_turn>\n<start_of_turn>model\n[[so<end_of_turn>]]",
    ),
    "phi3": Family(
        "{% for m in messages %}{{ '<|' + m.role + '|>\n' + m.content + '<|end|>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}",
        ("<|endoftext|>", "", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>"),
        "<|end|>",
        True,
        "<|system|>\nbe kind<|end|>\n<|user|>\nhi<|end|>\n<|assistant|>\n[[yes<|end|>]]\n"
        "<|user|>\nwhy<|end|>\n<|assistant|>\n[[so<|end|>]]",
    ),
    "zephyr": Family(
        "{% for m in messages %}{{ '<|' + m.role + '|>\n' + m.content + eos_token + '\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}",
        ("</s>", "<s>"),  # its role marks are plain text
        "</s>",
        True,
        "<|system|>\nbe kind</s>\n<|user|>\nhi</s>\n<|assistant|>\n[[yes</s>]]\n"
        "<|user|>\nwhy</s>\n<|assistant|>\n[[so</s>]]",
    ),
    "smollm3": Family(  # a thought that is left out is an empty one, which the prompt opens and the turn keeps
        "{{ '<|im_start|>system\nReasoning: off\n' }}"
        "{{ messages[0].content if messages[0].role == 'system' else 'be kind' }}{{ '<|im_end|>\n' }}"
        "{% for m in messages %}{% if m.role == 'user' %}{{ '<|im_start|>user\n' + m.content + '<|im_end|>\n' }}"
        "{% elif m.role == 'assistant' %}"
        "{{ '<|im_start|>assistant\n<think>\n\n</think>\n' + m.content + '<|im_end|>\n' }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n<think>\n\n</think>\n' }}{% endif %}",
        ("<|end_of_text|>", "", "<|im_start|>", "<|im_end|>", "<think>", "</think>"),
        "<|im_end|>",
        True,
        "<|im_start|>system\nReasoning: off\nbe kind<|im_end|>\n<|im_start|>user\nhi<|im_end|>\n"
        "<|im_start|>assistant\n<think>\n\n</think>\n[[yes<|im_end|>]]\n<|im_start|>user\nwhy<|im_end|>\n"
        "<|im_start|>assistant\n<think>\n\n</think>\n[[so<|im_end|>]]",
    ),
    "gemma3": Family(  # the system's words open the first question
        "{{ bos_token }}{% if messages[0].role == 'system' %}{% set first = messages[0].content + '\n\n' %}"
        "{% set rest = messages[1:] %}{% else %}{% set first = '' %}{% set rest = messages %}{% endif %}"
        "{% for m in rest %}{{ '<start_of_turn>' + ('model' if m.role == 'assistant' else m.role) + '\n' }}"
        "{{ first if loop.first }}{{ m.content | trim }}{{ '<end_of_turn>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}",
        ("<eos>", "<bos>", "<start_of_turn>", "<end_of_turn>"),
        "<end_of_turn>",
        True,
        "<bos><start_of_turn>user\nbe kind\n\nhi<end_of_turn>\n<start_of_turn>model\n[[yes<end_of_turn>]]\n"
        "<start_of_turn>user\nwhy<end_of_turn>\n<start_of_turn>model\n[[so<end_of_turn>]]",
    ),
    "tulu": Family(
        "{% for m in messages %}{{ '<|' + m.role + '|>\n' + m.content }}"
        "{% if m.role == 'assistant' %}{{ eos_token }}{% endif %}"
        "{% if not loop.last %}{{ '\n' }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '\n<|assistant|>\n' }}{% endif %}",
        ("</s>", "<s>"),
        "</s>",
        True,
        "<|system|>\nbe kind\n<|user|>\nhi\n<|assistant|>\n[[yes</s>]]\n<|user|>\nwhy\n<|assistant|>\n[[so</s>]]",
    ),
}

# Qwen 3's way with thoughts: those behind the last question are written, with an empty one where there is none, and
# those of earlier turns are left out. So an earlier turn is rewritten by what follows, and only the last can be learnt.
QWEN3 = Family(
    "{% set ns = namespace(last=0) %}{% for m in messages %}{% if m.role == 'user' %}{% set ns.last = loop.index0 %}"
    "{% endif %}{% endfor %}{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}"
    "{% set said = m.content.split('</think>')[-1].lstrip('\n') %}"
    "{% set thought = m.content.split('</think>')[0].split('<think>')[-1].strip('\n') if '</think>' in m.content %}"
    "{% if m.role == 'assistant' and loop.index0 > ns.last %}"
    "{{ '<think>\n' + (thought or '') + '\n</think>\n\n' + said }}{% else %}{{ said }}{% endif %}"
    "{{ '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
    "{% if enable_thinking is defined and not enable_thinking %}{{ '<think>\n\n</think>\n\n' }}{% endif %}{% endif %}",
    ("<|endoftext|>", "", "<|im_start|>", "<|im_end|>"),  # its <think> is an added token, and no control token
    "<|im_end|>",
    True,
    "<|im_start|>system\nbe kind<|im_end|>\n<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\nyes<|im_end|>\n"
    "<|im_start|>user\nwhy<|im_end|>\n<|im_start|>assistant\n[[<think>\nhm\n</think>\n\nso<|im_end|>]]",
)


def tokenizer_of(family: Family, merges: list[tuple[str, str]] | None = None) -> PreTrainedTokenizerFast:
    """Ids 0 to 255 are bytes, then come the results of `merges`, then the family's control tokens in their order."""
    letters = pre_tokenizers.ByteLevel.alphabet()
    vocabulary = {letter: i for i, letter in enumerate(sorted(letters))}
    for left, right in merges or ():
        vocabulary[left + right] = len(vocabulary)
    backend = Tokenizer(models.BPE(vocabulary, merges or []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)  # merges go over words
    backend.decoder = decoders.ByteLevel()
    named = [token for token in family.tokens if token]
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in named])
    eos, bos, *_ = family.tokens
    if bos:  # as these tokenizers do with a plain text
        first = (bos, named.index(bos) + len(vocabulary))
        backend.post_processor = processors.TemplateProcessing(f"{bos} $A", special_tokens=[first])
    out = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=eos, **({"bos_token": bos} if bos else {}))
    out.chat_template = family.template
    return out


def spelled(text: str, family: Family) -> tuple[list[int], list[bool]]:
    """Ids and mask of a golden: one per control token or byte, those between [[ and ]] masked in."""
    letters = {letter: i for i, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    letters |= {" ": letters["Ġ"], "\n": letters["Ċ"]}
    named = [token for token in family.tokens if token]
    ids, mask, inside = [], [], False
    for piece in re.findall("|".join(map(re.escape, ["[[", "]]", *named])) + "|(?s:.)", text):
        if piece in ("[[", "]]"):
            inside = piece == "[["
            continue
        ids.append(256 + named.index(piece) if piece in named else letters[piece])
        mask.append(inside)
    return ids, mask
