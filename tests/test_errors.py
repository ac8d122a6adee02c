"""What is told of addresses, and what is not."""

import json
import logging
import pickle

import pytest

from dlogp_ray import errors
from dlogp_ray.addresses import carries_credentials, without_credentials
from dlogp_ray.errors import DlogpError
from dlogp_ray.events import JsonLines

SECRET = "HUSHHUSH"
WITH = [
    f"s3://KEY:{SECRET}@bucket/x",
    f"https://{SECRET}@host/x",
    f"simplecache::s3://KEY:{SECRET}@bucket/x",
    f"https://host/x?token={SECRET}",
    f"https://host/x?a=1&sig={SECRET}",
    f"https://host/x?sv=2021&se=2030&sig={SECRET}&sp=r",
    f"https://host/x?X-Amz-Signature={SECRET}&X-Amz-Date=1",
    f"https://host/x?X-Amz-Security-Token={SECRET}",
    f"https://host/x?x-goog-credential={SECRET}",
    f"https://host/x?api_key={SECRET}",
    f"https://host/x?apikey={SECRET}",
    f"https://host/x?access_token={SECRET}",
    f"https://host/x?AWSAccessKeyId={SECRET}",
    f"https://host/x?password={SECRET}#here",
    f"https://host/x?auth={SECRET}",
    f"https://host/x?client_secret={SECRET}",
    f"https://host/x?%74oken={SECRET}",
    f"https://host/x#access_token={SECRET}",
    f"https://host/x?a=1#access_token={SECRET}",
    f"https://host/x?code={SECRET}",
    f"https://host/x?rlkey={SECRET}",
    f"https://host/x?t=4f{SECRET}0a93bd28c1e7",
    f"s3://KEY:abc/{SECRET}@bucket/x",
    f"s3://KEY:abc?{SECRET}@bucket/x",
    f"s3://KEY:{SECRET}@more@bucket/x",
    f"https:/KEY:{SECRET}@host/x",
    f"//KEY:{SECRET}@host/x",
    f"s3:// KEY:{SECRET}@bucket/x",
    f"memory://KEY%3A{SECRET}%40bucket/x",
    f"s3%3A%2F%2FKEY%3A{SECRET}%40bucket/x",
]
WITHOUT = [
    "s3://bucket/x",
    "s3://bucket/user@host/a.jsonl",
    "abfss://container@account.dfs.core.windows.net/x",
    "hf://datasets/owner/name@main/data.jsonl",
    "https://host/x?versionId=3&design=4&page=key",
    "a token of 3 = 4 and sig=5 in prose",
    "http://host:9000/bucket/user@host/a.jsonl",
    "http://[::1]:9000/bucket/user@host",
    "s3://bucket/x?versionId=3sL4kqtJlcpXroDTDmJrmSpXd3dIbrHY",
    "/data//user@host/a.jsonl",
    "https://host/x?download=true&X-Amz-Date=20261201T000000Z",
    "s3://bucket/100%25/a%40b%3Ac.jsonl",
    "memory://a%20b",
]


@pytest.mark.parametrize("address", WITH)
def test_credentials_are_recognised_and_left_out(address: str) -> None:
    assert carries_credentials(address)
    said = without_credentials(f"Could not connect to '{address}' (3 times), a=1")
    assert SECRET not in said
    assert said.startswith("Could not connect to '")
    assert said.endswith("(3 times), a=1")
    assert "host" in said or "bucket" in said
    assert without_credentials(said) == said


def test_credentials_in_both_spellings_are_left_out() -> None:
    said = without_credentials(f"s3://KEY:{SECRET}@a and memory://KEY%3A{SECRET}%40b")
    assert SECRET not in said


@pytest.mark.parametrize("address", WITHOUT)
def test_what_carries_none_stays(address: str) -> None:
    assert not carries_credentials(address)
    assert without_credentials(address) == address


@pytest.mark.parametrize("address", WITH)
def test_no_error_and_no_line_of_the_log_has_them(address: str) -> None:
    kinds = [
        kind
        for kind in vars(errors).values()
        if isinstance(kind, type) and issubclass(kind, DlogpError)
    ]
    assert len(kinds) > 8
    for kind in kinds:
        error = kind(f"no answer from {address}")
        assert SECRET not in str(error)
        again = pickle.loads(pickle.dumps(error))
        assert (type(again), str(again)) == (kind, str(error))
    record = logging.makeLogRecord({"msg": "waiting", "fields": {"for": [address]}})
    line = JsonLines().format(record)
    assert SECRET not in line
    assert json.loads(line)["event"] == "waiting"
