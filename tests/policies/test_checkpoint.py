"""Where a checkpoint's files are found, and what is refused before any weight is read."""

import json
from collections.abc import Iterator
from pathlib import Path

import fsspec
import huggingface_hub
import pytest
from conftest import make_policy_folder

from dlogp_ray.config.trust import Trust
from dlogp_ray.errors import Refused
from dlogp_ray.policies import checkpoint as checkpoint_module
from dlogp_ray.policies.checkpoint import resolve

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder that has what ``resolve`` looks at; its weights are never read here."""
    return write_checkpoint(tmp_path / "policy")


def write_checkpoint(folder: Path) -> Path:
    folder.mkdir(parents=True)
    config = {"model_type": "llama", "vocab_size": 24, "max_position_embeddings": 64}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "model.safetensors").write_bytes(b"weights")
    return folder


def change_config(folder: Path, **changes: object) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def test_a_local_folder_is_taken_as_it_stands(folder: Path) -> None:
    checkpoint = resolve("p", str(folder))
    assert checkpoint.folder == folder
    assert (checkpoint.vocab_size, checkpoint.max_tokens) == (24, 64)
    assert checkpoint.saved_dtype == "float32"


def test_a_multimodal_config_has_its_numbers_in_its_text_part(folder: Path) -> None:
    text = {"vocab_size": 77, "max_position_embeddings": 9, "dtype": "bfloat16"}
    (folder / "config.json").write_text(json.dumps({"model_type": "llava", "text_config": text}))
    checkpoint = resolve("p", str(folder))
    assert (checkpoint.vocab_size, checkpoint.max_tokens) == (77, 9)
    assert checkpoint.saved_dtype == "bfloat16"


@pytest.mark.parametrize("source", ["{folder}/none", "./none", "~/none-such", "just-a-name"])
def test_a_missing_folder_is_refused(source: str, tmp_path: Path) -> None:
    with pytest.raises(Refused, match=r"policy p .* there is no such folder"):
        resolve("p", source.format(folder=tmp_path))


def test_a_file_is_refused(folder: Path) -> None:
    with pytest.raises(Refused, match=r"expected a checkpoint folder, got a file"):
        resolve("p", str(folder / "config.json"))


def test_a_folder_without_config_is_refused(folder: Path) -> None:
    (folder / "config.json").unlink()
    with pytest.raises(Refused, match=r"no config\.json"):
        resolve("p", str(folder))


@pytest.mark.parametrize("text", ["{", "[]"])
def test_a_config_that_is_not_an_object_is_refused(text: str, folder: Path) -> None:
    (folder / "config.json").write_text(text)
    with pytest.raises(Refused, match=r"config\.json is not"):
        resolve("p", str(folder))


def test_a_folder_without_weights_is_refused(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    with pytest.raises(Refused, match=r"no weights"):
        resolve("p", str(folder))


def test_pickled_weights_need_consent(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(Refused, match=r"pickled \(pytorch_model\.bin\).*allow_pickle: true"):
        resolve("p", str(folder))
    assert resolve("p", str(folder), trust=Trust(pickle=True)).folder == folder


def test_remote_code_needs_consent(folder: Path) -> None:
    change_config(folder, model_type="mystery", auto_map={"AutoModelForCausalLM": "code.Model"})
    with pytest.raises(Refused, match=r"'mystery' needs Python code.*trust_remote_code: true"):
        resolve("p", str(folder))
    assert resolve("p", str(folder), trust=Trust(remote_code=True)).folder == folder


def test_an_unknown_model_type_is_refused_by_name(folder: Path) -> None:
    change_config(folder, model_type="mystery")
    with pytest.raises(Refused, match=r"knows no model_type 'mystery'"):
        resolve("p", str(folder))


def test_a_revision_belongs_to_a_hub_id(folder: Path) -> None:
    with pytest.raises(Refused, match=r"revision belongs to a hub id"):
        resolve("p", str(folder), revision="main")
    with pytest.raises(Refused, match=r"revision belongs to a hub id"):
        resolve("p", "memory://bucket/policy", revision="main")


@pytest.fixture
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A Hugging Face cache that holds owner/name, with one commit that the ref "tag" points to."""
    repository = tmp_path / "hub" / "models--owner--name"
    write_checkpoint(repository / "snapshots" / COMMIT)
    (repository / "refs").mkdir()
    (repository / "refs" / "tag").write_text(COMMIT)
    # The environment is read when the library is imported; this is what it is read into.
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    return repository


