"""An adapter of peft's format -> one on a finished checkpoint: what has to fit, and the settings to go on with."""

from pathlib import Path
from typing import Any

import jax
import numpy as np

from alignax.config import ConfigError
from alignax.data.counts import DataError
from alignax.data.tokenizer import load_tokenizer, tokenizer_hash, vocabulary
from alignax.interop.origin import family_of, origin_of
from alignax.log import console
from alignax.models.hf.peft_in import Adapter, load_adapter
from alignax.types import Model, Params


def load_onto(base: Path, model: Model, folder: Path, found: Adapter) -> Params:
    """The parameters of an adapter, in the shapes of the checkpoint `base`, whose model is `model`.

    Raises ValueError with all tensors that do not fit.
    """
    layers = jax.eval_shape(model.init, jax.random.key(0))["decoder"]["layers"]
    kernels = {name: x["kernel"].shape for name, x in layers.items() if "kernel" in x}
    return load_adapter(folder, found, family_of(model.config, origin_of(base)), model.config, kernels)


def say_own(folder: Path, used: Any) -> None:
    """Says so if an adapter's folder brings a tokenizer or a chat template other than those that are `used`."""
    template, files = folder / "chat_template.jinja", [folder / f"tokenizer{end}.json" for end in ("", "_config")]
    differ = []
    if any(file.is_file() for file in files):
        try:
            tokenizer = load_tokenizer(str(folder))
            differ += ["tokenizer"] if tokenizer_hash(tokenizer) != tokenizer_hash(used) else []
            differ += ["chat template"] if tokenizer.chat_template != used.chat_template else []
        except DataError:  # of a kind that is not read: no reason to refuse the weights
            differ = ["tokenizer"]
    elif template.is_file() and template.read_text(encoding="utf-8") != used.chat_template:
        differ = ["chat template"]
    if differ:
        console.print(
            f"[yellow]{folder} brings another {' and '.join(differ)}, which is not used: the base's is, or that of "
            f"--tokenizer; --tokenizer={folder} takes the adapter's[/]",
            soft_wrap=True,
        )


def check_tokens(tokenizer: Any, rows: int) -> None:
    """Raises ConfigError for a tokenizer of another number of tokens than the base has."""
    if (tokens := vocabulary(tokenizer)) != rows:
        given = f"config.tokenizer has {tokens} tokens, the base {rows}"
        raise ConfigError(f"{given}: an adapter does not change them; leave it empty")


def settings_of(found: Adapter, params: Params) -> dict[str, Any]:
    """The `lora_args` with which a stage goes on with an adapter: alpha from its scale, which joined layers share."""
    layers = params["lora"]["layers"]
    one = next(iter(layers.values()))
    rank, rslora = one["a"].shape[-1], bool(found.config.get("use_rslora"))
    return {
        "rank": rank,
        "alpha": round(float(np.asarray(one["scale"])[0]) * (rank**0.5 if rslora else rank), 6),
        "targets": f"^({'|'.join(sorted(layers))})$",
        "rslora": rslora,
        "dora": bool(found.config.get("use_dora")),
    }


def attributes_of(found: Adapter, params: Params) -> dict[str, list[str]]:
    """The attributes of a head of several scores, called as transformers does where the file says nothing; else {}."""
    if np.ndim(params.get("scalar", {}).get("kernel")) < 2:
        return {}
    return {
        "attributes": found.note.get("attributes", [f"LABEL_{i}" for i in range(params["scalar"]["kernel"].shape[1])])
    }


def check_base(base: str, trusted: bool, *, is_step: bool) -> None:
    """Raises ConfigError for a base of Hugging Face's format that is no folder of a stage, and for trust in none."""
    folder = Path(base).expanduser()
    if trusted and not base:
        raise ConfigError("config.trust_base is set, but config.base is empty: nothing reads it")
    if base and not is_step and (folder / "config.json").is_file():
        raise ConfigError(
            f"config.base = {base!r} is a checkpoint of Hugging Face's format: import it first "
            f"(alignax import {base} runs/base), and name that"
        )


def check_named(found: Adapter, base: Path, manifest: dict[str, Any]) -> None:
    """Raises ConfigError if an adapter says that it was made on another base.

    One of alignax knows its base by content. Any other has a name: it is compared with the one that the base was
    imported by, where both are names on the hub; else by its last part, since the folders of two machines differ, with
    that of `base`, or of what it was imported from. Without a name nothing can be said.
    """
    content, name = found.note.get("base"), found.config.get("base_model_name_or_path") or ""
    origin = manifest["config"].get("path", "")
    hub = _on_hub(name) and _on_hub(origin)
    known = [origin] if hub else sorted({Path(x).name for x in (str(base), origin) if x})
    called = (name if hub else Path(name).name).lower()
    if content == manifest["content_hash"] if content else not name or called in map(str.lower, known):
        return
    recorded = f"the content {content[:12]}" if content else repr(name)
    actual = f"the content {manifest['content_hash'][:12]}" if content else " or ".join(map(repr, known))
    raise ConfigError(
        f"the adapter was trained on {recorded}, config.base = {str(base)!r} is {actual}: name the base that it was "
        "trained on; if this is the same model under another name, say so with --trust-base"
    )


def _on_hub(name: str) -> bool:
    """Whether a name has the form OWNER/NAME and is no folder here."""
    return name.count("/") == 1 and not name.startswith((".", "~", "/")) and not Path(name).is_dir()
