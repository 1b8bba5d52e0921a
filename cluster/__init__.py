"""What every stage stands on: storage, artifacts, actors, corpus, tokens, models, jobs, inspection."""

import logging

# Where torchao is installed (extra executorch), transformers imports it with every model. It then warns about kernels
# for GPUs, and torch about torchao.
for _name in ("torchao", "torch.utils._pytree"):
    logging.getLogger(_name).setLevel(logging.ERROR)
