"""A folder of embeddings: what is in it, how it resumes after an interruption, and what it refuses. Without Ray."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

import rayssl
from rayssl.cli import main
from rayssl.data import decode, shards
from rayssl.evaluation.embeddings import kept_samples
from rayssl.inference import export as exporting
from rayssl.runs.reading import find
from rayssl.runtime.embedding import files
from rayssl.runtime.embedding.actors import Embedder, EmbeddingTask, decode_shard, over_shards, read_corpus
from tests.runs import experiment, write_corpus, write_run

SIZES = (9, 14, 4)


@pytest.fixture(autouse=True)
def shards_done(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Embeds in this process; lists the shards that were."""
    done: list[int] = []

    def here(job: EmbeddingTask, which: Sequence[int], embedder: type[Embedder], *extra: Any) -> Iterator[bytes]:
        actor = embedder(job, *extra)
        for index in which:
            yield actor.answer(index)
            done.append(index)

    monkeypatch.setattr(files, "over_shards", here)
    return done


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("embed")
    write_corpus(folder / "corpus", SIZES)
    write_run(experiment(folder / "run", folder / "corpus"))
    return folder


def content(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in out.iterdir()}


def embed(folder: Path, out: Path, *more: str) -> int:
    return main(["embed", str(folder / "run"), str(folder / "corpus"), str(out), *more])


