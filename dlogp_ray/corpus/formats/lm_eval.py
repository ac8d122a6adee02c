"""lm-evaluation-harness: ``samples_{task}_{date}.jsonl``, a line a document and filter.

Layout: lm_eval/evaluator.py and lm_eval/loggers/evaluation_tracker.py. Prompts are what the model
was given: rendered, where a chat template was applied. With several filters each answer stands
there as often: choose one (``where: "filter = 'none'"``).
"""

import re

from dlogp_ray.corpus.formats.format import Format, Record, Row, the_list
from dlogp_ray.corpus.paths import value_at
from dlogp_ray.errors import RowRejected
from dlogp_ray.status import Status

_FILE = re.compile(r"samples_(.+?)_\d{4}-\d\d-\d\dT[\d.:-]+\.jsonl$")


def rows(record: Record, file: str) -> list[Row]:
    """A row a repeat.

    Raises:
        RowRejected: Its model wrote no text.
    """
    called = _FILE.search(file)
    document = f"{called[1] if called else file}/{record.get('doc_id')}"
    (answers, *others) = the_list(record, "resps") or [None]
    if others or not isinstance(answers, list) or not all(isinstance(a, str) for a in answers):
        raise RowRejected(
            Status.MISSING_COLUMN,
            "resps: expected a list of one list of texts, as tasks of generate_until have it",
        )
    metrics = record.get("metrics")
    # A metric is of what the filter made of all repeats: of one answer it is that one's.
    one = metrics if isinstance(metrics, list) and len(metrics) == len(answers) == 1 else None
    metric = record.get(one[0]) if one else None
    return [
        {
            "sample_id": f"{document}/{repeat}",
            "group_id": document,
            "prompt": value_at(record, "arguments.gen_args_0.arg_0"),
            "response": answer,
            "reward": metric,
            "temperature": value_at(record, "arguments.gen_args_0.arg_1.temperature"),
        }
        for repeat, answer in enumerate(answers)
    ]


LM_EVAL = Format(
    what="lm-eval's samples",
    holds="rendered texts",
    keys=frozenset({"doc_id", "arguments", "resps", "filtered_resps"}),
    rows=rows,
    rendered=True,
)
