"""A small twin of a model: its classes and settings, with few layers, narrow, of random weights.

How texts can share a pass is decided by an architecture and its config, hardly by its weights, so
that it can be tried on a model that takes milliseconds. What shows in long texts only (windows,
chunks, the length that a rotary encoding was trained on) shows in a twin's short ones, because its
config's limits are shrunk.

Names say what a width, a count or a limit is; that is a guess, and trying decides: a change is kept
where the model can still be built and run. Whatever twin comes out is fit, as long as it has every
kind of layer that the model has, for it is compared with itself alone.
"""

import copy
import itertools
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from dlogp_ray.policies.layers import layer_lists

VOCABULARY = 96
"""Ids of a twin: few, so that a trial's texts hold each of them, special or not."""
TEXT = 64
"""Tokens of the longest text that a twin is tried with."""
FIRST_LIMIT = 6
"""The least that a limit of the config becomes; the others follow in their order."""

_MOST_WEIGHTS = (8_000_000, 40_000_000)
"""As many as take milliseconds to draw, or else as many as take a tenth of a second."""
_FACTORS = (32, 16, 8, 4, 2, 1)
"""What widths are divided by."""
_HEADS = (16, 8, 4)
"""The least width of a head, the first where it can be had: of a quarter that is rotated, two
frequencies are left, and the first is the same whatever the encoding's base."""
_WIDE_ENOUGH = 4
"""Widths that would be less stay as they are."""
_EXPERTS_LEFT = (8, 16, None)

_WIDTH = re.compile(
    r"(size|dims?|embd|rank|ffn|inner|channels|width|sections?|state|headdim|hidden|scalar)$"
    r"|(^|_)(d|dim)_|_dim_|kv_d|^dff$"
)
_NO_WIDTH = re.compile(
    r"vocab|kernel|chunk|window|block|patch|image|num_|^n_(?!embd|inner|ffn|hidden)|conv|group"
    r"|max_|step|pool|position"
)
_LAYERS = re.compile(
    r"^(num_((hidden|decoder|encoder)_)?(layers|blocks)|n_layers?|(en|de)coder_layers)$"
)
_EXPERTS = re.compile(r"^(moe_)?(num|n)_(local_|routed_)?experts$|^zero_expert_num$")
_STATE_SPACE = re.compile(r"mamba|ssm|linear_")
_ID = re.compile(r"(token_ids?|_index|_idx|language_id|lang_id)$")
_NO_LIMIT = re.compile(r"vocab|theta|seed|version")
_RANDOM_START = ("A_log", "conv", "dt_", "time_")
"""Parts of the names of decays and steps, which only make sense near what they start from."""

Values = dict[Any, Any]
"""A config as its ``to_dict`` gives it."""


@dataclass(frozen=True)
class Twin:
    """A small model, and what of the large one its texts can't show.

    Attributes:
        model: In float32, on the CPU.
        unseen: The least of the config's numbers that could not be shrunk: what begins at so many
            tokens does not show in the twin. None where all could.
        longest: Tokens of the longest text that the large one has positions for, as its config
            says; None where there is no such bound.
    """

    model: Any
    unseen: int | None
    longest: int | None


def twin_of(model: Any) -> Twin | None:
    """A twin of a loaded ``AutoModelForCausalLM``, or None where none can be built."""
    with _quiet():
        small = small_model(model)
        return None if small is None else _with_small_limits(small)


def small_model(model: Any) -> Any | None:
    """A small model with every kind of layer that a model has, and its limits; None for none."""
    kinds = _kinds_of_layers(model)
    wanted = {kind for of_layer in kinds for kind in of_layer}
    least = max((_covering(of_layer) for of_layer in kinds), default=1)
    for layers in (max(2, least), 2 * least + 2):
        small = _narrow(type(model), model.config, layers)
        if small is not None and wanted <= {
            k for of_layer in _kinds_of_layers(small) for k in of_layer
        }:
            return small
    return None


