"""The score job's config: every refusal names the field, what was expected and what came."""

import time
from datetime import date
from pathlib import Path
from typing import Any

import pytest
import yaml

import dlogp_ray
from dlogp_ray.config import (
    SCHEMES,
    ActorRange,
    InterveneConfig,
    PolicySource,
    ReweightConfig,
    ScoreConfig,
)
from dlogp_ray.errors import ExitCode, Refused

VALID: dict[str, Any] = {
    "corpus": "corpus.jsonl",
    "policies": {"base": "models/base", "rl": {"path": "models/rl", "step": 400}},
    "output": "runs",
    "run_id": "first",
}


def make(**fields: Any) -> ScoreConfig:
    return ScoreConfig.from_mapping(VALID | fields)


def refusal(**fields: Any) -> str:
    with pytest.raises(Refused) as caught:
        make(**fields)
    assert caught.value.exit_code == ExitCode.REFUSED == 2
    return str(caught.value)


def test_strings_stand_for_a_list_of_one_and_for_a_path() -> None:
    config = make()
    assert [entry.path for entry in config.corpus] == ["corpus.jsonl"]
    assert config.policies["base"] == PolicySource(path="models/base", revision=None, step=None)
    assert config.policies["rl"].step == 400
    assert [entry.path for entry in make(corpus=["a", "b"]).corpus] == ["a", "b"]


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"budget": 1}, ["budget: unknown field; did you mean token_budget?"]),
        (
            {"policies": {"base": {"path": "p", "setp": 1}}},
            ["base.setp: unknown field; did you mean step?"],
        ),
        ({1: 2}, ["1: expected text for the name of a field"]),
        ({"corpus": []}, ["corpus: expected 1 or more of them, as in corpus: rollouts/"]),
        ({"corpus": ""}, ["corpus: ", "got '', which names no folder"]),
        ({"corpus": None}, ["corpus: expected a list, as in corpus: rollouts/", "(got null)"]),
        ({"policies": {}}, ["policies: expected 1 or more of them, as in policies: {base: "]),
        (
            {"policies": "models/rl"},
            ["policies: expected fields with values, as in policies: {base: ", '(got "models/rl")'],
        ),
        ({"policies": {"base": {}}}, ["policies.base: expected either a path", "or an adapter"]),
        (
            {"policies": {"base": "p", "rl": {"path": "q", "adapter": "a"}}},
            ["policies.rl: expected either a path", "or an adapter"],
        ),
        ({"policies": {"base": {"adapter": "a"}}}, ["policies.base.adapter: ", "with a path"]),
        ({"policies": {"rl": {"adapter": "a"}}}, ["policies.rl.adapter: ", "called 'base'"]),
        (
            {"policies": {"base": {"adapter": ""}}},
            ["policies.base.adapter: ", "got '', which names no folder"],
        ),
        ({"policies": {"base": {"path": "p", "step": -1}}}, ["policies.base.step: ", "(got -1)"]),
        ({"policies": {"r/l": "p"}}, ["policy name 'r/l' must match"]),
        ({"policies": {"a": "p", "b": "q"}}, ["policies a, b", "one must be called 'base'"]),
        ({"tokenize_with": "sft"}, ["no policy is called 'sft'", "there are base, rl"]),
        ({"columns": {"completion": "response"}}, ["columns: completion", "one of sample_id, "]),
        (
            {"carry": {"x": "int"}},
            ["carry.x: expected 'string', 'int64', ", '(got "int")'],
        ),
        ({"carry": 5}, ["\n  carry: expected a list, as in carry: [difficulty, source] (got 5)"]),
        (
            {"prompt_format": "Chat"},
            ["prompt_format: ", "'raw', 'chat' or 'rendered'", '(got "Chat")'],
        ),
        ({"dtype": "fp16"}, ["dtype: ", "'bfloat16'", '(got "fp16")']),
        ({"temperature": 0}, ["temperature: expected more than 0 (got 0)"]),
        ({"temperature": float("inf")}, ["temperature: expected a finite number (got Infinity)"]),
        ({"temperature": float("nan")}, ["temperature: expected a finite number (got NaN)"]),
        ({"unit_tokens": 0}, ["unit_tokens: ", "(got 0)"]),
        ({"token_budget": "many"}, ['token_budget: expected a whole number (got "many")']),
        ({"actors": 0}, ["actors: expected a whole number of 1 or more, or {min: ", "(got 0)"]),
        ({"actors": "many"}, ["actors: ", "as in actors: 4", '(got "many")']),
        ({"actors": {"min": 3, "max": 2}}, ["actors: ", "min 3 is more than max 2"]),
        ({"actors": {"min": 3}}, ["actors.max: ", "missing"]),
        ({"actors": {"most": 3}}, ["actors.most: unknown field", "the fields are min, max"]),
        ({"gpus_per_actor": -1}, ["gpus_per_actor: ", "(got -1)"]),
        ({"max_unit_attempts": 0}, ["max_unit_attempts: ", "(got 0)"]),
        ({"max_rejected": -1}, ["max_rejected: ", "(got -1)"]),
    ],
    ids=str,
)
def test_refusals(fields: dict[Any, Any], named: list[str]) -> None:
    with pytest.raises(Refused) as caught:
        ScoreConfig.from_mapping(VALID | fields)
    for part in named:
        assert part in str(caught.value)


