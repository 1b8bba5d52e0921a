"""Keep transformers from importing torchao with every model, in every process of ours.

Where torchao is installed, which the extra ``executorch`` does, ``transformers.quantizers`` imports it to be ready for
weights in its format. No model here has such weights, and on a machine without a GPU it takes a second and prints
warnings above our own one-line errors. Importing this module is enough; torchao itself stays free to be imported.
"""

import importlib.abc
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType

_PROBING = "transformers.quantizers.quantizer_torchao"


class _Unprobed(importlib.abc.MetaPathFinder):
    """Finds nothing; it is asked for every module first, and so knows when to speak.

    Patching transformers at once would import it into commands that have no use for it.
    """

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname == _PROBING:
            sys.meta_path.remove(self)
            vars(sys.modules["transformers.utils"])["is_torchao_available"] = lambda: False
        return None


sys.meta_path.insert(0, _Unprobed())
