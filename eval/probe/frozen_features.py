"""Frozen features of texts: the mean of the last hidden states over the real tokens of an input."""

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from transformers import AutoModel

from cluster.models import model_loading
from eval.finetune.batching import Features, Inputs
from eval.finetune.task_model import TaskSource, device
from eval.finetune.trainer import SCORING_BATCH, outputs

Floats = npt.NDArray[np.float32]


def encoder(source: TaskSource) -> Any:
    """The encoder of a model, without its head, in evaluation mode.

    Raises:
        StageError: its weights do not fit its configuration.
    """
    # A pooler may lack weights, which are drawn: nothing here reads it, and the seed makes the load repeatable.
    torch.manual_seed(0)
    model, _ = model_loading.load(AutoModel, source.path)
    return model.to(device()).eval()


def pooled(model: Any, inputs: Inputs) -> Tensor:
    """Mean over the real tokens, special ones included: ``[rows, hidden]``."""
    hidden: Tensor = model(**inputs).last_hidden_state.float()
    if "attention_mask" not in inputs:
        return hidden.mean(dim=1)
    real = inputs["attention_mask"].unsqueeze(-1)
    return (hidden * real).sum(dim=1) / real.sum(dim=1)


def read(model: Any, features: Features, title: str) -> Floats:
    """Features ``[rows, hidden]`` of encoded texts, in their order."""
    found = np.empty((len(features), model.config.hidden_size), dtype=np.float32)
    for rows, of_rows in outputs(model, pooled, features, SCORING_BATCH, title):
        found[rows] = of_rows.cpu().numpy()
    return found
