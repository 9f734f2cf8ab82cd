"""Which of vLLM's own arguments a person may give, and how they are written: NAME=VALUE, as after vLLM's ``--NAME``.

vLLM itself knows their types and refuses what it does not know (workers.engine.vllm.given). Refused here are those that
the pipeline sets, each with the reason.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping

from pipeline.errors import ConfigurationError

_NAME = re.compile(r"[a-z][a-z0-9_]*")

_MODEL = "a worker's model, name and revision are given with it"
_TEXT = "the pipeline makes prompts and reads texts itself, by the model's own tokenizer"
_SAMPLING = "each job says how it samples, and a seed belongs to a sample"
_RESUMED = "the pipeline hands samples to and fro, and relies on it"
_ONE_ENGINE = "a worker is one engine on the GPUs of one machine: start more workers, or give more GPUs by tp"
_PROCESS = "SPECTHINK_ENGINE__VLLM__PROCESS says where the engine runs"
_SHARE = "a worker's share of a GPU says it: share=, or --device-share"
_READINGS = "signals are read from the model's own log-probabilities"
_DRAFTS = "accelerate says what drafts tokens: --accelerate, or SPECTHINK_ENGINE__VLLM__ACCELERATE"
_ADAPTER = "a job names no adapter: merge it into its base model, and give that folder"

OWNED: Mapping[str, str] = {
    **dict.fromkeys(("model", "model_weights", "served_model_name", "hf_config_path", "revision"), _MODEL),
    **dict.fromkeys(("tokenizer", "tokenizer_mode", "tokenizer_revision", "skip_tokenizer_init"), _TEXT),
    **dict.fromkeys(("runner", "convert", "pooler_config", "diffusion_config"), "a worker generates text"),
    **dict.fromkeys(("seed", "generation_config", "override_generation_config"), _SAMPLING),
    **dict.fromkeys(
        ("enable_prefix_caching", "scheduling_policy", "scheduler_cls", "prefill_schedule_interval"), _RESUMED
    ),
    **dict.fromkeys(
        (
            "pipeline_parallel_size", "nnodes", "node_rank", "master_addr", "master_port", "device_ids",
            "prefill_context_parallel_size", "decode_context_parallel_size", "data_parallel_size", "data_parallel_rank",
            "data_parallel_start_rank", "data_parallel_size_local", "data_parallel_address", "data_parallel_rpc_port",
            "data_parallel_hybrid_lb", "data_parallel_external_lb", "data_parallel_multi_port_external_lb",
            "data_parallel_backend", "enable_elastic_ep", "elastic_ep_max_dp_size",
        ),
        _ONE_ENGINE,
    ),
    "distributed_executor_backend": _PROCESS,
    "tensor_parallel_size": "tp= says it, or SPECTHINK_ENGINE__VLLM__TENSOR_PARALLEL_SIZE",
    **dict.fromkeys(("gpu_memory_utilization", "kv_cache_memory_bytes", "num_gpu_blocks_override"), _SHARE),
    "dtype": "SPECTHINK_ENGINE__VLLM__DTYPE says it",
    "max_model_len": "SPECTHINK_ENGINE__MAX_MODEL_LEN says it",
    "max_num_seqs": "SPECTHINK_ENGINE__MAX_IN_FLIGHT says it, or --max-in-flight",
    **dict.fromkeys(
        ("max_num_active_seqs", "max_num_queued_reqs", "max_num_queued_tokens"),
        "the pipeline admits samples by what an engine has room for",
    ),
    **dict.fromkeys(("max_logprobs", "logprobs_mode", "enable_trace_replay"), _READINGS),
    **dict.fromkeys(
        (
            "enable_lora", "max_loras", "max_lora_rank", "default_mm_loras", "fully_sharded_loras", "max_cpu_loras",
            "lora_dtype", "lora_target_modules", "enable_tower_connector_lora", "specialize_active_lora",
            "enable_mixed_moe_lora_format", "enable_moe_shared_loras", "max_lora_cls_labels",
        ),
        _ADAPTER,
    ),
    **dict.fromkeys(("speculative_config", "spec_method", "spec_model", "spec_tokens"), _DRAFTS),
    "hf_token": "arguments are stored and shown: give it in the environment, as HF_TOKEN",
    "disable_log_stats": "queue times are read from them",
    "use_tqdm_on_load": "logs are no terminal",
}  # fmt: skip
"""The reason why each of these is not to be given."""


def parse_arguments(given: Iterable[str]) -> dict[str, str]:
    """The arguments of NAME=VALUE texts. Raises ConfigurationError for another form, a name twice, an owned name."""
    found: dict[str, str] = {}
    for text in given:
        name, separator, value = text.partition("=")
        name = name.strip().removeprefix("--").replace("-", "_")
        if not separator:
            raise ConfigurationError(f"engine argument {text!r}: write NAME=VALUE, e.g. enforce_eager=true")
        if name in found:
            raise ConfigurationError(f"engine argument {name} is given twice")
        found[name] = value.strip()
    require_free(found)
    return found


def argument_text(value: object) -> str:
    """A value of a TOML or JSON file as it is written after vLLM's ``--NAME``: tables and lists as JSON.

    Raises ConfigurationError for what JSON has not: a date or a time.
    """
    try:
        return value if isinstance(value, str) else json.dumps(value)
    except TypeError as error:
        raise ConfigurationError(f"engine argument {value}: write a date or a time in quotes") from error


def require_free(names: Iterable[str]) -> None:
    """Raise ConfigurationError for a name that is none, and for one that the pipeline sets itself."""
    for name in names:
        if not _NAME.fullmatch(name):
            raise ConfigurationError(f"engine argument {name!r}: a name is that of a field of vLLM's EngineArgs")
        if reason := OWNED.get(name):
            raise ConfigurationError(f"engine argument {name} is not to be given: {reason}")
