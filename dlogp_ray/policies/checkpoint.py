"""A checkpoint before its weights are loaded: where its files are, whether they may be loaded.

Nothing here needs a GPU or reads weights into memory. A checkpoint is a local folder, an fsspec
URL (copied once into a local cache), or a hub id with an optional revision (from the local cache
when offline). What was hashed is what is loaded: a checkpoint whose files are known is read from
``held_open``.
"""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from dlogp_ray import store
from dlogp_ray.config.trust import NO_TRUST, Trust
from dlogp_ray.errors import InputChanged, Refused

WEIGHTS = "*.safetensors"
PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt")
ADAPTER_CONFIG = "adapter_config.json"
_KINDS = {".safetensors", ".json", ".jinja", ".model", ".txt", ".py", ".bin"}
"""Endings of files that change numbers."""
_HOLD_WEIGHTS = {".safetensors", ".bin"}
_NO_MATTER = "trainer_state.json"
_ENDS = "generation_config.json"
"""Changes no number, but may say what ends a text."""
Files = tuple[tuple[str, store.Known], ...]
"""A checkpoint's files by name, sorted."""
CACHE = Path(os.environ.get("DLOGP_CACHE", "~/.cache/dlogp_ray")).expanduser()


@dataclass(frozen=True)
class Checkpoint:
    """One policy's files on this machine.

    Attributes:
        name: The policy's name in the config.
        source: What the config says.
        folder: The local folder with config, weights and tokenizer.
        base: Of an adapter, the policy on whose weights it is; it has the config.
        known: Its files when they were hashed; None before that.
        trust: What of it may be run.
    """

    name: str
    source: str
    folder: Path
    base: "Checkpoint | None" = None
    known: Files | None = None
    trust: Trust = NO_TRUST

    @cached_property
    def config(self) -> dict[str, Any]:
        """``config.json``; of a multimodal model, its text part is under ``text_config``."""
        if self.base is not None:
            return self.base.config
        try:
            values = json.loads(self._read("config.json"))
        except ValueError as error:
            raise Refused(
                f"policy {self.name} ({self.source}): config.json is not JSON: {error}"
            ) from None
        if not isinstance(values, dict):
            raise Refused(f"policy {self.name} ({self.source}): config.json is not an object")
        return values

    @property
    def saved_dtype(self) -> str:
        """The dtype that the weights were saved in, as ``config.json`` states it."""
        return str(self._text_value("dtype") or self._text_value("torch_dtype") or "float32")

    @property
    def max_tokens(self) -> int | None:
        """The longest sequence the model takes, None where its config states no limit."""
        for key in ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len"):
            value = self._text_value(key)
            if isinstance(value, int) and value > 0:  # XLNet says -1
                return value
        return None

    @property
    def vocab_size(self) -> int:
        """Rows of the lm head, as ``config.json`` states them (it may be padded)."""
        value = self._text_value("vocab_size")
        if not isinstance(value, int):
            raise Refused(f"policy {self.name} ({self.source}): config.json has no vocab_size")
        return value

    @property
    def weights_bytes(self) -> int:
        """Of the files that hold its weights; of an adapter, its own."""
        files = [*self.folder.glob(WEIGHTS)]
        files = files or [path for kind in PICKLED for path in self.folder.glob(kind)]
        return sum(path.stat().st_size for path in files)

    def end_tokens(self, tokenizer: Any) -> tuple[int, ...]:
        """Ids that end an answer: the tokenizer's, and those of ``generation_config.json``.

        What an adapter's folder lacks is its base's.
        """
        ids = {tokenizer.eos_token_id}
        path = self.folder / "generation_config.json"
        if self.base is not None and not path.exists():
            return self.base.end_tokens(tokenizer)
        if path.exists():
            named = json.loads(self._read(path.name)).get("eos_token_id")
            ids |= set(named) if isinstance(named, list) else {named}
        return tuple(sorted(ids - {None}))

    def _text_value(self, key: str) -> Any:
        if key in self.config:
            return self.config[key]
        return self.config.get("text_config", {}).get(key)

    def know(self) -> Files:
        """Hash every file that changes numbers, or says what ends a text.

        Reads all weights once, at the disk's speed.

        Raises:
            InputChanged: One is written to meanwhile.
        """
        try:
            return tuple((path.name, store.know(path)) for path in self._files())
        except store.Changed as error:
            raise self._changed(str(error)) from None

    def identity(self) -> dict[str, str]:
        """SHA-256 of every file that changes numbers: name -> hex digest."""
        files = self.know() if self.known is None else self.known
        return {name: known.sha256 for name, known in files if name != _ENDS}

    @contextmanager
    def held_open(self, *, weights: bool = True) -> Iterator[Path]:
        """A folder in which the files are those that were hashed, where they were.

        Args:
            weights: Whether those that hold weights are read too.

        Raises:
            InputChanged: They are others, or are written to within the context.
        """
        if self.known is None:
            yield self.folder
            return
        known = {n: k for n, k in self.known if weights or Path(n).suffix not in _HOLD_WEIGHTS}
        there = {file.name for file in self._files() if weights or file.suffix not in _HOLD_WEIGHTS}
        if came := sorted(there - known.keys()):
            raise self._changed(f"{came[0]} was not there")
        try:
            with store.held_open(self.folder, known) as folder:
                yield folder
        except store.Changed as error:
            raise self._changed(str(error)) from None

    def _read(self, name: str) -> bytes:
        """One of its small files; that which was hashed, where it was."""
        data = (self.folder / name).read_bytes()
        known = dict(self.known or ())
        if known and (name not in known or hashlib.sha256(data).hexdigest() != known[name].sha256):
            raise self._changed(f"{name} is another one")
        return data

    def seen_now(self) -> "Checkpoint":
        """The same, with what this machine's disk says of its files, for ``check_in_place``.

        Taken before they are loaded: whether they are those that were hashed, ``held_open`` sees.

        Raises:
            InputChanged: One is gone.
        """
        try:
            known = tuple((n, store.seen_now(self.folder / n, k)) for n, k in self.known or ())
        except (FileNotFoundError, NotADirectoryError) as error:
            raise self._changed(f"{Path(error.filename).name} is gone") from None
        return self if self.known is None else replace(self, known=known)

    def check_in_place(self) -> "Checkpoint":
        """Check that no file has been overwritten in its place since it was seen.

        In memory, weights on a CPU are pages of their file: what is written into it is scored. A
        file that another one has replaced stays what it was for whoever has loaded it.

        Returns:
            The same, with what the disk says of its files now: what was hashed again, because
            its times had changed, need not be once more.

        Raises:
            InputChanged: One has been.
        """
        seen = []
        for name, known in self.known or ():
            now = store.not_overwritten(self.folder / name, known)
            if now is None:
                raise self._changed(f"{name} was overwritten after it was loaded")
            seen.append((name, now))
        return self if self.known is None else replace(self, known=tuple(seen))

    def _files(self) -> list[Path]:
        there = sorted(self.folder.iterdir())
        return [path for path in there if path.suffix in _KINDS and path.name != _NO_MATTER]

    def _changed(self, what: str) -> InputChanged:
        return InputChanged(
            f"policy_changed: {self.name} ({self.source}): {what}; its files are not those that "
            "were hashed when the job was planned. Put them back and give the same command, or use "
            "another run_id for what is there now"
        )


