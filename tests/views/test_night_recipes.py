"""The configuration of night recipes: defaults of what is not given, mistakes that name the key, and their banks."""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rayssl.data import decode, shards
from rayssl.data.mel import MelConfig
from rayssl.errors import ConfigError, CorpusError
from rayssl.schema import parse
from rayssl.views.banks import RecordedBank, recorded, recorded_for_nights
from rayssl.views.modules import build_night_recipes
from rayssl.views.night_recipes import NightAugmentConfig
from rayssl.views.recipes import ViewsConfig

RATE = 16000
MEL = MelConfig(hop_ms=100.0)


def views(**night: Any) -> ViewsConfig:
    return parse(ViewsConfig, {"night": night}, "run.yaml")


def test_defaults() -> None:
    weak, strong = views().night.weak, views().night.strong
    assert {name: part["p"] for name, part in weak.model_dump().items() if part["p"]} == {"pitch": 0.5, "gain": 0.5}
    assert (weak.pitch.most, weak.pitch.per, weak.gain.db) == (0.2, "sequence", (-3.0, 3.0))
    assert all(part["p"] > 0 for part in strong.model_dump().values())
    assert (strong.noise.p, strong.noise.per, strong.noise.snr_db) == (0.8, "sequence", (-10.0, 10.0))
    assert {part["p"] for part in NightAugmentConfig().model_dump().values()} == {0.0}


