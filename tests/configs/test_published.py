"""The configurations of VoxCeleb2 have the official values, key by key, and their headers say where they differ.

The official values are those of the configurations of the public code (theolepage/sslsv at 9a9bf49) with the defaults
of that code, and of the SSPS paper where it says more (``PAPER``). They were read there and written down here in our
keys. A key that is new has to be added here, with its official value or as one without a counterpart.
"""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch

from rayssl.experiment.config import Experiment
from rayssl.schema import parse
from rayssl.training.schedules import learning_rate
from tests.configs.test_configs import FOLDER, TREES

Values = dict[str, Any]

# sslsv/datasets/DataAugmentation.py, Dataset.py: strategy "both"; two frames of 2 s, one of 4 s for SSPS
VIEWS: Values = {
    "views.segment_s": 2.0,
    "views.reference_s": 4.0,
    "views.disjoint": False,
    "views.distort.reverb.p": 1.0,
    "views.distort.noise.p": 1.0,
    "views.distort.noise.kinds": ["noise", "speech", "music"],
    "views.distort.noise.snr_db_of.noise": [0, 15],
    "views.distort.noise.snr_db_of.speech": [13, 20],
    "views.distort.noise.snr_db_of.music": [5, 15],
    "views.distort.gain.p": 0.0,
}
# the same with frame_length 64000 and strategy "all": nothing, a room, noise, or both, each as often
VIEWS_OF_DINO = VIEWS | {"views.segment_s": 4.0, "views.distort.reverb.p": 0.5, "views.distort.noise.p": 0.5}
# sslsv/encoders/_BaseEncoder.py: torchaudio's MelSpectrogram without bounds, InstanceNorm1d; and ECAPATDNN.py
ENCODER: Values = {
    "encoder.frontend.name": "logmel",
    "encoder.frontend.n_mels": 40,
    "encoder.frontend.win_ms": 25.0,
    "encoder.frontend.hop_ms": 10.0,
    "encoder.frontend.n_fft": 512,
    "encoder.frontend.f_min": 0.0,
    "encoder.frontend.f_max": 8000.0,
    "encoder.frontend.window": "hamming",
    "encoder.frontend.normalise": "mean_variance",
    "encoder.masks.p": 0.0,
    "encoder.backbone.name": "ecapa",
    "encoder.backbone.channels": 1024,
    "encoder.backbone.scale": 8,
    "encoder.backbone.mfa_channels": 3072,
    "encoder.backbone.attention_channels": 128,
    "encoder.backbone.se_channels": 128,
    "encoder.backbone.embedding_dim": 512,
    "encoder.backbone.variant": "speechbrain",
    "encoder.beside": None,
    "encoder.start_from": None,
}
# mel_n_mels: 80, mel_win_fn: 'hann'
ENCODER_OF_DINO = ENCODER | {"encoder.frontend.n_mels": 80, "encoder.frontend.window": "hann"}
# sslsv/trainer/Trainer.py: Adam, -5 % every 5 epochs; no mixed precision; SyncBatchNorm
TRAINING: Values = {
    "training.epochs": 100,
    "training.epoch_steps": 0,
    "training.batch": 256,
    "training.accumulate": 1,
    "training.precision": "fp32",
    "training.sync_batchnorm": True,
    "training.optimiser.name": "adam",
    "training.optimiser.lr": 0.001,
    "training.optimiser.weight_decay": 0.0,
    "training.optimiser.clip_norm": None,
    "training.optimiser.clip_each": None,
    "training.optimiser.schedule.name": "step",
    "training.optimiser.schedule.factor": 0.95,
    "training.optimiser.schedule.every_epochs": 5,
    "training.optimiser.schedule.warmup_epochs": 0.0,
}
# 9a9bf49 names no schedule for DINO; the paper: 10 epochs of warm-up, a cosine to 1e-5
PAPER: Values = {
    "training.optimiser.schedule.name": "cosine",
    "training.optimiser.schedule.warmup_epochs": 10,
    "training.optimiser.schedule.final_lr": 1e-5,
}
# momentum in Trainer.py, clip_grad in DINO.py
TRAINING_OF_DINO = {
    **{key: value for key, value in TRAINING.items() if "schedule" not in key},
    **PAPER,
    "training.batch": 128,
    "training.optimiser.name": "sgd",
    "training.optimiser.lr": 0.2,
    "training.optimiser.momentum": 0.9,
    "training.optimiser.weight_decay": 5e-5,
    "training.optimiser.clip_each": 3.0,
}
# sslsv/methods: enable_projector: false, or nn.Linear with BatchNorm1d and ReLU between; a pass for each segment
NO_PROJECTOR: Values = {"projector.sizes": []}
PROJECTOR: Values = {
    "projector.sizes": [2048, 2048, 512],
    "projector.batch_norm": True,
    "projector.last_bias": True,
    "one_pass": False,
}
SIMCLR: Values = {"name": "simclr", "temperature": 0.03, "one_pass": False} | NO_PROJECTOR
MOCO = NO_PROJECTOR | {
    "name": "moco",
    "temperature": 0.03,
    "queue": 32768,
    "momentum": 0.999,
    "symmetric": True,
    "shuffle": True,
    "enqueue": "recalled",
    "negatives": "all",
    "key_statistics": "batch",
}
SWAV = PROJECTOR | {
    "name": "swav",
    "prototypes": 6000,
    "freeze_epochs": 1,
    "temperature": 0.1,
    "epsilon": 0.05,
    "iterations": 3,
    "queue": 3840,
    "queue_start_epoch": 15,
}
VICREG = PROJECTOR | {
    "name": "vicreg",
    "invariance": 1.0,
    "variance": 1.0,
    "variance_over": "sum",
    "covariance": 0.04,
}
DINO: Values = {
    "name": "dino",
    "locals": 4,
    "local_s": 2.0,
    "head.hidden": [2048, 2048],
    "head.bottleneck": 256,
    "head.prototypes": 65536,
    "head.batch_norm": True,
    "student_temperature": 0.1,
    "teacher_temperature": 0.04,
    "teacher_momentum": 0.996,
    "centre_momentum": 0.9,
    "freeze_epochs": 1,
    "store": "output",
    "evaluate": "teacher",
}
# sslsv/methods/_SSPS: sampling 'kmeans-repr', 10 iterations of plain k-means, the other keys as the paper's K and M
SSPS: Values = {
    "name": "ssps",
    "start_from": None,
    "references": "rolling",
    "sampling": "cluster",
    "clusters": 25000,
    "merged_from": 0,
    "neighbours": 1,
    "queue": 25000,
    "skip_empty": False,
    "whiten": False,
    "iterations": 10,
    "kmeans": "exact",
    "warm_start": False,
}