@pytest.mark.parametrize(
    "run_id",
    ["", "..", ".hidden", "a/b", "a\\b", "../a", "/a", "Run", "-a", "a b", "é", "a\n", "a" * 64],
)
def test_a_bad_run_id_is_refused(run_id: str) -> None:
    text = refusal(run_id=run_id)
    assert f"run_id {run_id!r} must match ^[a-z0-9][a-z0-9._-]{{0,62}}$" in text


@pytest.mark.parametrize("run_id", ["a", "0", "2026-01-01_run.v2", "a" * 63, "a..b"])
def test_a_good_run_id(run_id: str) -> None:
    assert make(run_id=run_id).run_uri == f"runs/{run_id}"


def test_the_run_s_address_has_one_slash() -> None:
    assert make(output="s3://bucket/runs/").run_uri == "s3://bucket/runs/first"


def test_all_problems_are_told_at_once() -> None:
    text = refusal(run_idd="x", temperature=0, actors=0)
    assert all(name in text for name in ("run_idd", "temperature", "actors"))


def test_the_fields_are_listed_once_for_many_that_are_unknown() -> None:
    text = refusal(xyzzy=1, plugh=2, zzzzz=3, output_=4)
    assert text.count("the fields are") == 1
    assert "output_: unknown field; did you mean output?" in text


@pytest.mark.parametrize("field", ["corpus", "output"])
def test_home_is_known_and_variables_are_not(field: str) -> None:
    config = make(**{field: "~/runs"})
    home = str(Path.home() / "runs")
    assert home in (config.output, config.corpus[0].path)
    for variable in ("$HOME/runs", "${SCRATCH}/runs", "$HOME"):
        assert "write the path out, or ~" in refusal(**{field: variable})
    make(**{field: "a$b/c"})  # a name may have it


def test_a_nul_byte_is_no_path() -> None:
    assert "NUL byte" in refusal(output="runs\0")


def test_what_is_missing_is_named() -> None:
    with pytest.raises(Refused) as caught:
        ScoreConfig.from_mapping({"corpus": "c"}, source="job.yaml")
    assert str(caught.value).startswith("job.yaml:\n")
    for name in ("policies", "output", "run_id"):
        assert f"{name}: is required and missing" in str(caught.value)


SECRET = "s3://AKIAKEY:HUSHHUSH@bucket/x"


@pytest.mark.parametrize(
    "fields",
    [
        {"corpus": SECRET},
        {"corpus": ["a", SECRET]},
        {"corpus": [[SECRET]]},
        {"corpus": {"a": SECRET}},
        {"corpus": f"simplecache::{SECRET}"},
        {"output": SECRET},
        {"policies": {"base": SECRET}},
        {"policies": {"base": {"path": SECRET, "step": 1}}},
        {"policies": {"base": [SECRET]}},
        {"policies": {"base": "p", "rl": {"adapter": SECRET}}},
        {"policies": {"base": "p", "rl": {"path": "p", "adapter": SECRET}}},
        {"output": "https://HUSHHUSH@host/x"},
        {"corpus": "https://host/x.jsonl?X-Amz-Credential=a&X-Amz-Signature=HUSHHUSH"},
        {"corpus": "https://host/x.jsonl?sig=HUSHHUSH"},
    ],
    ids=str,
)
def test_credentials_in_an_address_are_refused_and_not_repeated(fields: dict[str, Any]) -> None:
    text = refusal(**fields)
    assert "HUSHHUSH" not in text
    assert next(iter(fields)) in text