def test_keys_that_are_not_given_keep_the_recipe_s_defaults_at_every_depth() -> None:
    given = views(strong={"noise": {"snr_db": [0, 5]}, "mask": {"p": 0.1}}, weak={"gain": {"p": 0.0}})
    dumped, default = given.night.model_dump(), views().night.model_dump()
    default["strong"]["noise"]["snr_db"] = (0.0, 5.0)
    default["strong"]["mask"]["p"] = 0.1
    default["weak"]["gain"]["p"] = 0.0
    assert dumped == default
    assert parse(ViewsConfig, given.model_dump(mode="json"), "config.yaml") == given


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"strong": {"nois": {"p": 1}}}, "unknown key 'night.strong.nois'; did you mean 'noise'"),
        ({"strong": {"noise": {"snr": [0, 1]}}}, "unknown key 'night.strong.noise.snr'; did you mean 'snr_db'"),
        ({"string": {}}, "unknown key 'night.string'; did you mean 'strong'"),
        ({"weak": 3}, "'night.weak': expected keys below it, got 3"),
        ({"weak": {"pitch": {"p": 2}}}, "'night.weak.pitch.p'"),
        ({"weak": {"pitch": {"most": 1.0}}}, "'night.weak.pitch.most'"),
        ({"weak": {"pitch": {"per": "night"}}}, "'night.weak.pitch.per'.*'sequence' or 'epoch'"),
        ({"strong": {"noise": {"snr_db": [10, 0]}}}, "night.strong.noise.snr_db.*first bound"),
        ({"strong": {"noise": {"kinds": ["white", "corpus"]}}}, "night.strong.noise.*give 'corpus'"),
        ({"strong": {"noise": {"corpus": "s3://noises/a"}}}, "night.strong.noise.*give 'corpus'"),
        ({"strong": {"noise": {"kinds": ["tv", "tv"]}}}, "names a kind twice"),
        ({"strong": {"range": {"exponent": [0, 1]}}}, "'exponent' must be above 0"),
        ({"strong": {"mask": {"band_most": 1.0}}}, "'night.strong.mask.band_most'"),
    ],
)
def test_mistakes_name_the_key(tree: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        views(**tree)


def write_noises(uri: str, pcms: list[np.ndarray]) -> str:
    columns = {
        "name": [str(row) for row in range(len(pcms))],
        "audio": [decode.encode(pcm, "flac") for pcm in pcms],
        "samples": [len(pcm) for pcm in pcms],
        **{kind: [0] * len(pcms) for kind in shards.KINDS},
    }
    names = {kind: ["a"] for kind in shards.KINDS}
    shards.write_manifest(
        uri, [shards.write_shard(uri, (0,), columns)], format="flac", names=names, rejected=0, settings={}
    )
    return uri


def tone(hertz: float, seconds: float) -> np.ndarray:
    return (np.sin(2 * np.pi * hertz * np.arange(round(seconds * RATE)) / RATE) * 9000).astype(np.int16)


def corpus_views(uri: str, **more: Any) -> ViewsConfig:
    return views(strong={"noise": {"kinds": ["corpus"], "corpus": uri, "clip_s": 5.0, **more}})


def test_the_corpus_is_located(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    located = corpus_views("noises").located()
    assert located.night.strong.noise.corpus == f"{tmp_path}/noises" and located.night.weak.noise.corpus is None
    assert located.located() == located
    assert corpus_views("s3://b/noises").located() == corpus_views("s3://b/noises")


def test_banks_are_powers_of_mean_one_in_the_bands_of_the_recordings(tmp_path: Path) -> None:
    pcms = [tone(200.0, 9.0), np.zeros(900, np.int16), tone(3000.0, 1.3)]
    wanted = recorded_for_nights(corpus_views(write_noises(str(tmp_path), pcms)), MEL, RATE, 5)
    bank = wanted[0].read()
    assert bank.shape == (2, 20, 50) and bank.dtype == np.float32
    np.testing.assert_allclose(bank.mean(axis=(1, 2)), 1.0, rtol=1e-5)
    points = 700.0 * (10.0 ** (np.linspace(0, 2595 * np.log10(1 + 8000 / 700), 22) / 2595) - 1.0)
    near = [int(np.argmin(np.abs(points[1:-1] - hertz))) for hertz in (200.0, 3000.0)]
    assert bank.mean(axis=2).argmax(axis=1).tolist() == near
    assert (bank[1, near[1]] > 1.0).all()  # 1.3 s repeat through all of 5 s


def test_what_is_listed_is_what_the_recipes_ask_for(tmp_path: Path) -> None:
    uri = write_noises(str(tmp_path), [tone(500.0, 6.0)])
    noise = {"p": 0.5, "kinds": ["white", "corpus"], "corpus": uri, "clips": 1, "clip_s": 5.0}
    both, asked = views(weak={"noise": noise}, strong={"noise": noise}), list[RecordedBank]()

    def read(bank: RecordedBank) -> np.ndarray:
        asked.append(bank)
        return bank.read()

    build_night_recipes(both, MEL, RATE, 5, read)
    assert asked == recorded_for_nights(both, MEL, RATE, 5) and len({*asked}) == 2
    assert [bank.key for bank in asked] == ["views.night.weak.noise.corpus", "views.night.strong.noise.corpus"]
    assert recorded(both, RATE, 5) == [] == recorded_for_nights(views(), MEL, RATE, 5)
    assert recorded_for_nights(corpus_views(uri, p=0.0), MEL, RATE, 5) == []


def test_shared_banks_are_copied_and_give_the_same_bits(tmp_path: Path) -> None:
    """Ranks get read-only arrays of the object store, and must not keep them."""
    given, settings = list[np.ndarray](), corpus_views(write_noises(str(tmp_path), [tone(500.0, 6.0)]))

    def shared(bank: RecordedBank) -> np.ndarray:
        given.append(bank.read())
        view = given[-1].view()
        view.flags.writeable = False
        return view

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        recipes = build_night_recipes(settings, MEL, RATE, 5, shared)
    given[0][:] = 7.0
    own = dict(build_night_recipes(settings, MEL, RATE, 5).named_buffers())
    assert own and all(torch.equal(buffer, own[name]) for name, buffer in recipes.named_buffers())


def test_corpora_that_cannot_serve(tmp_path: Path) -> None:
    silent = write_noises(str(tmp_path / "silent"), [np.zeros(500, np.int16)])
    with pytest.raises(ConfigError, match=r"'views\.night\.strong\.noise\.corpus'.*no sound"):
        build_night_recipes(corpus_views(silent), MEL, RATE, 5)
    with pytest.raises(ConfigError, match="16000 Hz, the run's at 8000 Hz"):
        recorded_for_nights(corpus_views(silent), MEL, 8000, 5)[0].read()
    with pytest.raises(CorpusError):
        build_night_recipes(corpus_views(str(tmp_path / "absent")), MEL, RATE, 5)