def _narrow(kind: type[Any], config: Any, layers: int) -> Any | None:
    """A small model of a class and config, with random weights; None where none can be built."""
    values = config.to_dict()
    head = _head_width(config)
    factors = list(dict.fromkeys(f for least in _HEADS for f in _FACTORS if head >= least * f))
    ways = itertools.product(_MOST_WEIGHTS, (True, False), (*factors, 1), _EXPERTS_LEFT)
    for most, state_space, factor, experts in ways:
        smaller = _Smaller(factor, layers, experts, state_space)
        model = _built(kind, config, smaller.of(values), most)
        if model is not None:
            return model
    return None


@dataclass(frozen=True)
class _Smaller:
    """How a config is made one of a small model.

    Attributes:
        factor: Widths are divided by it.
        layers: How many are left.
        experts: How many are left, None for all.
        state_space: Whether the widths of state-space layers are divided too: their products have
            to come out (heads, the size of one, and all together).
    """

    factor: int
    layers: int
    experts: int | None
    state_space: bool

    def of(self, values: Values) -> Values:
        """The smaller config."""
        depths = {v for k, v in values.items() if type(v) is int and _LAYERS.search(k)}
        return {key: self._value(str(key), value, depths) for key, value in values.items()}

    def _value(self, key: str, value: Any, depths: set[int]) -> Any:
        if isinstance(value, dict):
            if "per_layer" in key:
                return {k: self.of(v) for k, v in value.items() if int(k) < self.layers}
            return self.of(value)
        if isinstance(value, list | tuple):
            kept = value[: self.layers] if len(value) in depths else value
            return [self._value(key, item, depths) for item in kept]
        return self._number(key, value) if type(value) is int else value

    def _number(self, key: str, value: int) -> int:
        if _LAYERS.search(key):
            return min(value, self.layers)
        if _ID.search(key):
            return value % VOCABULARY
        if "vocab" in key and "type" not in key:
            return min(value, VOCABULARY)
        if self.experts is not None and _EXPERTS.search(key):
            return min(value, self.experts)
        divided = _is_width(key) and (self.state_space or not _STATE_SPACE.search(key))
        return value // self.factor if divided and value >= _WIDE_ENOUGH * self.factor else value


def _head_width(config: Any) -> int:
    try:
        text = config.get_text_config()
        width = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    except (AttributeError, RuntimeError, TypeError, ValueError):  # no heads, or of several widths
        return 64
    return width if isinstance(width, int) else 64


def _is_width(key: str) -> bool:
    return bool(_WIDTH.search(key)) and not _NO_WIDTH.search(key)


def _with_small_limits(small: Any) -> Twin:
    """With every number of the config that may be a limit below the length of a trial's texts."""
    values = small.config.to_dict()
    limits = _limits(values)
    order = sorted({value for _, value in limits})
    unseen = []
    bounds = []
    for path, value in limits:
        # Apart from each other, and two positions more for those that begin at 2 (OPT).
        for new in (FIRST_LIMIT + 4 * order.index(value), TEXT, TEXT + 2):
            changed = _with(values, path, new)
            model = _built(type(small), small.config, changed)
            if model is not None:
                small, values = model, changed
                if new >= TEXT:
                    bounds.append((path, new, value))
                break
        else:
            if _changes_no_weight(small, values, path, value):
                unseen.append(value)
    return Twin(small, min(unseen, default=None), _longest(small, values, bounds))


def _longest(
    small: Any, values: Values, bounds: list[tuple[tuple[str, ...], int, int]]
) -> int | None:
    """Tokens that the large model has positions for; None where the small one runs more.

    Args:
        small: The twin.
        values: Its config.
        bounds: Where its config has what may bound its texts, what that is, and what it is in the
            large one.
    """
    if _runs(small, TEXT + 1):
        return None
    alone = []
    for path, new, value in bounds:
        model = _built(type(small), small.config, _with(values, path, new + 1))
        if model is not None and _runs(model, TEXT + 1):
            alone.append((path, new, value))
    return min((value - (new - TEXT) for _, new, value in alone or bounds), default=None)