def under(prefix: str, values: Values) -> Values:
    return {f"{prefix}.{key}": value for key, value in values.items()}


def ssps(start: int, over: Values) -> Values:
    return under("method", SSPS | {"start_epoch": start} | under("over", over))


COMMON = VIEWS | ENCODER | TRAINING
OF_DINO = VIEWS_OF_DINO | ENCODER_OF_DINO | TRAINING_OF_DINO
OFFICIAL: dict[str, Values] = {
    "voxceleb2_simclr": COMMON | under("method", SIMCLR),
    "voxceleb2_ssps_simclr": COMMON | {"training.epochs": 120} | ssps(100, SIMCLR),
    "voxceleb2_moco": COMMON | {"training.sync_batchnorm": False} | under("method", MOCO),
    "voxceleb2_swav": COMMON | under("method", SWAV),
    "voxceleb2_vicreg": COMMON | under("method", VICREG),
    "voxceleb2_dino": OF_DINO | under("method", {key: value for key, value in DINO.items() if key != "store"}),
    "voxceleb2_ssps_dino": OF_DINO | ssps(80, DINO),
}
# What the public code has no choice of, or what the chosen values of other keys leave without an effect
NO_COUNTERPART = re.compile(
    r"views\.(weak|strong|night)\..*"  # the recipe of these methods is distort
    r"|views\.distort\.noise\.(snr_db|corpus|corpora\..*|clips|clip_s)"
    r"|views\.distort\.reverb\.(corpus|rooms|rt60_s|length_s)|views\.distort\.gain\.db"
    r"|encoder\.masks\..*|method\.(over\.)?projector\.(batch_norm|last_bias)"
    r"|method\.store"  # without SSPS nothing is stored
    r"|training\.(compile|tf32|checkpoints|validate|log_every|verify_every|trackers)(\..*)?"
    r"|training\.optimiser\.(momentum|trust)|training\.optimiser\.schedule\.(factor|every_epochs|final_lr)"
)


