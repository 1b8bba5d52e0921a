"""Statistics of measured times."""

from collections.abc import Sequence

import numpy as np


def percentiles(ms: Sequence[float]) -> dict[str, float]:
    """Percentiles, mean and extremes of milliseconds; outliers count."""
    p50, p90, p99 = np.percentile(ms, (50, 90, 99))
    return {
        "p50_ms": float(p50),
        "p90_ms": float(p90),
        "p99_ms": float(p99),
        "mean_ms": float(np.mean(ms)),
        "min_ms": min(ms),
        "max_ms": max(ms),
    }
