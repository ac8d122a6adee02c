"""An adapter before its weights are loaded: where its files are, whether it can be served.

Imports no torch: what only reads or plans does without it.
"""

import json
from importlib.util import find_spec
from pathlib import Path

from dlogp_ray.errors import Refused
from dlogp_ray.policies.checkpoint import ADAPTER_CONFIG, Checkpoint, local_folder

WEIGHTS = "adapter_model.safetensors"
PICKLED = "adapter_model.bin"
KINDS = ("LORA", "IA3", "LOHA", "LOKR", "OFT", "VERA")
"""What peft calls the methods that are tested here; it puts them into the model's layers."""

_ABOUT_THE_FILE = frozenset(
    "peft_type peft_version task_type auto_mapping base_model_name_or_path revision "
    "inference_mode".split()
)
_LORA_OPTIONS = _ABOUT_THE_FILE | frozenset(
    "r lora_alpha rank_pattern alpha_pattern use_rslora use_dora bias lora_bias lora_dropout "
    "fan_in_fan_out target_modules exclude_modules target_parameters layers_to_transform "
    "layers_pattern modules_to_save trainable_token_indices ensure_weight_tying "
    # What begins, or is read by another option only.
    "init_lora_weights loftq_config eva_config corda_config lora_ga_config runtime_config "
    "megatron_core qalora_group_size".split()
)
"""What a LoRA may set. Others change the base (KaSA), or need more than the body (aLoRA)."""
_PLAIN_STARTS = (True, False, None, "gaussian", "orthogonal", "eva", "mica")
"""Ways to begin that leave the base's weights as they are."""
_EXACT_STARTS = ("pissa", "olora")
"""Ways to begin that change the base's weights, each time in the same way."""
_IN_FRONT = frozenset(
    "PROMPT_TUNING MULTITASK_PROMPT_TUNING P_TUNING PREFIX_TUNING CPT CARTRIDGE "
    "ADAPTION_PROMPT".split()
)
"""Kinds that peft can't merge: they are vectors in front of what is read."""
_BY_TEXT = frozenset("XLORA POLY LILY SHADOW alora_invocation_tokens arrow_config".split())
"""Kinds, and options of LoRA, that peft can't merge, or merges into another model (XLORA)."""
MERGE = (
    'merge it into its base (policies/README.md, "Merging an adapter") and give the folder as path'
)


def resolve_adapter(
    name: str,
    source: str,
    revision: str | None = None,
    *,
    base: Checkpoint,
) -> Checkpoint:
    """Find the adapter's files and check that they may be loaded.

    Raises:
        Refused: The adapter is missing, incomplete or pickled, is of a kind that is not supported,
            or peft is not installed.
    """
    label = f"policy {name} ({source})"
    if find_spec("peft") is None:
        raise Refused(f"{label}: an adapter needs peft; pip install peft")
    folder = local_folder(name, source, revision)
    checkpoint = Checkpoint(name, source, folder, base, trust=base.trust)
    if not (checkpoint.folder / ADAPTER_CONFIG).is_file():
        raise Refused(
            f"{label}: expected an adapter as peft saves it, but there is no {ADAPTER_CONFIG} in "
            f"{checkpoint.folder}; give a whole checkpoint as path"
        )
    _check_kind(label, checkpoint.folder)
    if not (checkpoint.folder / WEIGHTS).is_file():
        if not (checkpoint.folder / PICKLED).is_file():
            raise Refused(f"{label}: there are no weights ({WEIGHTS}) in {checkpoint.folder}")
        if not base.trust.pickle:
            raise Refused(
                f"{label}: the weights are pickled ({PICKLED}), and unpickling runs code. "
                "Convert them to safetensors, or set allow_pickle: true if you trust them"
            )
    return checkpoint


def _check_kind(label: str, folder: Path) -> None:
    try:
        options = json.loads((folder / ADAPTER_CONFIG).read_text(encoding="utf-8"))
    except ValueError as error:
        raise Refused(f"{label}: {ADAPTER_CONFIG} is not JSON: {error}") from None
    if not isinstance(options, dict):
        raise Refused(f"{label}: {ADAPTER_CONFIG} is not an object")
    kind = str(options.get("peft_type"))
    if kind not in KINDS:
        known = ", ".join(KINDS)
        raise Refused(
            f"{label}: adapters of type {kind} are not supported ({known} are); "
            + _instead({kind}, _installed_kinds())
        )
    known_options = _LORA_OPTIONS if kind == "LORA" else _options_of(kind)
    unknown = sorted(key for key in options.keys() - known_options if options[key])
    if unknown:
        raise Refused(
            f"{label}: adapters with {', '.join(unknown)} are not supported; "
            + _instead(set(unknown), _options_of(kind))
        )
    start = options.get("init_lora_weights", True)
    if start not in _PLAIN_STARTS:  # of LoRA only
        where = "in the process that trained it (its files don't say what the base became), "
        raise Refused(
            f"{label}: it began as {start}, which changes the base's weights; "
            f"{'' if start in _EXACT_STARTS else where}{MERGE}"
        )


def _instead(names: set[str], installed: frozenset[str]) -> str:
    """What is to be done about an adapter of such a kind, or with such options."""
    if names & _IN_FRONT:
        return (
            "it is vectors in front of the text, which the weights of no checkpoint hold, so that "
            "it can't be merged either"
        )
    if names & _BY_TEXT:
        return (
            "what it adds to a weight depends on the text, so that no checkpoint is the same model "
            "and it can't be merged either"
        )
    if strange := names - installed:
        return (
            f"the installed peft does not know {', '.join(sorted(strange))}; with one that does, "
            f"and where it can be merged, {MERGE}"
        )
    return MERGE


def _installed_kinds() -> frozenset[str]:
    from peft import PeftType

    return frozenset(kind.value for kind in PeftType)


def _options_of(kind: str) -> frozenset[str]:
    """What the installed peft knows of; it would leave out the others without an error."""
    from peft import PEFT_TYPE_TO_CONFIG_MAPPING, PeftType

    return frozenset(PEFT_TYPE_TO_CONFIG_MAPPING[PeftType[kind]].__dataclass_fields__)
