"""How an outside engine takes new weights from a folder: (endpoint, folder, timeout_s) -> None, or EngineError.

A config names one by `engine_args = dict(reload=...)`. Each returns when the engine has the weights, and no key of the
old ones in a cache.
"""

from alignax.sampling.endpoint import Endpoint, EngineError, NotThere


def vllm(endpoint: Endpoint, folder: str, *, timeout_s: float) -> None:
    """In place, as the workers of vLLM reload; the paths are there under VLLM_SERVER_DEV_MODE=1 alone."""
    asked = {"method": "reload_weights", "kwargs": {"weights_path": folder}}
    try:
        endpoint.call("/collective_rpc", asked, timeout_s=timeout_s)
        found = endpoint.call("/reset_prefix_cache", {}, timeout_s=timeout_s)
    except NotThere as error:
        raise EngineError(
            f"{error}. Start vLLM with VLLM_SERVER_DEV_MODE=1 in its environment, by which it takes new weights, or "
            "set engine_args.reload to 'none' for an engine that keeps its own"
        ) from None
    if not (found or {}).get("success", True):
        raise EngineError(
            f"the engine {endpoint.url} still holds keys of its old weights: expected no request beside this run's "
            "(/reset_prefix_cache); stop the others, or start it with --no-enable-prefix-caching"
        )


def sglang(endpoint: Endpoint, folder: str, *, timeout_s: float) -> None:
    """SGLang's own path, which flushes its cache as well."""
    found = endpoint.call("/update_weights_from_disk", {"model_path": folder}, timeout_s=timeout_s) or {}
    if not found.get("success"):
        raise EngineError(
            f"the engine {endpoint.url} did not take the weights of {folder}: {found.get('message', found)}: expected "
            "a folder that it can read, with the architecture that it serves"
        )


def none(endpoint: Endpoint, folder: str, *, timeout_s: float) -> None:
    """The engine keeps the weights that it has; the stage writes none."""
    del endpoint, folder, timeout_s
