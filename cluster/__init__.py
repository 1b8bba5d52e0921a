"""What every stage stands on: storage, artifacts, actors, corpus, tokens, models, jobs, inspection."""

import logging

# Where torchao is installed (extra executorch), transformers imports it with every model. torchao 0.18.0 then warns of
# kernels that it has for GPUs only (torchao/__init__.py:96), and torch of how torchao registers its enums.
logging.getLogger("torchao").setLevel(logging.ERROR)
logging.getLogger("torch.utils._pytree").addFilter(lambda record: "register_constant" not in record.getMessage())
