"""lm-eval's samples of a task of its own, by its own dummy model: with and without a chat template.

pip install lm-eval
PYTHONPATH=tests python tests/corpus/formats/written/make_lm_eval.py
"""

import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
TASK = """
task: sums
dataset_path: json
dataset_kwargs: {data_files: {test: %s}}
test_split: test
output_type: generate_until
doc_to_text: "{{question}}="
doc_to_target: "{{answer}}"
repeats: 2
generation_kwargs: {until: ["a"], do_sample: true, temperature: 0.7, max_gen_toks: 8}
filter_list:
  - {name: first, filter: [{function: take_first}]}
metric_list:
  - {metric: exact_match, aggregation: mean, higher_is_better: true}
"""
ROWS = [{"question": "1+2", "answer": "3"}, {"question": "34+5", "answer": "39"}]


def main() -> None:
    """Write the samples."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data = folder / "data.jsonl"
        data.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
        (folder / "sums.yaml").write_text(TASK % data)
        subprocess.run(
            [
                *(sys.executable, "-m", "lm_eval", "run", "--model", "dummy", "--tasks", "sums"),
                *("--include_path", name, "--output_path", str(folder / "out"), "--log_samples"),
            ],
            check=True,
        )
        (written,) = (folder / "out").rglob("samples_sums_*.jsonl")
        (HERE / "lm_eval").mkdir(exist_ok=True)
        shutil.copy(written, HERE / "lm_eval" / written.name)


if __name__ == "__main__":
    main()
