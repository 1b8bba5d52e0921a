"""Statistics of measured times."""

from collections.abc import Sequence

import numpy as np

from cluster.telemetry.metrics import PERCENTILES


def percentiles(ms: Sequence[float]) -> dict[str, float]:
    """Percentiles, mean and extremes of milliseconds; outliers count."""
    found = zip(PERCENTILES, np.percentile(ms, PERCENTILES), strict=True)
    return {
        **{f"p{percentile}_ms": float(value) for percentile, value in found},
        "mean_ms": float(np.mean(ms)),
        "min_ms": min(ms),
        "max_ms": max(ms),
    }
