"""In processes that find this folder on their path a text can kill the encoder, as a crash of a library would."""

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
