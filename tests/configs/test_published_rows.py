"""The rows of few labels that are called "as published" have the official values, and what differs is named here.

DASO's values are those of the paper and its public code; USADTM's are those of the same code.
"""

from __future__ import annotations

from typing import Any

import pytest

from rayssl import schema
from rayssl.experiment.config import Experiment
from tests.bench.few_labels_table import BLENDED, IMBALANCE, OTHERWISE
from tests.configs.test_configs import FOLDER

OFFICIAL_STEPS = 250_000
CORPORA = ("words", "synthetic_words")
SHARED: dict[str, Any] = {"evaluate": "average", "adjust": 0.0, "weight": 1.0}  # the averaged model; lambda_u; no LA
OFFICIAL: dict[str, dict[str, Any]] = {
    "daso_published": {
        "name": "daso", "threshold": 0.95, "queue": 256, "window": 100, "prototype_temperature": 0.05, "align": 1.0,
        "warmup_steps": 5000, "ema": 0.999, **SHARED,
    },
    "usadtm_published": {
        "name": "usadtm", "threshold": 0.85, "rule": "cosine", "features": "current", "aggregation": 0.1,
        "warmup_steps": 500, "ema": 0.999, **SHARED,
    },
}  # fmt: skip
# the average of all rows, see `few_labels_table.PUBLISHED`; T_dist is by the split; the public code has queues of five
# times the labels of a class, ours are of one length; `temperature` is of another rule, and `window` only counts
OTHER = {"ema", "warmup_steps", "blend_temperature", "temperature"}
OTHER_OF = {"daso_published": OTHER, "usadtm_published": {*OTHER, "queue", "window"}}


def settings(name: str, corpus: str) -> Experiment:
    row, place = IMBALANCE[name], FOLDER / f"{corpus}_{IMBALANCE[name].config}"
    return schema.parse(Experiment, schema.override(schema.load_yaml(place.read_text(), "row"), row.overrides), "row")


@pytest.mark.parametrize("corpus", CORPORA)
@pytest.mark.parametrize("name", OFFICIAL)
def test_a_published_row_has_the_official_values(name: str, corpus: str) -> None:
    found, official = settings(name, corpus), OFFICIAL[name]
    values = found.method.model_dump()
    assert {key: values[key] for key in official if key not in OTHER} == {
        key: value for key, value in official.items() if key not in OTHER
    }
    assert values.keys() - official.keys() <= OTHER_OF[name]
    assert found.labels is not None and found.labels.ratio == 2
    assert values["ema"] == 0.99
    steps = found.training.epochs * (found.training.epoch_steps or 0)
    share = (values["warmup_steps"] / steps) / (official["warmup_steps"] / OFFICIAL_STEPS)
    assert 0.5 < share < 2, "the warm-up takes about the same share of the steps"


def test_t_dist_is_that_of_the_split() -> None:
    assert BLENDED == {"same": "method.blend_temperature=1.5"} and OTHERWISE == "method.blend_temperature=0.3"
