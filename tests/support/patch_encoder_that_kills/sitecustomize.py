"""Python imports this at start if the folder is on PYTHONPATH: one text kills the encoder, as a crash would."""

import os
import signal
from collections.abc import Sequence

from cluster.tokens.fast_encoder import Encoder

_encode = Encoder.encode


def _deadly(encoder: Encoder, texts: Sequence[str]) -> list[bytes | None]:
    if "kill the encoder" in texts:
        os.kill(os.getpid(), signal.SIGKILL)
    return _encode(encoder, texts)


Encoder.encode = _deadly  # type: ignore[method-assign]