@pytest.mark.parametrize(
    "uri",
    [
        "hf://datasets/owner/name@main/data.jsonl",
        "s3://bucket/user@host/a.jsonl",
        "user@host/a",
        "abfs://container@account.dfs.core.windows.net/x",
        "abfss://container@account.dfs.core.windows.net/x",
    ],
)
def test_an_at_sign_alone_is_no_credential(uri: str) -> None:
    assert make(corpus=uri).corpus[0].path == uri


def test_who_is_compared_and_who_tokenizes() -> None:
    three = {"early": "a", "base": "b", "late": "c"}
    config = make(policies=three)
    assert (config.compared, config.tokenizer_policy) == (("early", "late"), "late")
    assert make(policies=three, tokenize_with="base").tokenizer_policy == "base"
    for name in ("base", "rl"):  # one alone may have either name
        alone = make(policies={name: "a"})
        assert (alone.compared, alone.tokenizer_policy) == ((name,), name)


def test_an_adapter_has_a_revision_and_a_step_as_a_path_has() -> None:
    rl = {"adapter": "owner/name", "revision": "main", "step": 3}
    source = make(policies={"base": "p", "rl": rl}).policies["rl"]
    assert (source.path, source.address, source.revision, source.step) == (
        None,
        "owner/name",
        "main",
        3,
    )
    assert make().policies["rl"].address == "models/rl"


def test_a_config_cannot_be_changed() -> None:
    config = make()
    with pytest.raises(Refused, match="does not change; model_copy"):
        config.temperature = 2.0  # type: ignore[misc]
    with pytest.raises(Refused, match="does not change; model_copy"):
        config.policies["rl"].step = 2  # type: ignore[misc]


@pytest.mark.parametrize("mode", ["python", "json"])
@pytest.mark.parametrize("carry", [["a", "b"], {"a": "int64"}], ids=["names", "types"])
def test_what_is_saved_reads_back_the_same(mode: str, carry: Any) -> None:
    config = make(columns={"response": "completion"}, carry=carry, temperature=0.7, actors=3)
    assert ScoreConfig.from_mapping(config.model_dump(mode=mode)) == config


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "job.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_yaml_and_its_overrides(tmp_path: Path) -> None:
    path = write(tmp_path, yaml.safe_dump(VALID | {"actors": 2, "temperature": 0.5}))
    assert ScoreConfig.from_yaml(path) == make(actors=2, temperature=0.5)
    # None leaves the file's value; a false or zero override is a value.
    changed = ScoreConfig.from_yaml(path, actors=3, temperature=None, seal_partial=False)
    assert changed.actors == ActorRange(min=3, max=3)
    assert (changed.temperature, changed.seal_partial) == (0.5, False)
    with pytest.raises(Refused, match=r"actors: .*got 0"):
        ScoreConfig.from_yaml(path, actors=0)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("corpus: [a", "not valid YAML"),
        ("- corpus", "expected fields with values, as in corpus: rollouts/; got a list"),
        ("", "expected fields with values, as in corpus: rollouts/; got nothing"),
        ("!!python/object/apply:os.system ['true']", "not valid YAML"),
        ("corpus: a\nunknown: 1", "unknown: unknown field"),
    ],
)
def test_a_file_that_holds_no_config_is_refused(tmp_path: Path, text: str, named: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(Refused) as caught:
        ScoreConfig.from_yaml(path)
    assert named in str(caught.value)
    assert str(path) in str(caught.value)


def test_a_line_that_is_no_yaml_is_named_and_not_repeated(tmp_path: Path) -> None:
    path = write(tmp_path, f"run_id: a\ncorpus: {SECRET}: [\n")
    with pytest.raises(Refused, match="not valid YAML: line 2: ") as caught:
        ScoreConfig.from_yaml(path)
    assert "HUSHHUSH" not in str(caught.value)


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Refused, match=r"absent\.yaml: No such file.*give the path of a YAML file"):
        ScoreConfig.from_yaml(tmp_path / "absent.yaml")
    with pytest.raises(Refused, match="Is a directory"):
        ScoreConfig.from_yaml(tmp_path)
    (tmp_path / "bytes.yaml").write_bytes(b"corpus: \xff")
    with pytest.raises(Refused, match=r"bytes\.yaml, line 1: expected UTF-8, got the byte 0xff"):
        ScoreConfig.from_yaml(tmp_path / "bytes.yaml")
    (tmp_path / "latin.yaml").write_bytes("a: 1\noutput: Läufe".encode("latin-1"))
    with pytest.raises(Refused, match=r"line 2: expected UTF-8, got the byte 0xe4; save it as"):
        ScoreConfig.from_yaml(tmp_path / "latin.yaml")


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("a:\n\t- x", "line 2: .*indented with spaces"),
        ("a: 1\n  b: 2", "line 2: .*indented like those around it"),
        ("a\nb: 1", "line 2: .*the line before its colon"),
        ("output: s3://a: b", "line 1: .*': ' in it quotes"),
        ("- a\nb: 1", "line 2: .*indented like those"),
        ("a: 'x\nb: 1", "a quote is not closed"),
        ("a: [1\nb: 2", "line 2: .*a bracket is not closed before"),
        ("a: @x", "line 1: .*wants quotes"),
        ("a: *x", "line 1: .*begins with \\* wants quotes"),
        ("a: !x", "line 1: .*begins with ! wants quotes"),
        ("a: 1\n---\nb: 2", "a job is one"),
    ],
)
def test_what_yaml_refuses_is_told_with_what_was_mostly_meant(
    tmp_path: Path, text: str, hint: str
) -> None:
    with pytest.raises(Refused, match=hint):
        ScoreConfig.from_yaml(write(tmp_path, text))


