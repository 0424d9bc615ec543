"""Checkpoints: written whole or not at all, read back exactly, and what is said of one that cannot be used."""

from __future__ import annotations

import json
import os
import pickle
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from rayssl import storage
from rayssl.errors import CheckpointError, UserError
from rayssl.memory.pieces import Piece
from rayssl.training import checkpoint, pieces
from rayssl.training.checkpoint import CheckpointConfig, Meta
from rayssl.training.pieces import Records

META = Meta(step=7, epoch=1, epoch_step=3, architecture="tiny", metrics={"loss": 0.1 + 0.2})


def state() -> dict[str, Any]:
    model = nn.Linear(3, 2)
    optimiser = torch.optim.Adam(model.parameters())
    model(torch.randn(4, 3)).sum().backward()
    optimiser.step()
    return {"method": model.state_dict(), "optimiser": optimiser.state_dict(), "rng": [torch.get_rng_state()]}


def parts() -> list[Piece]:
    rows = np.random.default_rng(0).normal(size=(5, 4))
    return [
        Piece("index", 0, 0, 0, {"ids": np.arange(5), "v": np.array(3)}),
        Piece("references", 0, 0, 3, {"rows": rows[:3].astype(np.float16), "filled": rows[:3, 0] > 0}),
        Piece("references", 1, 3, 5, {"rows": rows[3:].astype(np.float16), "filled": rows[3:, 0] > 0}),
    ]


def memory(folder: str) -> Records:
    return pieces.write(folder, parts())


def whole(loaded: checkpoint.Loaded) -> list[dict[str, np.ndarray]]:
    """What was written by `memory`, read back."""
    index = pieces.read_index(loaded.uri, loaded.memory)
    read = pieces.reader(loaded.uri, loaded.memory)
    return [index, *(piece.arrays for piece in read("references", 0, 5))]


def fill(run: Path, *metas: Meta) -> None:
    for meta in metas:
        checkpoint.save(str(run), meta, {}, None)


def end(epoch: int, loss: float = 1.0, **metrics: float) -> Meta:
    return Meta(10 * epoch, epoch, 0, "tiny", {"loss": loss, **metrics})


def one_line(error: BaseException) -> str:
    assert isinstance(error, UserError) and "\n" not in str(error)
    return str(error)


@pytest.mark.parametrize("kept", [memory, None])
def test_round_trip(tmp_path: Path, kept: Any) -> None:
    given = state()
    uri = checkpoint.save(str(tmp_path), META, given, kept)
    assert uri == checkpoint.locate(str(tmp_path), "last") and checkpoint.steps(str(tmp_path)) == [7]
    loaded = checkpoint.load(uri)
    assert replace(loaded.meta, files={}) == META and loaded.uri == uri
    torch.testing.assert_close(loaded.state, given, rtol=0, atol=0)
    assert bool(loaded.memory) == (kept is not None)
    if kept is not None:
        for found, piece in zip(whole(loaded), parts(), strict=True):
            assert found.keys() == piece.arrays.keys()
            for name, array in piece.arrays.items():
                assert found[name].dtype == array.dtype
                np.testing.assert_array_equal(found[name], array)
        read = pieces.reader(uri, loaded.memory)
        spans = [[(p.first, p.end) for p in read("references", *asked)] for asked in ((0, 3), (2, 4), (3, 9))]
        assert spans == [[(0, 3)], [(0, 3), (3, 5)], [(3, 5)]]