def leaves(tree: Any, path: str = "") -> Values:
    """The values of a configuration by dotted key."""
    if not isinstance(tree, dict) or not tree:
        return {path: tree}
    return {
        key: value
        for name, part in tree.items()
        for key, value in leaves(part, f"{path}.{name}" if path else name).items()
    }


def resolved(name: str) -> Values:
    """All values of the parts of an experiment that decide what is learnt."""
    whole = parse(Experiment, TREES[f"{name}.yaml"], name).model_dump(mode="json")
    return leaves({part: whole[part] for part in ("views", "encoder", "method", "training")})


def differing(name: str) -> list[str]:
    found = resolved(name)
    return [key for key, value in OFFICIAL[name].items() if found[key] != value]


def header(name: str) -> str:
    lines = (FOLDER / f"{name}.yaml").read_text().splitlines()
    return "\n".join(line for line in lines if line.startswith("#"))


def test_each_configuration_of_voxceleb2_is_here() -> None:
    of_others = {"voxceleb2_sdpn.yaml"}  # 3D-Speaker's; its header says what is other there
    ours = {name for name in TREES if name.startswith("voxceleb2_")} - of_others
    assert {f"{name}.yaml" for name in OFFICIAL} == ours


@pytest.mark.parametrize("name", OFFICIAL)
def test_every_key_has_its_official_value_or_the_header_says_so(name: str) -> None:
    """ "Published settings" stands in the header if and only if no key differs."""
    text = header(name)
    said = re.findall(r"^# Differs: (\S+)", text, re.MULTILINE)
    assert differing(name) == said
    assert bool(re.search(r"^# Published settings", text, re.MULTILINE)) == (not said)
    assert re.search(r"theolepage/sslsv at 9a9bf49", text.replace("\n# ", " "))


@pytest.mark.parametrize("name", OFFICIAL)
def test_no_key_is_left_out(name: str) -> None:
    unknown = [key for key in resolved(name) if key not in OFFICIAL[name] and not NO_COUNTERPART.fullmatch(key)]
    assert unknown == []


def test_a_difference_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(OFFICIAL, "voxceleb2_moco", OFFICIAL["voxceleb2_moco"] | {"method.queue": 65536})
    assert differing("voxceleb2_moco") == ["method.queue"]


def test_the_rate_goes_on_falling_under_ssps() -> None:
    """SSPS over SimCLR begins at the rate that 100 epochs have left, 1e-3 x 0.95 ** 20."""
    settings = parse(Experiment, TREES["voxceleb2_ssps_simclr.yaml"], "ssps").training
    rates = [
        learning_rate(settings.optimiser.schedule, settings.optimiser.lr, step=epoch, steps_per_epoch=1, epochs=120)
        for epoch in (0, 99, 100, 119)
    ]
    assert rates == pytest.approx([1e-3, 1e-3 * 0.95**19, 1e-3 * 0.95**20, 1e-3 * 0.95**23])


def test_the_encoder_has_the_official_size() -> None:
    config = parse(Experiment, TREES["voxceleb2_simclr.yaml"], "simclr").encoder
    with torch.device("meta"):
        network = config.backbone.build(config.frontend)
    assert sum(weight.numel() for weight in network.parameters()) == 22_529_152


@pytest.mark.parametrize("name", OFFICIAL)
def test_noises_and_rooms_are_those_that_a_preparation_makes(name: str) -> None:
    made = {key: corpus["out"] for key, corpus in TREES["voxceleb_noises_prepare.yaml"]["corpora"].items()}
    distort = parse(Experiment, TREES[f"{name}.yaml"], name).views.distort
    assert {**distort.noise.corpora, "rooms": distort.reverb.corpus} == made
