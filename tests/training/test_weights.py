"""``encoder.start_from``: weights of runs, published folders and other toolkits, for every method."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

from rayssl.errors import CheckpointError, ConfigError, UserError
from rayssl.experiment.build import build_method, build_run_encoder, check_start, start_encoder
from rayssl.experiment.job import resolve
from rayssl.inference.publishing import publish
from rayssl.models.encoder import Encoder
from rayssl.training import weights
from tests.models import wespeaker_ecapa as wespeaker
from tests.runs import (
    DASO_METHOD,
    DINO_METHOD,
    FEW,
    MOCO_METHOD,
    PSEUDO_METHOD,
    SDPN_METHOD,
    SPLITS,
    SWAV_METHOD,
    USADTM_METHOD,
    VICREG_METHOD,
    Quiet,
    build,
    experiment,
    tone,
    write_corpus,
    write_run,
)  # fmt: skip

BANDS = 24
OVER = {"name": "ssps", "clusters": 4, "start_epoch": 1}
METHODS: dict[str, dict[str, Any]] = {
    "simclr": {"name": "simclr"},
    "moco": MOCO_METHOD,
    "dino": DINO_METHOD,
    "swav": SWAV_METHOD,
    "vicreg": VICREG_METHOD,
    "sdpn": SDPN_METHOD,
    "supervised": {"name": "supervised"},
    "pseudo_speakers": PSEUDO_METHOD,
    "ssps-dino": {**OVER, "over": DINO_METHOD},
    "daso": DASO_METHOD,
    "usadtm": USADTM_METHOD,
    "clar": {"name": "clar"},
    "fixmatch": {"name": "fixmatch"},
    "classifier": {"name": "classifier"},
}
LABELLED = ("daso", "usadtm", "fixmatch", "classifier")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("start")
    write_corpus(folder / "corpus", splits=SPLITS)
    write_run(experiment(folder / "first", folder / "corpus"))
    publish(str(folder / "first"), str(folder / "published"))
    return folder


def wanted(home: Path) -> dict[str, torch.Tensor]:
    return weights.of_run(str(home / "published")).state


@pytest.mark.parametrize("name", METHODS)
def test_every_method_starts_with_them(home: Path, tmp_path: Path, name: str) -> None:
    """All encoders of a method, also averages and teachers, which are copies of the first."""
    more = FEW if name in LABELLED else ()
    settings = experiment(
        tmp_path / "run", home / "corpus", f"encoder.start_from={home}/published", *more, method=METHODS[name]
    )
    method = build(settings).state.method
    encoders = [part for part in method.modules() if isinstance(part, Encoder)]
    assert encoders
    for encoder in encoders:
        assert all(torch.equal(value, wanted(home)[key]) for key, value in encoder.state_dict().items())
    drawn = build_method(resolve(settings)).state_dict()  # all else is drawn as without them
    ours = {
        f"{key}.{part}"
        for key, module in method.named_modules()
        if isinstance(module, Encoder)
        for part in wanted(home)
    }
    others = [key for key in drawn if key not in ours]
    assert all(torch.equal(drawn[key], method.state_dict()[key]) for key in others)


@pytest.mark.parametrize("where", ["first", "first/checkpoints/step-0000000004", "published"])
def test_places_of_our_own(home: Path, tmp_path: Path, where: str) -> None:
    settings = experiment(tmp_path / "run", home / "corpus", f"encoder.start_from={home}/{where}")
    encoder = build_run_encoder(settings, 16000)
    uri = start_encoder(resolve(settings), encoder)
    assert uri is not None and uri.startswith(f"{home}/{where}")
    assert all(torch.equal(value, wanted(home)[key]) for key, value in encoder.state_dict().items())


def test_a_run_that_resumes_does_not_start_again(home: Path, tmp_path: Path) -> None:
    settings = experiment(tmp_path / "run", home / "corpus", f"encoder.start_from={home}/published")
    write_run(settings, step=3)
    assert start_encoder(resolve(settings), build_run_encoder(settings, 16000)) is None


def foreign(library: str, frontend: str, *more: str) -> list[str]:
    backbone = f"{{name: ecapa, channels: 16, embedding_dim: 12, mfa_channels: 24, variant: {library}}}"
    return [
        f"encoder.frontend={{name: fbank, style: {frontend}, n_mels: {BANDS}}}",
        f"encoder.backbone={backbone}",
        *more,
    ]


def embeddings(home: Path, tmp_path: Path, wave: torch.Tensor, place: Path, *how: str) -> torch.Tensor:
    settings = experiment(tmp_path / "run", home / "corpus", *how, f"encoder.start_from={place}")
    check_start(resolve(settings))
    return build(settings).state.method.encoder.eval()(wave)


def samples() -> torch.Tensor:
    return torch.stack([torch.from_numpy(tone(k, k, 16000)).float() / 32768 for k in range(3)])


def close(found: torch.Tensor, expected: torch.Tensor) -> None:
    """To 1e-5 of the scale of an embedding, from samples to embeddings."""
    scale = expected.square().mean().sqrt()
    assert scale > 0.1 and (expected - expected.mean(dim=0)).abs().max() > 0.01 * scale
    torch.testing.assert_close(found / scale, expected / scale, rtol=0, atol=1e-5)


def test_speechbrain_from_samples_to_embeddings(home: Path, tmp_path: Path) -> None:
    net = pytest.importorskip("speechbrain.lobes.models.ECAPA_TDNN").ECAPA_TDNN
    features = pytest.importorskip("speechbrain.lobes.features").Fbank(n_mels=BANDS)
    norm = pytest.importorskip("speechbrain.processing.features").InputNormalization(
        norm_type="sentence", std_norm=False
    )
    torch.manual_seed(4)
    theirs = net(BANDS, lin_neurons=12, channels=[16] * 4 + [24]).eval()
    (tmp_path / "spkrec").mkdir()
    torch.save(theirs.state_dict(), tmp_path / "spkrec/embedding_model.ckpt")
    wave = samples()
    expected = theirs(norm(features(wave), torch.ones(len(wave))))[:, 0].detach()
    how = foreign("speechbrain", "speechbrain")
    close(embeddings(home, tmp_path, wave, tmp_path / "spkrec", *how), expected)


def test_wespeaker_from_samples_to_embeddings(home: Path, tmp_path: Path) -> None:
    from torchaudio.compliance import kaldi

    state = wespeaker.weights(bands=BANDS)
    torch.save(state, tmp_path / "avg_model.pt")
    wave, rows = samples(), []
    for row in wave:
        how: dict[str, Any] = {"num_mel_bins": BANDS, "dither": 0.0, "window_type": "hamming", "use_energy": False}
        found = kaldi.fbank(row[None] * 32768, sample_frequency=16000, **how)
        rows.append((found - found.mean(dim=0)).T)
    expected = wespeaker.embedding(state, torch.stack(rows))
    for place in (tmp_path, tmp_path / "avg_model.pt"):
        close(embeddings(home, tmp_path, wave, place, *foreign("wespeaker", "kaldi")), expected)


class Code:
    def __reduce__(self) -> Any:
        return os.system, ("touch executed",)


def test_no_code_is_executed(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "avg_model.pt").write_bytes(pickle.dumps(Code()))
    torch.save({"weights": Code()}, tmp_path / "other.ckpt")
    for name in ("avg_model.pt", "other.ckpt"):
        with pytest.raises(CheckpointError, match=r"no weights that torch reads without executing code"):
            weights.read(str(tmp_path / name))
    assert not (tmp_path / "executed").exists()


def test_what_does_not_fit(home: Path, tmp_path: Path) -> None:
    """Before any worker starts, in one line with the key, both shapes, or the settings to set."""
    torch.save(wespeaker.weights(bands=BANDS), tmp_path / "avg_model.pt")
    torch.save({"a": torch.zeros(2)}, tmp_path / "odd.pt")
    torch.save([1, 2], tmp_path / "list.pt")
    (tmp_path / "empty").mkdir()
    own, other = f"{home}/first", f"{tmp_path}/avg_model.pt"
    fitting = foreign("wespeaker", "kaldi")
    for source, how, told in (
        (own, ["encoder.backbone.embedding_dim=8"], "'backbone.project.bias' is [16] there and [8] here"),
        (own, ["encoder.backbone.embedding_dim=8"], f"encoder.start_from: {home}/first/checkpoints/step-0000000004: "),
        (other, [*fitting, "encoder.backbone.mfa_channels=48"], "'backbone.mfa.conv.bias' is [24] there and [48] here"),
        (other, [*fitting, "encoder.backbone.channels=32"], "wespeaker's ecapa(channels=16, embedding_dim=12, mfa_"),
        (
            other,
            [*fitting, "encoder.backbone.variant=speechbrain"],
            "set encoder.backbone.name=ecapa encoder.backbone.v",
        ),
        (other, foreign("wespeaker", "speechbrain"), "set encoder.frontend.name=fbank encoder.frontend.style=kaldi"),
        (other, [], "set encoder.backbone.name=ecapa encoder.backbone.variant=wespeaker"),
        (f"{tmp_path}/odd.pt", [], "odd.pt: not the weights of ECAPA-TDNN of speechbrain or wespeaker (it has a, ...)"),
        (f"{tmp_path}/list.pt", [], "list.pt: holds no state_dict"),
        (f"{tmp_path}/empty", [], "encoder.start_from: "),
        (f"{tmp_path}/absent", [], "absent: no checkpoint there"),
    ):
        job = resolve(experiment(tmp_path / "run", home / "corpus", *how, f"encoder.start_from={source}"))
        with pytest.raises(UserError) as caught:
            check_start(job)
        text = str(caught.value)
        assert told in text and "encoder.start_from: " in text and "\n" not in text, text


def test_keys_that_exclude_each_other(home: Path, tmp_path: Path) -> None:
    method = {"name": "ssps", "clusters": 4, "start_from": "runs/a"}
    with pytest.raises(ConfigError, match=r"encoder\.start_from and method\.start_from both give"):
        experiment(tmp_path / "run", home / "corpus", "encoder.start_from=runs/b", method=method)
    beside = "encoder.beside={backbone: {name: ecapa}, start_from: runs/b}"
    with pytest.raises(ConfigError, match=r"encoder\.beside\.start_from: both parts start together"):
        experiment(tmp_path / "run", home / "corpus", beside)


def test_the_first_line_says_it(home: Path, tmp_path: Path) -> None:
    said: list[str] = []

    class Heard(Quiet):
        def say(self, line: str) -> None:
            said.append(line)

    from rayssl.experiment.build import build_loop

    job = resolve(experiment(tmp_path / "run", home / "corpus", f"encoder.start_from={home}/published"))
    build_loop(job, Heard(job))
    assert said == [f"beginning with the weights of {home}/published"]