def test_files_rows_and_record(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert embed(folder, tmp_path / "out") == 0
    assert sorted(content(tmp_path / "out")) == ["00000.parquet", "00001.parquet", "00002.parquet", "_embeddings.json"]
    table = pq.read_table(tmp_path / "out")  # the record beside the files is passed over
    kinds = [f"{kind}{end}" for kind in ("speaker", "recording", "label") for end in ("", "_name")]
    assert table.column_names == ["name", "id", *kinds, "embedding"]
    assert table["speaker_name"].to_pylist() == [f"s{k % 4}" for k in range(27)]
    assert table["recording_name"][26].as_py() == "r2" and table["label_name"].null_count == 27
    assert str(table.schema.field("embedding").type) == "fixed_size_list<element: float>[16]"
    assert table["id"].to_pylist() == list(range(27)) and table["name"][26].as_py() == "utt026"
    assert table["speaker"].to_pylist() == [k % 4 for k in range(27)]
    record = json.loads((tmp_path / "out/_embeddings.json").read_text())
    assert (record["rows"], record["dim"], record["rate"], record["complete"]) == (27, 16, 16000, True)
    assert (
        record["checkpoint"] == f"{folder}/run/checkpoints/step-0000000004" and record["corpus"] == f"{folder}/corpus"
    )
    printed = capsys.readouterr()
    assert "3 of 3 shards, 27 of 27 utterances, " in printed.err
    assert f"{tmp_path}/out: 27 embeddings [16] of {folder}/corpus by {record['checkpoint']}" in printed.out


@pytest.mark.long
def test_embed_export_and_python_agree(folder: Path, tmp_path: Path) -> None:
    assert embed(folder, tmp_path / "out") == 0
    exporting.export(str(folder / "run"), str(tmp_path / "x.pt2"))
    module = torch.export.load(tmp_path / "x.pt2").module()
    model = rayssl.load(str(folder / "run"), device="cpu")
    manifest = shards.read_manifest(str(folder / "corpus"))
    rows = np.stack(pq.read_table(tmp_path / "out")["embedding"].to_pylist()).astype(np.float32)
    scale = np.sqrt(np.mean(rows**2))
    assert 0.01 < scale < 100 and np.std(rows, axis=0).min() > 1e-3 * scale  # they tell utterances apart
    for shard in manifest.shards:
        for k, audio in enumerate(shards.read_shard(str(folder / "corpus"), shard, ["audio"])["audio"].to_pylist()):
            wave = decode.pcm(audio, "flac")
            (tmp_path / "clip.flac").write_bytes(audio)
            three = [
                model.embed(wave),
                model.embed_file(str(tmp_path / "clip.flac")),
                module(torch.from_numpy(wave)[None].float() / 32768)[0],
            ]
            for found in three:
                np.testing.assert_allclose(found.numpy() / scale, rows[shard.first_id + k] / scale, rtol=0, atol=1e-5)


def test_goes_on_to_identical_files(
    folder: Path, tmp_path: Path, shards_done: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    """Absent, cut short, of another content, or left half-written by a process that was killed."""
    out = tmp_path / "out"
    assert embed(folder, out) == 0
    whole = content(out)
    (out / "00001.parquet").unlink()
    (out / "00002.parquet").write_bytes(whole["00002.parquet"][:-20])
    (out / ".00001.parquet.0123456789ab.part").write_bytes(b"half")
    times = (out / "00000.parquet").stat().st_mtime_ns
    shards_done.clear()
    capsys.readouterr()
    assert embed(folder, out) == 0
    assert shards_done == [1, 2] and (out / "00000.parquet").stat().st_mtime_ns == times
    printed = capsys.readouterr()
    assert "1 of 3 shards were embedded before" in printed.err and "(2 made now in " in printed.out
    assert {name: data for name, data in content(out).items() if not name.startswith(".")} == whole
    (out / "00002.parquet").write_bytes(whole["00000.parquet"])
    shards_done.clear()
    assert embed(folder, out) == 0
    assert shards_done == [2] and content(out)["00002.parquet"] == whole["00002.parquet"]
    shards_done.clear()
    assert embed(folder, out) == 0
    assert shards_done == [] and "(all were there before)" in capsys.readouterr().out


def test_killed_in_the_middle(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert embed(folder, tmp_path / "whole") == 0
    real, out = files.over_shards, tmp_path / "parts"

    def dies(*arguments: Any) -> Iterator[bytes]:
        yield next(real(*arguments))
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(files, "over_shards", dies)
        assert embed(folder, out) == 130
    assert sorted(content(out)) == ["00000.parquet", "_embeddings.json"]
    assert json.loads(content(out)["_embeddings.json"])["complete"] is False
    assert embed(folder, out) == 0
    assert content(out) == content(tmp_path / "whole")


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    capsys.readouterr()
    assert main(["embed", *(str(argument) for argument in arguments)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("rayssl embed: ") and error.count("\n") == 1, error
    return error.removeprefix("rayssl embed: ").rstrip("\n")


def test_folders_of_something_else(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, corpus, out = folder / "run", folder / "corpus", tmp_path / "out"
    assert refused(capsys, run, corpus, corpus).startswith(f"{corpus}: is a prepared corpus, not a folder for")
    assert refused(capsys, run, corpus, run).startswith(f"{run}: is a run, not a folder for")
    assert embed(folder, out) == 0
    before = content(out)
    record = json.loads(before["_embeddings.json"])
    (out / "_embeddings.json").write_text(json.dumps({**record, "version": 1}))
    assert "an earlier rayssl wrote it, without the names" in refused(capsys, run, corpus, out)
    (out / "_embeddings.json").write_bytes(before["_embeddings.json"])
    write_corpus(tmp_path / "other", (4, 5))
    told = refused(capsys, run, tmp_path / "other", out)
    assert told.startswith(f"{out}: holds embeddings of the corpus {corpus} (") and f"not of {tmp_path}/other (" in told
    other = write_run(experiment(tmp_path / "run", corpus, "seed=9"), step=6)
    told = refused(capsys, other, corpus, out)
    assert f"by {run}/checkpoints/step-0000000004, not by {other}/checkpoints/step-0000000006; give another" in told
    told = refused(capsys, run, corpus, out, "encoder.frontend.normalise=false")
    assert told.endswith("with another 'encoder' section; give another folder, or delete this one")
    assert content(out) == before
    (out / "_embeddings.json").write_text("{}")
    assert refused(capsys, run, corpus, out).startswith(f"{out}/_embeddings.json: damaged, or from another version")
    (out / "_embeddings.json").unlink()
    assert "holds Parquet files that rayssl embed has not written" in refused(capsys, run, corpus, out)


def test_mistakes(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, corpus, out = folder / "run", folder / "corpus", tmp_path / "out"
    assert refused(capsys, tmp_path / "no", corpus, out).startswith(f"{tmp_path}/no: no config.yaml there; give")
    assert refused(capsys, run, tmp_path / "no", out).startswith(f"{tmp_path}/no: no prepared corpus there")
    told = refused(capsys, run, corpus, out, "--checkpoint", "epoch-7")
    assert told.startswith(f"{run}: no checkpoint 'epoch-7'; there are step-4")
    bare = tmp_path / "bare"
    bare.mkdir()
    (bare / "config.yaml").write_text((run / "config.yaml").read_text())
    assert refused(capsys, bare, corpus, out).startswith(f"{bare}: no checkpoint there; train first")
    told = refused(capsys, run, corpus, out, "encoder.backbone.channels=32")
    assert f"{run}/checkpoints/step-0000000004: the checkpoint is of another architecture" in told
    assert not out.exists()


def test_audio_that_cannot_be_embedded(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_corpus(tmp_path / "damaged", SIZES, corrupt=11)
    told = refused(capsys, folder / "run", tmp_path / "damaged", tmp_path / "out")
    place = f"{tmp_path}/damaged/shards/00001.parquet: utterance 'utt011'"
    assert told == f"{place}: damaged audio in a shard: not FLAC; run rayssl prepare --verify"
    names = {"speaker": [], "recording": [], "label": []}
    columns = {"name": ["a"], "samples": [99], "speaker": [-1], "recording": [-1], "label": [-1]}
    audio = [decode.encode(np.zeros(99, np.int16), "flac")]
    parts = [shards.write_shard(str(tmp_path / "short"), (0,), {**columns, "audio": audio})]
    shards.write_manifest(str(tmp_path / "short"), parts, format="flac", names=names, rejected=0, settings={})
    told = refused(capsys, folder / "run", tmp_path / "short", tmp_path / "out2")
    assert told.startswith(
        f"{tmp_path}/short/shards/00000.parquet: utterance 'a': 99 samples, but this run's encoder needs"
    )
    assert told.endswith("at least 640; prepare the corpus again with min_s=0.04 or more")


def test_a_number_of_actors(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        embed(folder, tmp_path, "--actors", "0")
    assert "must be an integer of at least 1, got '0'" in capsys.readouterr().err


def test_in_this_process_without_ray(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert embed(folder, tmp_path / "out") == 0
    monkeypatch.setattr(files, "over_shards", over_shards)
    assert embed(folder, tmp_path / "local", "--local") == 0
    assert content(tmp_path / "local") == content(tmp_path / "out")


def test_actors_need_ray(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told = refused(capsys, folder / "run", folder / "corpus", tmp_path, "--local", "--actors", "2")
    assert told == "--local embeds in this process and --actors on Ray: leave one out"


def test_decoded_elsewhere_is_embedded_the_same(folder: Path, tmp_path: Path) -> None:
    """What tasks decode for actors with GPUs, and what an actor decodes itself."""
    job = task(folder)
    actor = Embedder(job)
    for index in range(len(SIZES)):
        items = {"shard": np.array([index])}
        sent = decode_shard(items, job, Embedder)
        assert actor({name: np.array(values, dtype=object) for name, values in sent.items()}) == actor(items)


def test_damage_found_by_a_decoding_task_is_told(folder: Path, tmp_path: Path) -> None:
    job = task(folder)
    job = replace(job, corpus=str(tmp_path / "gone"))
    sent = decode_shard({"shard": np.array([0])}, job, Embedder)
    assert sent["error"] == ["StorageError"] and "gone" in sent["message"][0]
    answer = Embedder(task(folder))({name: np.array(values, dtype=object) for name, values in sent.items()})
    assert answer == {"answer": [b""], "error": sent["error"], "message": sent["message"]}


def test_precisions_are_never_in_one_folder(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert embed(folder, tmp_path / "out", "--precision", "bf16") == 0
    assert embed(folder, tmp_path / "out") == 2
    assert "with another precision" in capsys.readouterr().err


def test_a_cut_is_asked_for_and_never_in_one_folder_with_another(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A run's ``evaluation.crop_share`` embeds the beginning of each utterance; without it there is nothing cut."""
    more = [f"evaluation={{corpus: {folder}/corpus, trials: {folder}/trials.txt, crop_share: 0.3}}"]
    assert embed(folder, tmp_path / "whole") == 0 and embed(folder, tmp_path / "cut", *more) == 0
    assert json.loads((tmp_path / "cut/_embeddings.json").read_text())["crop_share"] == 0.3
    whole, cut = (np.stack(pq.read_table(tmp_path / name)["embedding"].to_pylist()) for name in ("whole", "cut"))
    model, job = rayssl.load(str(folder / "run"), device="cpu"), task(folder)
    audio = shards.read_shard(job.corpus, job.manifest.shards[0], ["audio"])["audio"].to_pylist()
    for row, one in enumerate(audio):
        wave = decode.pcm(one, "flac")
        kept = wave[: kept_samples(len(wave), 0.3)]
        assert len(kept) < len(wave)
        np.testing.assert_allclose(cut[row], model.embed(kept).numpy(), rtol=0, atol=1e-5)
        assert not np.allclose(cut[row], whole[row], atol=1e-4)
    told = refused(capsys, folder / "run", folder / "corpus", tmp_path / "whole", *more)
    assert told.endswith("with another evaluation.crop_share; give another folder, or delete this one")
    told = refused(capsys, folder / "run", folder / "corpus", tmp_path / "x", more[0].replace("0.3", "0.6"))
    assert "evaluation.crop_share" in told and "0.5" in told


def task(folder: Path) -> EmbeddingTask:
    source = find(str(folder / "run"), "last", None)
    corpus = str(folder / "corpus")
    return EmbeddingTask(source.experiment, source.uri, corpus, read_corpus(corpus))
