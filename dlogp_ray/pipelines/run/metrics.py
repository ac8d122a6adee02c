"""What a job tells Prometheus, through Ray's metrics: ``ray_dlogp_*`` on every node's port.

Rates are the reader's: ``rate(ray_dlogp_tokens_total[5m])`` are tokens/s. The dashboard of
``cluster/grafana.json`` shows them.
"""

from collections.abc import Mapping

from ray.util.metrics import Counter, Gauge, Histogram

UNIT_SECONDS = [1.0, 5.0, 15.0, 30.0, 60.0, 120.0, 180.0, 300.0, 600.0, 1_200.0]
"""Bounds of the histogram; a unit is meant to take one to five minutes."""


class ActorMetrics:
    """What a scoring actor counts.

    Args:
        run_id: The label ``run`` of all.
    """

    def __init__(self, run_id: str) -> None:
        """Nothing is counted yet."""
        run = {"run": run_id}
        self._units = Counter(
            "dlogp_units_total", "Units that were scored, or failed.", ("run", "outcome")
        )
        self._tokens = Counter(
            "dlogp_tokens_total", "Prompt and response tokens that were scored.", ("run",)
        )
        self._response_tokens = Counter(
            "dlogp_response_tokens_total", "Response tokens in the table.", ("run", "policy")
        )
        self._rows = Counter(
            "dlogp_rows_total",
            "Rows of the table; all but ok are rejected.",
            ("run", "policy", "status"),
        )
        self._seconds = Histogram(
            "dlogp_unit_seconds", "Seconds that a unit's scoring took.", UNIT_SECONDS, ("run",)
        )
        for metric in (self._units, self._tokens, self._response_tokens, self._rows, self._seconds):
            metric.set_default_tags(run)

    def scored(
        self,
        *,
        tokens: int,
        response_tokens: Mapping[str, int],
        rows: Mapping[tuple[str, str], int],
        seconds: float,
    ) -> None:
        """A unit was scored.

        Args:
            tokens: Of prompts and responses.
            response_tokens: Policy -> response tokens in its rows.
            rows: (policy, status) -> rows.
            seconds: What it took.
        """
        self._units.inc(1, {"outcome": "scored"})
        self._seconds.observe(seconds)
        if tokens:  # Ray refuses to count up by nothing
            self._tokens.inc(tokens)
        for policy, count in response_tokens.items():
            if count:
                self._response_tokens.inc(count, {"policy": policy})
        for (policy, status), count in rows.items():
            self._rows.inc(count, {"policy": policy, "status": status})

    def failed(self) -> None:
        """A unit could not be scored."""
        self._units.inc(1, {"outcome": "failed"})


class DriverMetrics:
    """What the driver knows.

    Args:
        run_id: The label ``run``.
    """

    def __init__(self, run_id: str) -> None:
        """Nothing is said yet."""
        self._waiting = Gauge("dlogp_units_waiting", "Units that have no object yet.", ("run",))
        self._waiting.set_default_tags({"run": run_id})

    def waiting(self, units: int) -> None:
        """So many units are left."""
        self._waiting.set(units)
