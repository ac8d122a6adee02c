"""prime-rl's traces (``rollouts/step_N/…/traces.jsonl``) and token exports (``rank_R.jsonl``).

Layouts: verifiers v1/graph.py and v1/trace.py (an episode of traces, each a tree of messages, of
which a branch is what one model call saw); prime-rl token_export.py.
"""

from collections.abc import Iterator
from typing import Any

from dlogp_ray.corpus.formats.format import Format, Record, Row, cut_by_mask, the_list
from dlogp_ray.corpus.paths import value_at
from dlogp_ray.errors import RowRejected
from dlogp_ray.status import Status


def trace_rows(record: Record, file: str) -> Iterator[Row]:
    """A row for each branch of each trace, from the root to a leaf."""
    group = value_at(record, "group.id")
    for trace in the_list(record, "traces"):
        nodes = the_list(trace, "nodes")
        parents = [node.get("parent") for node in nodes]
        sampling = value_at(trace, "calls[0].sampling") or {}
        for branch, leaf in enumerate(at for at in range(len(nodes)) if at not in parents):
            row = _branch([nodes[at] for at in _way(parents, leaf)])
            yield row | {
                "sample_id": f"{trace.get('id')}/{branch}",
                "group_id": group,
                "reward": _reward(trace.get("rewards") or {}),
                "temperature": sampling.get("temperature"),
                "top_p": sampling.get("top_p"),
            }


def _way(parents: list[Any], leaf: int) -> list[int]:
    """From the root to a leaf.

    Raises:
        RowRejected: A parent is none of the nodes, or the way has no end.
    """
    way = [leaf]
    while (above := parents[way[-1]]) is not None:
        if type(above) is not int or not 0 <= above < len(parents) or above in way:
            raise RowRejected(Status.WRONG_TYPE, f"nodes: {above!r} is no parent of another node")
        way.append(above)
    return way[::-1]


def _branch(nodes: list[dict[str, Any]]) -> Row:
    ids: list[Any] = []
    mask: list[Any] = []
    logps: list[Any] = []
    for node in nodes:
        own = node.get("token_ids")
        if not isinstance(own, list):
            raise RowRejected(
                Status.MISSING_COLUMN,
                "nodes: there are no token_ids: evaluations keep none; the traces under train/ do",
            )
        generated = node.get("mask") or [bool(node.get("sampled"))] * len(own)
        compact = iter(node.get("logprobs") or [])  # of generated tokens alone
        ids += own
        mask += generated
        logps += [next(compact, None) if value else None for value in generated]
    return cut_by_mask(ids, mask, logps)


def _reward(rewards: dict[str, Any]) -> float | None:
    parts = [r for r in rewards.values() if isinstance(r, dict) and r.get("score") is not None]
    return sum(r["score"] * r.get("weight", 1.0) for r in parts) if parts else None


def token_rows(record: Record, file: str) -> list[Row]:
    """A row a line."""
    ids, mask = the_list(record, "token_ids"), the_list(record, "loss_mask")
    logps = record.get("inference_logprobs")
    row = cut_by_mask(ids, mask, logps if isinstance(logps, list) else None)
    if (number := record.get("export_sequence_idx")) is not None:
        places = (record.get(name) for name in ("step", "rank"))
        row["sample_id"] = "/".join(str(p) for p in (*places, number) if p is not None)
    return [row]


PRIME_RL = Format(
    what="prime-rl's traces",
    holds="ids, mask, log-probabilities; a row a branch",
    keys=frozenset({"traces"}),
    rows=trace_rows,
)
PRIME_RL_TOKENS = Format(
    what="prime-rl's token exports",
    holds="ids, mask, log-probabilities",
    keys=frozenset({"token_ids", "loss_mask", "inference_logprobs"}),
    rows=token_rows,
)
