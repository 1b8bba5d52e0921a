"""Series that dashboards and alerts may query: ours, recorded ones, and those of other exporters."""

from prometheus_client.metrics import MetricWrapperBase

from cluster.telemetry import metrics
from k8s.monitoring.source import generate

FOREIGN = {
    # NVIDIA's DCGM exporter, in its default set (etc/default-counters.csv).
    "DCGM_FI_DEV_FB_FREE",
    "DCGM_FI_DEV_FB_USED",
    "DCGM_FI_DEV_GPU_TEMP",
    "DCGM_FI_DEV_GPU_UTIL",
    "DCGM_FI_DEV_POWER_USAGE",
    "DCGM_FI_DEV_SM_CLOCK",
    "DCGM_FI_DEV_XID_ERRORS",
    "DCGM_FI_PROF_PIPE_TENSOR_ACTIVE",
    # kubelet.
    "kubelet_volume_stats_available_bytes",
    "kubelet_volume_stats_capacity_bytes",
    # Prometheus itself.
    "ALERTS",
}

_SUFFIX = {"counter": "_total", "info": "_info"}


def declared() -> dict[str, MetricWrapperBase]:
    """Our metrics by their names in Prometheus."""
    found = {}
    for value in vars(metrics).values():
        if isinstance(value, MetricWrapperBase):
            (family,) = value.describe()
            found[family.name + _SUFFIX.get(family.type, "")] = value
    return found


def forget() -> None:
    """Remove what earlier tests of this process have set: its exporter would show their runs for ever."""
    for metric in declared().values():
        if metric._labelnames:
            metric.clear()


def recorded() -> set[str]:
    """Names of the series that recording rules create."""
    return {rule["record"] for group in generate.groups() for rule in group["rules"] if "record" in rule}