def test_the_job_of_another_command_is_told_by_its_name() -> None:
    with pytest.raises(Refused, match=r"no problems and no rules, .*`dlogp score` takes it"):
        InterveneConfig.from_mapping(VALID)
    with pytest.raises(Refused, match=r"no corpus, .*`dlogp intervene` takes it"):
        ScoreConfig.from_mapping(INTERVENE)


INTERVENE = {
    "problems": "p.jsonl",
    "policies": {"base": "b", "rl": "r"},
    "output": "o",
    "run_id": "r",
    "rules": [{"rule": "always"}],
}


def test_a_rule_takes_one_number_or_several() -> None:
    one = {"rule": "kl", "thresholds": 0.5, "gammas": 0.1}
    several = {"rule": "kl", "rates": [0.1, 0.2]}
    config = InterveneConfig.from_mapping(INTERVENE | {"rules": [one, several]})
    assert [(r.thresholds, r.rates, r.gammas) for r in config.rules] == [
        ((0.5,), (), (0.1,)),
        ((), (0.1, 0.2), ()),
    ]
    assert (config.rl, config.problems) == ("rl", ("p.jsonl",))


def test_one_of_a_list_needs_no_list() -> None:
    alone = {"rules": {"rule": "kl", "rates": 0.1, "gammas": 1}, "seeds": 3, "stop_strings": "x"}
    config = InterveneConfig.from_mapping(INTERVENE | alone)
    assert (config.seeds, config.stop_strings) == ((3,), ("x",))
    assert (config.rules[0].rates, config.rules[0].gammas) == ((0.1,), (1.0,))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"rules": []}, "rules: expected 1 or more of them, as in rules: "),
        ({"rules": [{"rule": "kll"}]}, r"rules \(item 1\)\.rule: .*'kl'.*got \"kll\""),
        ({"rules": [{"rule": "kl"}]}, r"rules \(item 1\): rule kl needs thresholds, or rates"),
        (
            {"rules": [{"rule": "never", "rates": 0.1}]},
            r"rules \(item 1\): rule never takes neither thresholds nor rates",
        ),
        (
            {"rules": [{"rule": "kl", "rates": 1.0}]},
            r"\(item 1\)\.rates: .*less than 1.*got 1",
        ),
        (
            {"rules": [{"rule": "kl", "thresholds": 1, "gamma": 1}]},
            r"rules \(item 1\)\.gamma: unknown field; did you mean gammas\?$",
        ),
        ({"policies": {"base": "b"}}, "policies base: expected two, 'base' and the RL policy"),
        ({"policies": {"base": "b", "x": "x", "y": "y"}}, "policies base, x, y: expected two"),
        ({"columns": {"level": "a"}}, "columns: level is not a standard column"),
        ({"seeds": [1, 1]}, "seeds 1, 1: one is there twice"),
        ({"seeds": []}, "seeds: expected 1 or more"),
        # One line: that the list is too short as well, without what is wrong in it, is not said.
        ({"seeds": [-1]}, r"^config:\n  seeds \(item 1\): expected 0 or more \(got -1\)$"),
        ({"seeds": 2**63}, r"seeds: .*less than 9223372036854775808"),
        ({"stop_strings": ["", "b"]}, r"stop_strings \(item 1\): expected 1 or more characters"),
        ({"rules": {"rule": "kl", "thresholds": True}}, "expected numbers, got a truth value"),
        ({"top_p": 0}, r"top_p: expected more than 0 \(got 0\)"),
        ({"block": 17}, r"block: expected 16 or less"),
    ],
)
def test_an_intervene_job_that_contradicts_itself_is_refused(
    change: dict[str, Any], named: str
) -> None:
    with pytest.raises(Refused, match=named):
        InterveneConfig.from_mapping(INTERVENE | change)


