"""The file of --out is whole or not there, and none is replaced without a word."""

import os
import threading
from contextlib import suppress
from pathlib import Path

import pytest

from dlogp_ray.cli.out import check_new, written
from dlogp_ray.errors import Refused


def test_a_file_that_is_there_is_replaced_only_where_that_is_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    check_new(path, overwrite=False)
    path.write_text("mine")
    with pytest.raises(Refused, match=r"rows\.csv: it is there already; .* --overwrite"):
        check_new(path, overwrite=False)
    check_new(path, overwrite=True)


def test_what_fails_amid_its_rows_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("mine")
    with suppress(ZeroDivisionError), written(path) as sink:
        sink.write(b"half")
        _ = 1 / 0
    assert path.read_text() == "mine"
    with written(path) as sink:
        sink.write(b"whole")
    assert path.read_text() == "whole"
    assert os.listdir(tmp_path) == ["rows.csv"]


def test_what_can_t_be_written_is_one_message(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(Refused, match=r"--out .*rows: "), written(tmp_path / "file" / "rows"):
        pass
    with written(tmp_path / "new" / "folder" / "rows") as sink:
        sink.write(b"rows")
    assert (tmp_path / "new" / "folder" / "rows").read_bytes() == b"rows"


def test_a_pipe_is_written_as_it_is(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    check_new(pipe, overwrite=False)
    got: list[bytes] = []
    reader = threading.Thread(target=lambda: got.append(pipe.read_bytes()))
    reader.start()
    with written(pipe) as sink:
        sink.write(b"rows")
    reader.join()
    assert got == [b"rows"]
    assert pipe.is_fifo()
