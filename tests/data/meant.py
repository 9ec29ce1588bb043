"""Small chat tokenizers, and what is learnt of rows as a source gives them: for the tests of what rows mean."""

from families import FAMILIES, Family, tokenizer_of
from tokenizers import AddedToken

from alignax.data.encode import demo_rows
from alignax.data.forms import convert

CHATML = FAMILIES["chatml"]
HEAD = "{% if tools %}{{ '<|im_start|>system\n' + tools | tojson + '<|im_end|>\n' }}{% endif %}"
CALLS = (
    "{% for c in m.tool_calls or [] %}{{ '<tool_call>' + {'name': c.function.name, 'arguments': c.function.arguments}"
    " | tojson + '</tool_call>' }}{% endfor %}"
)
TURN = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + (m.content or '') }}" + CALLS + "{{ END }}{% endfor %}"
)
ASKS = "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
PLAIN = HEAD + TURN.replace("END", "'<|im_end|>\n'") + ASKS
# the prompt opens a thought, and the last turn shows the one that it is told under its own key or between its tags
OPENS = (
    "{% set ns = namespace(last=-1) %}{% for m in messages %}{% if m.role == 'user' %}{% set ns.last = loop.index0 %}"
    "{% endif %}{% endfor %}"
    "{% for m in messages %}{% set said = m.content %}{% set thought = m.reasoning_content or '' %}"
    "{% if m.role == 'assistant' and '<think>' in said and '</think>' in said %}"
    "{% set thought = said.split('</think>')[0].split('<think>')[-1].strip('\n') %}"
    "{% set said = said.split('</think>')[-1].lstrip('\n') %}{% endif %}{{ '<|im_start|>' + m.role + '\n' }}"
    "{% if m.role == 'assistant' and loop.index0 > ns.last %}{{ '<think>\n' + thought + '\n</think>\n\n' }}{% endif %}"
    "{{ said + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n<think>\n' }}{% endif %}"
)
DROPS = CHATML.template.replace("m.content", "m.content.split('</think>')[-1]")
MARKED = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}{% if m.role == 'assistant' %}{% generation %}"
    "{{ m.content + '<|im_end|>' }}{% endgeneration %}{{ '\n' }}{% else %}{{ m.content + '<|im_end|>\n' }}{% endif %}"
    "{% endfor %}" + ASKS
)
NO_END = "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content }}{% endfor %}" + ASKS
CHAT = {"template": "chat", "max_length": 512}
TWO_AND_TWO = "<think>\ntwo and two\n</think>\n\nfour"


def chat(template=PLAIN, normalizer=None, tokens=()):
    """A tokenizer of bytes with this template, and with <tool_call> and <think> as merely added tokens."""
    out = tokenizer_of(Family(template, (*CHATML.tokens, *tokens), "", True, ""))
    added = [AddedToken(f"<{end}{name}>", special=False) for name in ("tool_call", "think") for end in ("", "/")]
    out.backend_tokenizer.add_tokens(added)
    if normalizer:
        out.backend_tokenizer.normalizer = normalizer
    return type(out)(tokenizer_object=out.backend_tokenizer, eos_token=out.eos_token, chat_template=template)


def said(role, content, **rest):
    return {"role": role, "content": content} | rest


def calls(*arguments, name="f"):
    told = [{"type": "function", "function": {"name": name, "arguments": one}} for one in arguments]
    return said("assistant", "", tool_calls=told)


def learnt(rows, tokenizer, form="prompt_completion", encode=demo_rows, **options):
    """What is in the mask of each row, as text, and the counts; rows as a source gives them."""
    rows, counts = convert(rows, form, template="chat")
    batch, counts = encode(rows, tokenizer, counts=counts, **CHAT | options)
    return [tokenizer.decode(t[m]) for t, m in zip(batch["tokens"], batch["mask"])], counts


def text_of(rows, tokenizer, **options):
    """The whole text of the first row."""
    rows, _ = convert(rows, "prompt_completion", template="chat")
    batch, _ = demo_rows(rows, tokenizer, **CHAT | options)
    return tokenizer.decode(batch["tokens"][0][batch["valid"][0]])
