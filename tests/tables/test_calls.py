"""The calls that made a run: what they leave, and what the next one sees in it."""

from pathlib import Path

import pytest

from dlogp_ray.errors import Damaged
from dlogp_ray.tables.calls import Call, deaths, read_calls, spent_in_words, this_call

UNITS = {"part-00000000", "part-00000001", "part-00000002"}


def dead(**fields: object) -> Call:
    """A call whose process is gone."""
    return this_call("here").model_copy(update={"process_started": 1.0, **fields})


def test_records_are_read_in_the_order_in_which_calls_began(tmp_path: Path) -> None:
    calls = [this_call("here"), this_call("ray"), this_call("here")]
    for call in (calls[2], calls[0], calls[1]):
        call.write(str(tmp_path))
    calls[1] = calls[1].model_copy(update={"ended": True, "spent": {"units": 1.5}})
    calls[1].write(str(tmp_path))
    assert read_calls(str(tmp_path)) == calls
    assert read_calls(str(tmp_path / "none")) == []


def test_a_record_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    call = this_call("here")
    call.write(str(tmp_path))
    (tmp_path / f"calls/{call.id}.json").write_text('{"id"')
    with pytest.raises(Damaged, match=rf"calls/{call.id}.json can't be read .*delete it"):
        read_calls(str(tmp_path))


def test_a_process_lives_by_its_number_and_its_start() -> None:
    assert this_call("here").alive
    assert not dead().alive
    assert not this_call("here").model_copy(update={"process": 2**22 + 1}).alive
    assert not this_call("here").model_copy(update={"host": "elsewhere"}).alive


def test_deaths_are_of_missing_units_since_a_call_came_to_its_end() -> None:
    first, second = "part-00000000", "part-00000001"
    once, twice = dead(under_way=(first,)), dead(under_way=(first, second))
    assert deaths([once, twice], UNITS) == {first: 2, second: 1}
    assert deaths([once, twice], UNITS - {first}) == {second: 1}
    assert deaths([once, dead(ended=True), twice], UNITS) == {first: 1, second: 1}
    # One that was stopped has settled nothing; one that lives has not died.
    assert deaths([once, dead(), twice], UNITS) == {first: 2, second: 1}
    assert deaths([this_call("here").model_copy(update={"under_way": (first,)})], UNITS) == {}


def test_what_took_no_time_is_not_said() -> None:
    spent = {"start": 0.0, "plan": 1.25, "units": 10.0}
    assert spent_in_words(11.3, spent) == "11.3 s: plan 1.2, units 10.0"
    assert spent_in_words(0.0, {}) == "0.0 s"