def laughs(levels: int) -> str:
    """Each line ten aliases of the one before: 10 to the power of their number."""
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    for level in range(1, levels):
        lines.append(f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * 10)}]")
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (laughs(9), "with its aliases it has more than 100,000 values"),
        ("a: " + "[" * 1_000 + "]" * 1_000, "nested deeper than YAML can be read"),
        ("a: " + "[" * 200 + "]" * 200, "nested deeper than YAML can be read"),
        ("a: &a [*a]", "an alias stands for what it stands in"),
        ("a: " + "x" * 2**20, "expected at most 1,048,576 bytes"),
    ],
    ids=["laughs", "deep", "less deep", "itself", "large"],
)
def test_a_job_file_is_bounded(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "job.yaml"
    path.write_text(text)
    started = time.process_time()
    with pytest.raises(Refused, match=said):
        ScoreConfig.from_yaml(path)
    assert time.process_time() - started < 10  # of the processor; a billion values take hours


@pytest.mark.parametrize(
    ("text", "line"),
    [("temperature: 2.0\nseed: 1\ntemperature: 1.0\n", 3), ("a:\n  b: {c: 1, d: 2, c: 1}\n", 2)],
)
def test_a_field_that_is_given_twice_is_refused(tmp_path: Path, text: str, line: int) -> None:
    path = tmp_path / "job.yaml"
    path.write_text(text)
    with pytest.raises(Refused, match=f"line {line}: (temperature|c) stands there twice"):
        ScoreConfig.from_yaml(path)


@pytest.mark.parametrize("value", ["9" * 5_000, "2026-13-45"])
def test_a_value_that_python_can_not_hold_is_refused(tmp_path: Path, value: str) -> None:
    path = tmp_path / "job.yaml"
    path.write_text(f"unit_tokens: {value}\n")
    with pytest.raises(Refused, match=r"job\.yaml is not valid YAML: "):
        ScoreConfig.from_yaml(path)


def test_more_bytes_than_there_can_be_are_refused() -> None:
    with pytest.raises(Refused, match=r"max_row_bytes: [^;]*4611686018427387904"):
        ScoreConfig.from_mapping(VALID | {"max_row_bytes": 2**63})


def test_aliases_may_be_used(tmp_path: Path) -> None:
    path = tmp_path / "job.yaml"
    path.write_text("corpus: &c x.jsonl\npolicies: {base: *c}\noutput: runs\nrun_id: *c\n")
    assert ScoreConfig.from_yaml(path).run_id == "x.jsonl"


@pytest.mark.parametrize(("spelled", "read"), [("on", "on"), ("off", "off"), ("auto", "auto")])
def test_on_and_off_are_what_they_say_although_yaml_has_them_for_truth_values(
    spelled: str, read: str, tmp_path: Path
) -> None:
    path = write(tmp_path, yaml.safe_dump(VALID) + f"compile: {spelled}\n")
    assert ScoreConfig.from_yaml(path).compile == read


def test_what_is_wrong_with_a_text_is_not_told_as_no_text() -> None:
    """Errors without words of ours keep pydantic's: no field has such a bound today."""
    from pydantic import BaseModel, Field, ValidationError

    from dlogp_ray.config.explaining import in_words

    class Bounded(BaseModel):
        text: str = Field("", max_length=2)

    with pytest.raises(ValidationError) as raised:
        Bounded(text="long")
    (problem,) = raised.value.errors()
    assert in_words(problem) == "String should have at most 2 characters"


def test_python_gets_the_same_words_and_may_give_what_it_has(tmp_path: Path) -> None:
    with pytest.raises(Refused, match=r"^ScoreConfig:\n  temperature: expected more than 0 "):
        ScoreConfig(**VALID | {"temperature": 0})
    paths = {"base": tmp_path / "base", "rl": {"path": tmp_path / "rl"}}
    given = ScoreConfig(**VALID | {"corpus": tmp_path / "c.jsonl", "policies": paths})
    assert given.corpus[0].path == str(tmp_path / "c.jsonl")
    assert [p.path for p in given.policies.values()] == [str(tmp_path / n) for n in paths]
    delta = SCHEMES["delta"](beta=0.5)
    for schemes in (delta, [delta], {"scheme": "delta", "beta": 0.5}):
        assert ReweightConfig(run="r", schemes=schemes).schemes == (delta,)


def test_an_item_of_a_list_is_told_by_its_number() -> None:
    with pytest.raises(Refused) as caught:
        ReweightConfig(run="r", schemes=["low_prob", {"scheme": "delta", "beta": "x"}])
    assert "  schemes (item 2).delta.beta: expected a number" in str(caught.value)


@pytest.mark.parametrize("field", ["gpus_per_actor", "timeout_start"])
def test_endless_is_no_number_of_gpus_or_seconds(field: str) -> None:
    assert "expected a finite number" in refusal(**{field: float("inf")})


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"temperature": True}, "  temperature: expected a number, got true"),
        ({"unit_tokens": True}, "  unit_tokens: expected a number, got true"),
        ({"actors": True}, "  actors: expected a whole number of 1 or more, or {min: 1, max: 64}"),
        (
            {"policies": {"base": {"path": "p", "step": False}}},
            "step: expected a number, got false",
        ),
        ({"run_id": 42}, 'in quotes it is text: "42"'),
        ({"run_id": date(2026, 12, 1)}, 'in quotes it is text: "2026-12-01"'),
        ({"run_id": "a" * 5_000}, "a…' must match"),
        (
            {"columns": {"response_ids": "ids", "prompt_ids": "ids"}},
            "columns: 'ids' is named for prompt_ids and for response_ids",
        ),
        (
            {"columns": {"response_ids": "prompt_ids"}},
            "is named for prompt_ids and for response_ids",
        ),
    ],
    ids=str,
)
def test_what_a_careless_job_says(fields: dict[str, Any], said: str) -> None:
    text = refusal(**fields)
    assert said in text
    assert len(text) < 400