def resolve(
    name: str,
    source: str,
    revision: str | None = None,
    *,
    trust: Trust = NO_TRUST,
) -> Checkpoint:
    """Find the checkpoint's files and check that they may be loaded.

    Raises:
        Refused: The checkpoint is missing or incomplete, is pickled, needs remote code, or
            contradicts its revision.
    """
    checkpoint = Checkpoint(name, source, local_folder(name, source, revision), trust=trust)
    label = f"policy {name} ({source})"
    if (checkpoint.folder / ADAPTER_CONFIG).is_file():
        # transformers would load the model that it names.
        raise Refused(
            f"{label}: there is an {ADAPTER_CONFIG} in {checkpoint.folder}. Give an adapter as "
            "adapter, not as path; where it is merged into the weights, delete that file"
        )
    if not (checkpoint.folder / "config.json").is_file():
        raise Refused(
            f"{label}: expected a folder in Hugging Face format, but there is no config.json in "
            f"{checkpoint.folder}"
        )
    if not trust.remote_code:
        _refuse_remote_code(label, checkpoint)
    if not any(checkpoint.folder.glob(WEIGHTS)):
        pickled = [path.name for kind in PICKLED for path in checkpoint.folder.glob(kind)]
        if not pickled:
            raise Refused(f"{label}: there are no weights (*.safetensors) in {checkpoint.folder}")
        if not trust.pickle:
            raise Refused(
                f"{label}: the weights are pickled ({pickled[0]}), and unpickling runs code. "
                "Convert them to safetensors, or set allow_pickle: true if you trust them"
            )
    return checkpoint