def test_a_crash_before_the_last_file_leaves_no_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path, replace(META, step=4))
    write, stream = storage.write_bytes, storage.write_stream
    for crash_at in ("state.pt", "memory-index.npz", "memory-references-0000000001.npz", "meta.json"):

        def crash(uri: str, data: bytes, at: str = crash_at) -> None:
            if uri.endswith(at):
                raise KeyboardInterrupt
            write(uri, data)

        def crash_in_stream(uri: str, make: Any, at: str = crash_at) -> None:
            if uri.endswith(at):
                raise KeyboardInterrupt
            stream(uri, make)

        with monkeypatch.context() as patch:
            patch.setattr(storage, "write_bytes", crash)
            patch.setattr(storage, "write_stream", crash_in_stream)
            with pytest.raises(KeyboardInterrupt):
                checkpoint.save(str(tmp_path), META, state(), memory)
        assert checkpoint.steps(str(tmp_path)) == [4]
        assert checkpoint.locate(str(tmp_path), "last").endswith("step-0000000004")
    checkpoint.save(str(tmp_path), META, state(), memory)  # over what the crashes left
    assert checkpoint.load(checkpoint.locate(str(tmp_path), "last")).meta.step == 7


@pytest.mark.parametrize("file", ["state.pt", "memory-index.npz", "memory-references-0000000001.npz"])
@pytest.mark.parametrize("damage", ["flip", "truncate", "remove"])
@pytest.mark.parametrize("mapped", [False, True])
def test_a_damaged_file_is_named(tmp_path: Path, file: str, damage: str, mapped: bool) -> None:
    uri = checkpoint.save(str(tmp_path), META, state(), memory)
    path = Path(uri) / file
    data = bytearray(path.read_bytes())
    if damage == "remove":
        path.unlink()
    else:
        data[len(data) // 2] ^= 1
        path.write_bytes(data if damage == "flip" else data[:-1])
    with pytest.raises(UserError) as caught:
        whole(checkpoint.load(uri, mapped=mapped))
    assert f"{uri}/{file}" in one_line(caught.value)


def test_mapped_tensors_are_those_of_the_file_and_are_not_written_back(tmp_path: Path) -> None:
    uri = checkpoint.save(str(tmp_path), META, {"method": {"w": torch.arange(4.0)}}, None)
    weights = checkpoint.load(uri, mapped=True).state["method"]["w"]
    assert weights.tolist() == [0, 1, 2, 3]
    weights.zero_()
    assert checkpoint.load(uri).state["method"]["w"].tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("text", ["", "[]", '{"step": 1}', '{"a": 1}'])
def test_damaged_meta_is_named(tmp_path: Path, text: str) -> None:
    uri = checkpoint.save(str(tmp_path), META, state(), None)
    (Path(uri) / "meta.json").write_text(text)
    with pytest.raises(CheckpointError) as caught:
        checkpoint.load(uri)
    assert f"{uri}/meta.json" in one_line(caught.value)


def test_every_flipped_bit_of_the_meta_data_is_noticed(tmp_path: Path) -> None:
    """One in the cursor or in a record would otherwise be believed."""
    uri = checkpoint.save(str(tmp_path), META, state(), memory)
    path = Path(uri) / "meta.json"
    data = path.read_bytes()
    expected, unnoticed = checkpoint.read_meta(uri), 0
    for at in range(len(data)):
        changed = bytearray(data)
        changed[at] ^= 1 << (at % 7)
        path.write_bytes(changed)
        with suppress(UserError):
            assert checkpoint.read_meta(uri) == expected  # it was white space, or the name of the hash
            unnoticed += 1
    assert unnoticed < len(data) / 3
    path.write_bytes(data)
    assert checkpoint.read_meta(uri).step == META.step


def test_pruning_removes_what_killed_saves_left(tmp_path: Path) -> None:
    fill(tmp_path, end(1), end(2))
    checkpoints = tmp_path / "checkpoints"
    half = checkpoints / "step-0000000015"
    half.mkdir()
    for left in (half / ".state.pt.0123456789ab.part", checkpoints / "step-0000000020" / ".meta.json.0123.part"):
        left.write_bytes(b"half")
    checkpoint.prune(str(tmp_path), CheckpointConfig(keep=2))
    assert not half.exists() and not list(tmp_path.rglob("*.part"))
    assert checkpoint.steps(str(tmp_path)) == [10, 20]


def test_meta_without_a_state_is_named(tmp_path: Path) -> None:
    uri = checkpoint.save(str(tmp_path), META, {}, None)
    body = json.loads((Path(uri) / "meta.json").read_text().replace("state.pt", "state.bin"))
    del body["sha256"]  # as an earlier rayssl wrote it
    (Path(uri) / "meta.json").write_text(json.dumps(body))
    (Path(uri) / "state.pt").rename(Path(uri) / "state.bin")
    with pytest.raises(CheckpointError, match=r"does not list state\.pt"):
        checkpoint.load(uri)


class Code:
    """Unpickles to a call."""

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, (os.environ["RAYSSL_TEST_TRACE"],)


def test_a_pickle_with_code_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even one whose hash is right: the folder of a run may come from anybody."""
    trace = tmp_path / "ran"
    monkeypatch.setenv("RAYSSL_TEST_TRACE", str(trace))
    uri = checkpoint.save(str(tmp_path), META, {"method": Code()}, None)
    with pytest.raises(CheckpointError) as caught:
        checkpoint.load(uri)
    assert f"{uri}/state.pt: not written by rayssl" in one_line(caught.value)
    assert not trace.exists()


def test_a_memory_with_objects_is_refused(tmp_path: Path) -> None:
    objects = [Piece("index", 0, 0, 0, {"ids": np.array([{}], dtype=object)})]
    uri = checkpoint.save(str(tmp_path), META, {}, lambda folder: pieces.write(folder, objects))
    with pytest.raises(UserError) as caught:
        whole(checkpoint.load(uri))
    assert f"{uri}/memory-index.npz: not written by rayssl" in one_line(caught.value)


def test_a_memory_in_one_file_is_named_but_the_weights_are_read(tmp_path: Path) -> None:
    given = state()
    uri = checkpoint.save(str(tmp_path), META, given, lambda folder: {"memory.npz": {"bytes": 3, "sha256": "-"}})
    loaded = checkpoint.load(uri)
    torch.testing.assert_close(loaded.state, given, rtol=0, atol=0)
    with pytest.raises(CheckpointError, match="to begin with these weights"):
        _ = loaded.memory


def test_state_is_not_a_plain_pickle(tmp_path: Path) -> None:
    uri = checkpoint.save(str(tmp_path), META, state(), None)
    with pytest.raises(pickle.UnpicklingError):
        pickle.loads((Path(uri) / "state.pt").read_bytes())


@pytest.mark.parametrize(
    ("config", "kept"),
    [
        (CheckpointConfig(keep=1, best=None), [60]),
        (CheckpointConfig(keep=2), [30, 55, 60]),
        (CheckpointConfig(keep=1, best="eer"), [20, 60]),
        (CheckpointConfig(keep=3, best=None, milestones=[1, 4]), [10, 40, 50, 55, 60]),
        (CheckpointConfig(keep=9), [10, 20, 30, 40, 45, 50, 55, 60]),
        (CheckpointConfig(keep=1, best="absent", milestones=[99]), [60]),
    ],
)
def test_prune_keeps_last_best_and_milestones(tmp_path: Path, config: CheckpointConfig, kept: list[int]) -> None:
    fill(tmp_path, end(1, 3.0), end(2, 2.0, eer=0.1), end(3, 1.0), end(4, 2.0), end(5, 2.0, eer=0.2), end(6, 2.0))
    # in mid-epoch, with the figures of the epoch before: neither is ever the best
    fill(tmp_path, Meta(45, 4, 5, "tiny", {"loss": 0.5}), Meta(55, 5, 5, "tiny", {"loss": 0.5}))
    checkpoint.prune(str(tmp_path), config)
    assert checkpoint.steps(str(tmp_path)) == kept
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == [f"step-{step:010d}" for step in kept]


def test_prune_clears_what_an_interrupted_save_left(tmp_path: Path) -> None:
    fill(tmp_path, end(1, 3.0), end(2, 2.0))
    folder = tmp_path / "checkpoints"
    for name in ("step-0000000015", "notes"):
        (folder / name).mkdir()
        (folder / name / "memory-positives-0003.npz").write_bytes(b"half")
    checkpoint.prune(str(tmp_path), CheckpointConfig(keep=5))
    assert sorted(path.name for path in folder.iterdir()) == ["notes", "step-0000000010", "step-0000000020"]


def test_locate(tmp_path: Path) -> None:
    fill(tmp_path, end(1, 3.0), end(2, 1.0), Meta(25, 2, 5, "tiny", {"loss": 0.1}))
    found = {
        which: int(checkpoint.locate(str(tmp_path), which)[-10:]) for which in ("last", "best", "epoch-1", "step-25")
    }
    assert found == {"last": 25, "best": 20, "epoch-1": 10, "step-25": 25}


@pytest.mark.parametrize("which", ["epoch-3", "step-11", "epoch-x", "newest", "step-"])
def test_locate_says_what_there_is(tmp_path: Path, which: str) -> None:
    fill(tmp_path, end(1), end(2))
    with pytest.raises(CheckpointError) as caught:
        checkpoint.locate(str(tmp_path), which)
    expected = f"{tmp_path}: no checkpoint '{which}'; there are step-10, step-20 (also: last, best, epoch-N)"
    assert str(caught.value) == expected


def test_locate_in_an_empty_run(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError) as caught:
        checkpoint.locate(str(tmp_path / "none"), "last")
    assert one_line(caught.value).startswith(f"{tmp_path}/none: no checkpoint there; train first")


@pytest.mark.parametrize(
    ("there", "problem"),
    [
        (nn.Linear(3, 4), "'bias' is [4] there and [2] here"),
        (nn.Linear(3, 2, bias=False), "it lacks 'bias'"),
        (nn.Sequential(nn.Linear(3, 2)), "it has '0.bias', which this model lacks"),
    ],
)
def test_another_architecture(tmp_path: Path, there: nn.Module, problem: str) -> None:
    uri = checkpoint.save(str(tmp_path), replace(META, architecture="large"), {"method": there.state_dict()}, None)
    here = nn.Linear(3, 2)
    before = here.weight.detach().clone()
    with pytest.raises(CheckpointError) as caught:
        checkpoint.load_module(here, there.state_dict(), uri, "small")
    text = one_line(caught.value)
    assert text.startswith(f"{uri}: the checkpoint is of another architecture, large: {problem}; ")
    assert "this run's is small" in text
    assert torch.equal(here.weight, before)


def test_taken_over(tmp_path: Path) -> None:
    """Another run's last checkpoint, with its memory, in place of the own ones from there on."""
    donor, own = tmp_path / "donor", tmp_path / "own"
    checkpoint.save(str(donor), end(1), {}, None)
    made = checkpoint.save(str(donor), replace(META, step=20), state(), memory)
    fill(own, end(1), end(2, loss=5.0), end(3))
    uri = checkpoint.take_over(str(donor), str(own))
    assert uri == checkpoint.locate(str(own), "last") and checkpoint.steps(str(own)) == [10, 20]
    mine, theirs = checkpoint.load(uri), checkpoint.load(made)
    torch.testing.assert_close(mine.state, theirs.state, rtol=0, atol=0)
    assert mine.meta == theirs.meta
    for got, expected in zip(whole(mine), whole(theirs), strict=True):
        np.testing.assert_equal(got, expected)
    assert checkpoint.take_over(str(donor), str(own)) == uri


def test_a_damaged_one_is_not_taken_over(tmp_path: Path) -> None:
    donor, own = tmp_path / "donor", tmp_path / "own"
    made = checkpoint.save(str(donor), end(2), state(), memory)
    fill(own, end(2, loss=5.0))
    (Path(made) / "state.pt").write_bytes(b"cut")
    with pytest.raises(CheckpointError, match=r"donor/.*state\.pt: damaged"):
        checkpoint.take_over(str(donor), str(own))
    assert checkpoint.read_meta(checkpoint.locate(str(own), "last")).metrics["loss"] == 5.0
    with pytest.raises(CheckpointError, match="nobody: no checkpoint there"):
        checkpoint.take_over(str(tmp_path / "nobody"), str(own))
