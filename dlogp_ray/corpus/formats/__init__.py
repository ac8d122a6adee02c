"""Rollouts as other programs write them: each format's module says what becomes of a record."""

from collections.abc import Collection, Mapping

from dlogp_ray.config.corpus import FormatName
from dlogp_ray.corpus.formats.areal import AREAL
from dlogp_ray.corpus.formats.data_sets import DEEPMATH, OPENR1, OPENTHOUGHTS, SYNTHETIC_1
from dlogp_ray.corpus.formats.format import Format
from dlogp_ray.corpus.formats.lighteval import LIGHTEVAL
from dlogp_ray.corpus.formats.lm_eval import LM_EVAL
from dlogp_ray.corpus.formats.ms_swift import MS_SWIFT
from dlogp_ray.corpus.formats.nemo_rl import NEMO_RL
from dlogp_ray.corpus.formats.open_instruct import OPEN_INSTRUCT
from dlogp_ray.corpus.formats.openai_batch import OPENAI_BATCH
from dlogp_ray.corpus.formats.prime_rl import PRIME_RL, PRIME_RL_TOKENS
from dlogp_ray.corpus.formats.roll import ROLL
from dlogp_ray.corpus.formats.skyrl import SKYRL
from dlogp_ray.corpus.formats.slime import SLIME
from dlogp_ray.corpus.formats.trl import TRL
from dlogp_ray.corpus.formats.verl import VERL

FORMATS: Mapping[FormatName, Format] = {
    "areal": AREAL,
    "deepmath": DEEPMATH,
    "lighteval": LIGHTEVAL,
    "lm_eval": LM_EVAL,
    "ms_swift": MS_SWIFT,
    "nemo_rl": NEMO_RL,
    "open_instruct": OPEN_INSTRUCT,
    "openai_batch": OPENAI_BATCH,
    "openr1": OPENR1,
    "openthoughts": OPENTHOUGHTS,
    "prime_rl": PRIME_RL,
    "prime_rl_tokens": PRIME_RL_TOKENS,
    "roll": ROLL,
    "skyrl": SKYRL,
    "slime": SLIME,
    "synthetic_1": SYNTHETIC_1,
    "trl": TRL,
    "verl": VERL,
}


def format_like(names: Collection[str]) -> FormatName | None:
    """The format whose records have these names: of several, the one that asks for most."""
    fits = [name for name, form in FORMATS.items() if form.keys <= set(names)]
    return max(fits, key=lambda name: len(FORMATS[name].keys), default=None)
