"""Schemes by their configs: on a batch, over several processes, and what is not there."""

from typing import Any

import numpy as np
import pytest
import torch
from pydantic import TypeAdapter, ValidationError

from dlogp_ray.config import SCHEMES, Scheme
from dlogp_ray.weights.applying import SchemeInputs, Whole, weigh, weigh_batch, whole_of_batch

ANY: TypeAdapter[Any] = TypeAdapter(Scheme)
PPL = ANY.validate_python({"scheme": "ppl", "alpha": 0.1})
TOP = ANY.validate_python({"scheme": "entropy_top", "rho": 0.4})


def texts(rows: slice = slice(None), kind: Any = torch.tensor) -> SchemeInputs:
    rng = np.random.default_rng(0)
    mask = rng.random((6, 9)) < 0.8
    return SchemeInputs(
        mask=kind(mask[rows]),
        logp_old=kind(-rng.exponential(1, (6, 9)).astype(np.float32)[rows]),
        entropy_old=kind(rng.exponential(1, (6, 9)).astype(np.float32)[rows]),
        groups=kind(np.array([0, 0, 1, 1, 1, 0])[rows]),
    )


@pytest.mark.parametrize("kind", [torch.tensor, np.asarray], ids=["torch", "numpy"])
def test_quantile_and_group_are_of_the_batch(kind: Any) -> None:
    batch = texts(kind=kind)
    mask, entropy = np.asarray(batch.mask), np.asarray(batch.entropy_old)
    kept = np.asarray(weigh_batch([TOP], batch))[mask]
    np.testing.assert_array_equal(kept, entropy[mask] >= np.quantile(entropy[mask], 0.6))
    found = np.asarray(weigh_batch([PPL], batch))
    logp = np.asarray(batch.logp_old, np.float64)
    log_ppl = np.array([-row[some].mean() for row, some in zip(logp, mask, strict=True)])
    groups = np.asarray(batch.groups)
    for text in range(6):
        some = log_ppl[groups == groups[text]]
        expected = 1 - 0.1 * (log_ppl[text] - some.mean()) / some.std(ddof=1)
        np.testing.assert_allclose(found[text][mask[text]], expected, rtol=1e-5)
        assert set(found[text][~mask[text]]) <= {1.0}


def test_a_text_without_tokens_has_no_part_in_its_group() -> None:
    """It has no perplexity: the others weigh as without it, and it has no weight to get."""
    logp = torch.tensor([[-1.0, -3.0], [-0.5, -0.5], [0.0, 0.0], [0.0, 0.0]])
    mask = torch.tensor([[1, 1], [1, 1], [0, 0], [0, 0]])
    batch = SchemeInputs(mask=mask, logp_old=logp, groups=torch.tensor([0, 0, 0, 1]))
    # log PPL 2 and 0.5: mean 1.25, deviation 0.75 * sqrt 2.
    apart = 0.1 * 0.75 / (0.75 * 2**0.5)
    expected = [[1 - apart] * 2, [1 + apart] * 2, [1.0, 1.0], [1.0, 1.0]]
    torch.testing.assert_close(weigh_batch([PPL], batch), torch.tensor(expected))


def test_processes_share_quantiles_and_groups() -> None:
    """Two processes with four and two texts weigh as one with six does."""
    whole = weigh_batch([PPL, TOP], texts())
    parts = [texts(slice(0, 4)), texts(slice(4, 6))]

    def values(one: SchemeInputs) -> dict[int, Any]:
        """What each process gives, by its size: entropies, log PPL, groups."""
        seen: list[Any] = []

        def record(value: Any) -> Any:
            seen.append(value)
            return value

        whole_of_batch(TOP, one, record)
        whole_of_batch(PPL, one, record)
        return dict(enumerate(seen))

    given = [values(one) for one in parts]
    for part, rows in zip(parts, (slice(0, 4), slice(4, 6)), strict=True):
        # What ppl asks for, log PPL and groups, and then entropies.
        all_of = iter([torch.cat([one[which] for one in given]) for which in (1, 2, 0)])
        found = weigh_batch([PPL, TOP], part, gather=lambda value, all_of=all_of: next(all_of))
        torch.testing.assert_close(found, whole[rows], rtol=1e-6, atol=1e-6)


def test_what_a_scheme_needs_is_named() -> None:
    nothing = SchemeInputs(mask=torch.ones(1, 2))
    given = {"ppl": {"alpha": 1}, "rsi_band": {"low": 0, "high": 1}}
    given["divergence"] = {"scale": 1, "alpha": 1}
    for name in SCHEMES:
        scheme = ANY.validate_python({"scheme": name, **given.get(name, {})})
        with pytest.raises(ValueError, match=f"{name} needs {', '.join(scheme.needs)} of"):
            weigh([scheme], nothing, {})
    with pytest.raises(ValueError, match="threshold"):
        weigh([TOP], texts(), {TOP: Whole()})


def test_a_batch_without_tokens_has_weights() -> None:
    empty = SchemeInputs(mask=torch.zeros(2, 3), entropy_old=torch.ones(2, 3))
    assert weigh_batch([TOP], empty).tolist() == [[1.0] * 3] * 2


def test_configs_are_checked() -> None:
    assert ANY.validate_python("low_prob").alpha == 0.2
    for wrong, said in [
        ("lowprob", "low_prob"),
        ({"scheme": "dominate", "alpha": 1.1}, "alpha"),
        ({"scheme": "low_prob", "rho": 1}, "rho"),
        ({"scheme": "delta", "low": 2, "high": 1}, "low 2 is more than high 1"),
        ({"scheme": "entropy_top", "rho": 0}, "rho"),
        ({"scheme": "ppl"}, "alpha"),
    ]:
        with pytest.raises(ValidationError, match=said):
            ANY.validate_python(wrong)
