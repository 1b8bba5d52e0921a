"""A trained model is the whole model of its checkpoint."""

from pathlib import Path

import altered_models
import pytest
import tiny

from distill.modeling import masked_lm
from distill.modeling.masked_lm import MaskedLM, ModelError

LAYERS = {"bert_teacher": "num_hidden_layers", "distilbert": "n_layers", "roberta_teacher": "num_hidden_layers"}


@pytest.mark.parametrize("build", LAYERS)
def test_a_configuration_of_other_layers_than_the_checkpoint_is_refused(build: str, tmp_path: Path) -> None:
    folder = getattr(tiny, build)(tmp_path / "run", layers=2)
    weights = MaskedLM(masked_lm.load(folder)[0]).state_dict()
    masked_lm.load_trained(folder, weights)
    for layers, says in ((1, r"leaves out .*layer\.1\."), (3, r"lacks .*layer\.2\.")):
        changed = altered_models.with_config(folder, tmp_path / f"{layers}", **{LAYERS[build]: layers})
        with pytest.raises(ModelError, match=says):
            masked_lm.load_trained(changed, weights)
