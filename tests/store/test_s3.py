"""A real S3 server: what it answers, what it refuses, and what gets lost on the way."""

import itertools
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from s3_server import FaultyProxy, Kind

from dlogp_ray import store
from dlogp_ray.errors import Refused
from dlogp_ray.store import s3 as s3_module
from dlogp_ray.store.patient_s3 import PatientS3

READS_AND_WRITES: tuple[Kind, ...] = ("503", "500", "reset", "lost answer")


@pytest.fixture
def fresh_clients() -> Iterator[None]:
    """s3fs keeps one client a process: this test's settings are its own."""
    PatientS3.clear_instance_cache()
    yield
    PatientS3.clear_instance_cache()


@pytest.mark.parametrize("kind", [*READS_AND_WRITES, "cut short", "409"])
def test_a_create_outlives_a_fault(kind: Kind, s3: FaultyProxy, bucket: str) -> None:
    with s3.fault(kind, "^PUT", times=2) as fault:
        created = store.create(f"{bucket}/a", b"first" * 1_000)
    assert len(fault.seen) == 2
    assert store.read(f"{bucket}/a") == b"first" * 1_000
    # Where the answer was lost, the client's own retry finds the object there.
    assert created is (kind != "lost answer")
    assert not store.create(f"{bucket}/a", b"second")
    assert store.read(f"{bucket}/a") == b"first" * 1_000


@pytest.mark.parametrize("kind", [*READS_AND_WRITES, "cut short", "409"])
def test_a_replacement_outlives_a_fault(kind: Kind, s3: FaultyProxy, bucket: str) -> None:
    store.create(f"{bucket}/a", b"first")
    with s3.fault(kind, "^PUT", times=2) as fault:
        store.replace(f"{bucket}/a", b"second" * 1_000)
    assert len(fault.seen) == 2
    assert store.read(f"{bucket}/a") == b"second" * 1_000


@pytest.mark.parametrize("kind", READS_AND_WRITES)
def test_reading_and_listing_outlive_a_fault(kind: Kind, s3: FaultyProxy, bucket: str) -> None:
    store.create(f"{bucket}/a", b"data")
    with s3.fault(kind, "^(GET|HEAD)", times=2) as fault:
        assert dict(store.list_objects(bucket)).keys() == {"a"}
    assert len(fault.seen) == 2
    with s3.fault(kind, "^(GET|HEAD)", times=2) as fault:
        assert store.read(f"{bucket}/a") == b"data"
    assert len(fault.seen) == 2


@pytest.mark.usefixtures("fresh_clients")
def test_a_stalled_create_is_done_again(
    s3: FaultyProxy, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(s3_module.CONFIG, False, s3_module.CONFIG[False] | {"read_timeout": 1})
    with s3.fault("stall", "^PUT") as fault:
        started = time.monotonic()
        assert store.create(f"{bucket}/a", b"data")
    assert len(fault.seen) == 1
    assert time.monotonic() - started >= 1


def test_two_writers_on_a_flaky_store_lose_nothing(s3: FaultyProxy, bucket: str) -> None:
    def write(job: tuple[int, str]) -> bool:
        number, writer = job
        return store.create(f"{bucket}/{number}", f"{number} by {writer}".encode())

    with s3.fault("flaky", "^PUT", times=10_000) as fault, ThreadPoolExecutor(8) as pool:
        created = list(pool.map(write, itertools.product(range(30), "ab")))
    assert len(fault.seen) > 60 * 1.1  # some were asked for again
    assert len(created) == 60
    assert dict(store.list_objects(bucket)).keys() == {str(number) for number in range(30)}
    for number in range(30):
        first, second = created[2 * number : 2 * number + 2]
        assert not (first and second)
        found = store.read(f"{bucket}/{number}")
        allowed = [f"{number} by {writer}".encode() for writer in "ab"]
        assert found in allowed
        if first or second:  # who was told so has won
            assert found == allowed[not first]


def test_of_16_writers_exactly_one_wins(bucket: str) -> None:
    barrier = threading.Barrier(16)

    def write(number: int) -> bool:
        barrier.wait()
        return store.create(f"{bucket}/a", f"writer {number}".encode() * 1_000)

    with ThreadPoolExecutor(16) as pool:
        won = list(pool.map(write, range(16)))
    assert won.count(True) == 1
    assert store.read(f"{bucket}/a") == f"writer {won.index(True)}".encode() * 1_000


def test_a_large_object_is_one_request(s3: FaultyProxy, bucket: str) -> None:
    # s3fs puts 100 MiB and more in parts, which stay in the store when their writer dies
    data = bytes(101 * 2**20)
    with s3.fault("none", "^(PUT|POST)", times=100) as requests:
        assert store.create(f"{bucket}/a", data)
    assert [request.partition("?")[2] for request in requests.seen] == [""]
    assert dict(store.list_objects(bucket))["a"].size == len(data)


def test_more_keys_than_a_page_holds(s3: FaultyProxy, bucket: str) -> None:
    names = {f"{number:04}" for number in range(1_100)}
    with ThreadPoolExecutor(16) as pool:
        assert all(pool.map(lambda name: store.create(f"{bucket}/{name}", b""), names))
    with s3.fault("none", "^GET", times=100) as requests:
        assert dict(store.list_objects(bucket)).keys() == names
    assert len(requests.seen) == 2


@pytest.mark.usefixtures("fresh_clients")
def test_wrong_credentials_are_one_line_at_once(
    s3: FaultyProxy, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIDWRONG")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong-secret")
    for ask in (
        lambda: store.create(f"{bucket}/a", b""),
        lambda: store.read(f"{bucket}/a"),
        lambda: store.exists(f"{bucket}/a"),
        lambda: list(store.list_objects(bucket)),
        lambda: store.check_writable(bucket),
    ):
        with (
            s3.fault("none", ".*", times=100) as requests,
            pytest.raises(Refused, match=r"s3://tests/.*: access is denied .*; check") as refused,
        ):
            ask()
        assert len(requests.seen) <= 2  # asked once: of a folder, for a key and for a listing
        assert "wrong-secret" not in str(refused.value)
        assert "\n" not in str(refused.value)


@pytest.mark.usefixtures("fresh_clients", "s3")
def test_no_credentials_are_one_line(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nowhere")
    with pytest.raises(Refused, match="there are no credentials for it; set AWS_ACCESS_KEY_ID"):
        store.check_writable(bucket)


@pytest.mark.usefixtures("s3")
@pytest.mark.parametrize("endpoint", ["user:HUSHHUSH@127.0.0.1:1", "http://user:HUSHHUSH@[bad"])
def test_an_endpoint_that_is_no_address_is_one_line(
    endpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    PatientS3.clear_instance_cache()
    with pytest.raises(Refused, match=r"s3://nowhere/key: its endpoint .* is no address") as raised:
        store.read("s3://nowhere/key")
    assert "HUSHHUSH" not in str(raised.value)
    PatientS3.clear_instance_cache()


def test_a_missing_bucket_is_one_line() -> None:
    for ask in (
        lambda: store.create("s3://no-such-bucket/a", b""),
        lambda: list(store.list_objects("s3://no-such-bucket/folder")),
        lambda: store.check_writable("s3://no-such-bucket/folder"),
    ):
        with pytest.raises(Refused, match=r"s3://no-such-bucket/.*there is no such bucket"):
            ask()


def test_a_check_of_the_store_leaves_nothing(bucket: str) -> None:
    store.check_writable(f"{bucket}/run")
    filesystem, path = store.open_store(bucket)
    assert not [key for key in filesystem.find(path) if "probe" in key]