def test_truth_is_a_truth_value_where_one_is_expected() -> None:
    assert make(pairs=True).pairs
    with pytest.raises(Refused, match="beta: expected a number, got true"):
        ReweightConfig(run="r", schemes={"scheme": "delta", "beta": True})


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.parquet", "rows.jsonl.gz"])
def test_a_file_of_rows_is_no_job(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b'{"sample_id": "a"}\n')
    with pytest.raises(Refused, match="it is a file of rows, not a job; name it in a YAML file"):
        ScoreConfig.from_yaml(tmp_path / name)


@pytest.mark.parametrize("job", ["score", "intervene", "sparsity", "reweight"])
def test_a_job_is_called_with_its_config(job: str) -> None:
    with pytest.raises(Refused, match=r"expected a \w+Config, got text; \w+Config\.from_yaml"):
        getattr(dlogp_ray, job)("job.yaml")
    with pytest.raises(Refused, match=r"^ScoreConfig: expected fields by their names, got "):
        ScoreConfig("job.yaml")  # type: ignore[call-arg]
    for given in (None, 5):
        with pytest.raises(Refused, match="expected a path or a URL, got a "):
            dlogp_ray.open_run(given)  # type: ignore[arg-type]


def test_fields_are_set_over_a_job_file(tmp_path: Path) -> None:
    path = write(tmp_path, yaml.safe_dump(VALID))
    set_ = ["temperature=0.5", "policies.rl={path: q, step: 3}", "policies.late=r", "pairs=true"]
    config = ScoreConfig.from_yaml(path, [*set_, "columns.reward=score", "corpus=[a, b]"])
    assert (config.temperature, config.pairs, config.columns) == (0.5, True, {"reward": "score"})
    assert config.policies["rl"] == PolicySource(path="q", step=3)
    assert list(config.policies) == ["base", "rl", "late"]
    assert [entry.path for entry in config.corpus] == ["a", "b"]


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("temperature", "expected FIELD=VALUE, as in --set temperature=0.7"),
        ("=3", "expected FIELD=VALUE"),
        ("output.a=3", "output has no fields of its own"),
        ("carry=[a", "the value is not valid YAML"),
        ("temprature=3", "temprature: unknown field; did you mean temperature?"),
    ],
)
def test_a_setting_that_can_not_be_is_refused(tmp_path: Path, setting: str, said: str) -> None:
    path = write(tmp_path, yaml.safe_dump(VALID))
    with pytest.raises(Refused) as caught:
        ScoreConfig.from_yaml(path, [setting])
    assert said in str(caught.value)