def _changes_no_weight(small: Any, values: Values, path: tuple[str, ...], value: int) -> bool:
    """Whether the number is not the size of something."""
    config = small.config
    less = _with(values, path, value - 1)
    try:
        one, two = (
            _shapes(type(small), type(config).from_dict(copy.deepcopy(v))) for v in (values, less)
        )
    except Exception:  # noqa: BLE001  (whatever it is that a size which does not fit comes to)
        return False
    return one == two


def _shapes(kind: type[Any], config: Any) -> dict[str, torch.Size]:
    with torch.device("meta"):
        model = kind._from_config(copy.deepcopy(config))
    return {name: weight.shape for name, weight in model.named_parameters()}


def _runs(model: Any, tokens: int) -> bool:
    """Whether it gives numbers for a text; on a copy, for some models remember what they ran."""
    ids = torch.arange(tokens)[None] % model.get_input_embeddings().weight.shape[0]
    try:
        with torch.inference_mode():
            logits = copy.deepcopy(model)(input_ids=ids, use_cache=False).logits
    except Exception:  # noqa: BLE001  (whatever it is that a text which is too long comes to)
        return False
    return bool(torch.isfinite(logits).all())


def _randomise(model: Any) -> None:
    """Nothing is zero, and no attention is flat."""
    for name, weight in model.named_parameters():
        if weight.ndim == 1 or any(part in name for part in _RANDOM_START):
            weight.add_(torch.randn_like(weight), alpha=0.3 if weight.ndim == 1 else 0.1)
        else:
            weight.normal_(std=weight.shape[-1] ** -0.5)


def _kinds_of_layers(model: Any) -> list[list[Any]]:
    """What each layer is: its classes and their switches, list of layers by list.

    What torch and peft bring is left out: an adapter inside changes no way to share a pass.
    """
    return [[_kind_of(layer) for layer in layers] for layers in layer_lists(model)]


def _kind_of(layer: torch.nn.Module) -> frozenset[Any]:
    return frozenset(
        (
            type(module).__name__,
            frozenset(
                (key, value if isinstance(value, bool | str) else value is None)
                for key, value in vars(module).items()
                if not key.startswith("_")
                and key != "training"
                and (value is None or isinstance(value, bool | int | str))
            ),
        )
        for module in layer.modules()
        if not type(module).__module__.startswith(("torch.", "peft."))
    )


def _covering(kinds: list[Any]) -> int:
    """How many of the first layers have every kind among them."""
    return next(n for n in range(1, len(kinds) + 1) if set(kinds[:n]) == set(kinds))


def _limits(values: Values, path: tuple[str, ...] = ()) -> list[tuple[tuple[str, ...], int]]:
    """Where the config has numbers that a trial's texts do not reach, and that may be limits."""
    limits = []
    for key, value in values.items():
        if isinstance(value, dict):
            limits += _limits(value, (*path, str(key)))
        elif (
            type(value) is int
            and value > TEXT // 2
            and not (_ID.search(key) or _NO_LIMIT.search(key) or _is_width(key))
        ):
            limits.append(((*path, key), value))
    return limits


def _with(values: Values, path: tuple[str, ...], new: int) -> Values:
    first, *rest = path
    return values | {first: _with(values[first], tuple(rest), new) if rest else new}


def _built(
    kind: type[Any], config: Any, values: Values, most_weights: int = _MOST_WEIGHTS[-1]
) -> Any | None:
    """A model of the class with random weights that runs a text; None where there is none."""
    try:
        new = type(config).from_dict(copy.deepcopy(values))
        if sum(shape.numel() for shape in _shapes(kind, new).values()) > most_weights:
            return None
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            attention = config._attn_implementation
            model = kind._from_config(new, dtype=torch.float32, attn_implementation=attention)
            _randomise(model.eval().requires_grad_(False))
        fits = _runs(model, TEXT)
    except Exception:  # noqa: BLE001  (whatever it is that a config which fits no model comes to)
        return None
    return model if fits else None


@contextmanager
def _quiet() -> Iterator[None]:
    """What transformers says of a config that is no user's is for nobody."""
    from transformers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(before)
