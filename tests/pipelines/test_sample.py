"""The noise floor's sample: which texts of a corpus it takes, and what it leaves out."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from conftest import make_policy_folder, make_rows, write_jsonl

from dlogp_ray.pipelines.score.plan import plan_score
from dlogp_ray.pipelines.score.sample import TEXTS, UNITS, sample_texts, sample_units

MANY = 10**9


def sampled(config: Any, tokens: int = MANY) -> list[tuple[list[int], list[int]]]:
    plan = plan_score(config)
    texts = sample_texts(plan.job, sample_units(plan.units), tokens)
    return [(text.prompt_ids.tolist(), text.response_ids.tolist()) for text in texts]


def ids(rows: list[dict[str, Any]]) -> list[tuple[list[int], list[int]]]:
    return [(row["prompt_ids"], row["response_ids"]) for row in rows]


def write_parquet(path: Path, rows: list[dict[str, Any]]) -> str:
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=50, write_page_checksum=True)
    return str(path)


def test_a_small_corpus_is_its_own_sample(tmp_path: Path, make_config: Any) -> None:
    rows = make_rows(TEXTS)
    for corpus in (
        str(write_jsonl(tmp_path / "c.jsonl", rows)),
        write_parquet(tmp_path / "c.parquet", rows),
    ):
        assert sampled(make_config(corpus=corpus, unit_tokens=MANY)) == ids(rows)


def test_texts_are_the_first_of_units_all_over_the_corpus(tmp_path: Path, make_config: Any) -> None:
    rows = make_rows(400)
    config = make_config(corpus=write_parquet(tmp_path / "c.parquet", rows), unit_tokens=500)
    units = plan_score(config).units
    assert len(units) == 16  # about 8,000 tokens
    chosen = list(units)[::2]
    assert sample_units(units) == chosen
    assert len(chosen) == UNITS
    first = [unit.start for unit in chosen]
    each = TEXTS // UNITS
    wanted = [rows[start + turn] for turn in range(each) for start in first]
    assert sampled(config) == ids(wanted)
    assert sampled(config) == sampled(config)


def test_rejected_rows_and_damaged_units_are_left_out(tmp_path: Path, make_config: Any) -> None:
    rows = make_rows(5)
    write_jsonl(tmp_path / "c/a.jsonl", [rows[0], "no json", {"sample_id": "x"}, rows[1]])
    write_jsonl(tmp_path / "c/b.jsonl", ["no json"])
    parquet = tmp_path / "c/c.parquet"
    write_parquet(parquet, rows[2:])
    assert sampled(make_config(corpus=str(tmp_path / "c"))) == ids(
        [rows[0], rows[2], rows[1], rows[3], rows[4]]
    )
    page = pq.ParquetFile(parquet).metadata.row_group(0).column(1)
    data = bytearray(parquet.read_bytes())
    data[page.data_page_offset + page.total_compressed_size - 3] ^= 0xFF
    parquet.write_bytes(data)
    assert sampled(make_config(corpus=str(tmp_path / "c"))) == ids(rows[:2])
    assert sampled(make_config(corpus=str(tmp_path / "c/b.jsonl"), max_rejected=1)) == []


def test_the_sample_ends_with_its_tokens(tmp_path: Path, make_config: Any) -> None:
    rows = make_rows(30)
    config = make_config(corpus=str(write_jsonl(tmp_path / "c.jsonl", rows)), unit_tokens=MANY)
    lengths = [len(row["prompt_ids"]) + len(row["response_ids"]) for row in rows]
    assert sampled(config, sum(lengths[:10])) == ids(rows[:10])
    assert sampled(config, sum(lengths[:10]) + 1) == ids(rows[:11])


def test_long_responses_are_cut_so_that_several_texts_have_a_say(
    tmp_path: Path, make_config: Any
) -> None:
    folder = make_policy_folder(tmp_path / "long", seed=0, max_position_embeddings=10_000)
    rows = [
        {"sample_id": f"s{n}", "prompt_ids": [2 + n] * prompt, "response_ids": [3] * 5_000}
        for n, prompt in enumerate((100, 100, 100, 100, 100, 100, 2_000, 100, 100))
    ]
    config = make_config(
        corpus=str(write_jsonl(tmp_path / "c.jsonl", rows)),
        policies={"rl": str(folder)},
        unit_tokens=MANY,
    )
    texts = sampled(config, 8_192)
    # 6 texts of an eighth each leave 2,048; the seventh has 2,000 + 256 tokens
    assert [len(prompt) for prompt, _ in texts] == [100] * 6 + [2_000]
    responses = [len(response) for _, response in texts]
    assert responses[0] == 8_192 // 8 - 100
    assert responses[-1] == 256