@pytest.mark.parametrize("revision", ["tag", COMMIT])
def test_a_hub_id_is_found_in_the_cache(revision: str, hub_cache: Path) -> None:
    checkpoint = resolve("p", "owner/name", revision=revision)
    assert checkpoint.folder == hub_cache / "snapshots" / COMMIT


@pytest.mark.parametrize(
    ("hub_id", "revision", "named"),
    [
        ("owner/other", None, "hub id owner/other is not in the local cache"),
        ("owner/name", "other", "hub id owner/name at revision other is not in the local cache"),
        ("owner/name", None, "hub id owner/name is not in the local cache"),  # no ref "main"
    ],
)
@pytest.mark.usefixtures("hub_cache")
def test_a_hub_id_that_is_not_in_the_cache_is_refused_offline(
    hub_id: str, revision: str | None, named: str
) -> None:
    with pytest.raises(Refused, match=named):
        resolve("p", hub_id, revision=revision)


@pytest.fixture
def url(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The checkpoint in a store, and an empty cache on this machine."""
    monkeypatch.setattr(checkpoint_module, "CACHE", tmp_path / "cache")
    store = fsspec.filesystem("memory")
    for file in folder.iterdir():
        store.pipe_file(f"/bucket/policy/{file.name}", file.read_bytes())
    yield "memory://bucket/policy"
    store.rm("/bucket", recursive=True)


def test_a_checkpoint_in_a_store_is_copied_once(url: str, folder: Path, tmp_path: Path) -> None:
    copied = resolve("p", url).folder
    assert copied.is_relative_to(tmp_path / "cache")
    assert {f.name: f.read_bytes() for f in copied.iterdir()} == {
        f.name: f.read_bytes() for f in folder.iterdir()
    }
    inode = (copied / "model.safetensors").stat().st_ino
    assert resolve("p", url).folder == copied
    assert (copied / "model.safetensors").stat().st_ino == inode
    assert [path.name for path in copied.parent.iterdir()] == [copied.name]


def test_a_changed_checkpoint_in_a_store_is_copied_anew(url: str) -> None:
    before = resolve("p", url).folder
    fsspec.filesystem("memory").pipe_file("/bucket/policy/model.safetensors", b"Weights")
    after = resolve("p", url).folder
    assert after != before
    assert (after / "model.safetensors").read_bytes() == b"Weights"


def test_an_address_without_objects_is_refused(url: str) -> None:
    with pytest.raises(Refused, match=r"nothing at this address"):
        resolve("p", f"{url}-none")
    with pytest.raises(Refused, match=r"the store refused the listing"):
        resolve("p", "no-such-protocol://bucket/policy")


def test_identity_changes_with_what_changes_numbers(tmp_path: Path) -> None:
    folder = make_policy_folder(tmp_path, seed=0)
    before = resolve("p", str(folder)).identity()
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= before.keys()
    weights = bytearray((folder / "model.safetensors").read_bytes())
    weights[-1] ^= 1  # one bit of the last weight
    (folder / "model.safetensors").write_bytes(weights)
    after = resolve("p", str(folder)).identity()
    assert {name for name in before if before[name] != after[name]} == {"model.safetensors"}


def test_identity_does_not_change_with_generation_defaults(folder: Path) -> None:
    before = resolve("p", str(folder)).identity()
    (folder / "generation_config.json").write_text('{"temperature": 0.6}')
    (folder / "README.md").write_text("a policy")
    assert resolve("p", str(folder)).identity() == before
