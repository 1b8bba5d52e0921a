"""Draw the picture of both dashboards in k8s/README.md: six hours of the simulated service in a real Prometheus.

::

    PYTHONPATH=. python tests/support/dashboards_from_script.py k8s/monitoring/dashboards.png
"""

import subprocess
import sys
import tempfile
import time
from pathlib import Path

import prometheus_servers as servers
import simulated_service

from k8s.monitoring.source import dashboards_picture
from k8s.monitoring.source.picture_data import Window

HOUR = 3600.0
LABELS = 'cluster="v100-8",job="stillhouse",instance="10.0.0.7:9400"'


def main(out: Path) -> None:
    end = time.time()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        script = simulated_service.Script(end - 8 * HOUR)
        history = folder / "history.txt"
        simulated_service.write_history(script, end - 7 * HOUR, end, 60.0, LABELS, history)
        blocks = ["promtool", "tsdb", "create-blocks-from", "openmetrics", str(history), str(folder / "data")]
        subprocess.run(blocks, check=True, stdout=subprocess.DEVNULL)
        with servers.prometheus(folder, {}) as source:
            now = end - 55.0  # the history's last moment is a minute before its end
            assert dashboards_picture.draw(source, Window(now, 6 * HOUR, rate_seconds=240), out) == 0


if __name__ == "__main__":
    main(Path(sys.argv[1]))