def _refuse_remote_code(label: str, checkpoint: Checkpoint) -> None:
    from transformers import CONFIG_MAPPING

    kind = checkpoint.config.get("model_type")
    if kind in CONFIG_MAPPING:
        return
    if "auto_map" in checkpoint.config:
        raise Refused(
            f"{label}: model_type {kind!r} needs Python code that comes with the checkpoint. "
            "Set trust_remote_code: true if you trust it"
        )
    raise Refused(
        f"{label}: the installed transformers knows no model_type {kind!r}; install a version "
        "that does"
    )


def local_folder(name: str, source: str, revision: str | None) -> Path:
    """The folder on this machine that has what is at ``source``.

    Raises:
        Refused: There is nothing, or it contradicts the revision.
    """
    label = f"policy {name} ({source})"
    if "://" in source:
        if revision is not None:
            raise Refused(f"{label}: a revision belongs to a hub id, not to a URL")
        return _copied(label, source)
    path = Path(source).expanduser()
    if path.is_dir():
        if revision is not None:
            raise Refused(f"{label}: a revision belongs to a hub id, and this is a local folder")
        return path.resolve()
    if path.is_file():
        raise Refused(f"{label}: expected a checkpoint folder, got a file")
    if path.is_absolute() or source.startswith((".", "~")) or source.count("/") != 1:
        raise Refused(
            f"{label}: there is no such folder, and it is not a hub id (owner/name) or a URL"
        )
    return _hub_snapshot(label, source, revision)


def _hub_snapshot(label: str, hub_id: str, revision: str | None) -> Path:
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    wanted = ["*.json", "*.safetensors", "*.jinja", "*.model", "*.txt", "*.py", "*.bin"]
    try:
        return Path(
            snapshot_download(
                hub_id,
                revision=revision,
                allow_patterns=wanted,
                # Some versions would list the files of a commit even then.
                local_files_only=constants.HF_HUB_OFFLINE,
            )
        )
    except LocalEntryNotFoundError:
        at = f" at revision {revision}" if revision else ""
        raise Refused(
            f"{label}: there is no such folder, and hub id {hub_id}{at} is not in the local cache "
            "and the hub is not reached; check the name, or download it where there is a network"
        ) from None
    except Exception as error:  # of the hub, or of the HTTP library that its version uses
        raise Refused(f"{label}: {hub_id} can't be had from the hub: {error}") from error


def _copied(label: str, url: str) -> Path:
    """Copy the folder at ``url`` into the cache, under a name made of its objects' versions."""
    try:
        filesystem, path = store.open_store(url)
        if store.is_local(url):
            return Path(path)
        with store.refusals(f"{label}: {url}"):
            entries = [e for e in filesystem.ls(path, detail=True) if e["type"] == "file"]
    except FileNotFoundError:
        raise Refused(f"{label}: there is nothing at this address") from None
    except (OSError, ImportError, ValueError) as error:
        raise Refused(f"{label}: the store refused the listing: {error}") from None
    versions = _versions(entries)
    key = hashlib.sha256(json.dumps([url, versions]).encode()).hexdigest()[:32]
    folder = CACHE / "policies" / key
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
            copy = Path(temporary) / "copy"
            copy.mkdir()
            for entry in entries:
                filesystem.get_file(entry["name"], str(copy / Path(entry["name"]).name))
            now = [e for e in filesystem.ls(path, detail=True) if e["type"] == "file"]
            # Something else, and put back since, is newer than it was.
            if _versions(now) != versions or _times(now) != _times(entries):
                raise InputChanged(f"{label}: it was written to while it was copied; try again")
            try:
                copy.rename(folder)
            except OSError:  # another process was first
                if not folder.is_dir():
                    raise
                shutil.rmtree(copy, ignore_errors=True)
    return folder


def _versions(entries: Iterable[Mapping[str, Any]]) -> list[tuple[str, int, str]]:
    """Of files that a store has listed: name, bytes, etag."""
    return sorted(
        (Path(entry["name"]).name, entry["size"], str(entry.get("ETag") or entry.get("created")))
        for entry in entries
    )


def _times(entries: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    return {entry["name"]: str(entry.get("LastModified")) for entry in entries}
