"""The run log: what a reader finds after writing, killing, resuming."""

from __future__ import annotations

import errno
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tensorboard.summary.writer.record_writer import RecordWriter

from rayssl import storage
from rayssl.errors import StorageError
from rayssl.training.metrics import RunLog, read_metrics


def scalars(run: Path) -> dict[str, dict[int, float]]:
    """What TensorBoard shows of a run, by its own reader."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    return {tag: {e.step: e.value for e in events.Scalars(tag)} for tag in events.Tags()["scalars"]}


def steps(run: Path) -> list[int]:
    return [record["step"] for record in read_metrics(str(run / "metrics.jsonl"))]


def test_lines_are_on_disk_as_soon_as_written(tmp_path: Path) -> None:
    log = RunLog(str(tmp_path / "run"), None, tensorboard=False)
    log.write("step", 1, epoch=0, loss=torch.tensor(1.5, requires_grad=True), lr=1e-3)
    log.write("event", 1, event="ssps_start", note=None)
    first, second = read_metrics(str(tmp_path / "run/metrics.jsonl"))  # not flushed, not closed
    assert {"kind": "step", "step": 1, "epoch": 0, "loss": 1.5, "lr": 1e-3}.items() <= first.items()
    assert first["time"] > 1.6e9
    assert second["event"] == "ssps_start" and second["note"] is None
    log.close()
    log.close()


def test_tensors_and_numpy_scalars_become_numbers(tmp_path: Path) -> None:
    with RunLog(str(tmp_path), None, tensorboard=False) as log:
        tensors = {"a": torch.tensor(3), "b": torch.tensor([0.5]), "e": torch.tensor(0.1)}
        log.write("step", 1, c=np.float32(0.25), d=np.int64(7), **tensors)
    (record,) = read_metrics(str(tmp_path / "metrics.jsonl"))
    assert (record["a"], record["b"], record["c"], record["d"]) == (3, 0.5, 0.25, 7)
    assert record["e"] == pytest.approx(0.1, abs=1e-7)


def test_lines_are_strict_json_even_with_nan(tmp_path: Path) -> None:
    with RunLog(str(tmp_path), None, tensorboard=False) as log:
        log.write("step", 1, loss=torch.tensor(float("nan")), other=float("inf"))

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    record = json.loads((tmp_path / "metrics.jsonl").read_text(), parse_constant=refuse)
    assert record["loss"] is None and record["other"] is None


def test_tensors_of_many_elements_are_refused_by_name(tmp_path: Path) -> None:
    log = RunLog(str(tmp_path), None, tensorboard=False)
    with pytest.raises(ValueError, match=r"metric 'loss'.*\[2\]"):
        log.write("step", 1, loss=torch.zeros(2))
    log.close()
    assert steps(tmp_path) == []


def test_resume_drops_what_the_checkpoint_does_not_know(tmp_path: Path) -> None:
    with RunLog(str(tmp_path), None) as log:
        for step in range(1, 6):
            log.write("step", step, loss=float(step))
    with RunLog(str(tmp_path), 3) as log:
        assert steps(tmp_path) == [1, 2, 3]
        log.write("step", 4, loss=40.0)
    assert steps(tmp_path) == [1, 2, 3, 4]
    assert scalars(tmp_path)["step/loss"] == {1: 1.0, 2: 2.0, 3: 3.0, 4: 40.0}


def test_starting_afresh_drops_all(tmp_path: Path) -> None:
    with RunLog(str(tmp_path), None) as log:
        log.write("step", 1, loss=1.0)
        log.write("step", 2, loss=2.0)
    with RunLog(str(tmp_path), None) as log:
        log.write("step", 1, loss=10.0)
    assert steps(tmp_path) == [1]
    assert scalars(tmp_path)["step/loss"] == {1: 10.0}


def test_torn_last_line_is_left_out_and_mended_on_resume(tmp_path: Path) -> None:
    with RunLog(str(tmp_path), None, tensorboard=False) as log:
        log.write("step", 1, loss=1.0)
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(path.read_bytes() + b'{"kind": "step", "step": 2, "lo')
    assert steps(tmp_path) == [1]
    with RunLog(str(tmp_path), 2, tensorboard=False) as log:
        log.write("step", 3, loss=3.0)
    assert steps(tmp_path) == [1, 3]


def test_damage_in_the_middle_is_an_error_with_its_line(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n{"st\n{"step": 3}\n')
    with pytest.raises(StorageError, match=r"metrics\.jsonl: line 2 is not a JSON object"):
        read_metrics(str(tmp_path / "metrics.jsonl"))


def test_tensorboard_mirrors_numbers_only(tmp_path: Path) -> None:
    with RunLog(str(tmp_path), None) as log:
        log.write("step", 5, loss=torch.tensor(0.5), epoch=1, done=True, text="x", missing=None)
        log.write("epoch", 5, coverage=0.75)
    assert scalars(tmp_path) == {"step/loss": {5: 0.5}, "step/epoch": {5: 1.0}, "epoch/coverage": {5: 0.75}}


def test_file_uris_are_local(tmp_path: Path) -> None:
    with RunLog(f"file://{tmp_path}/a", None, tensorboard=False) as log:
        log.write("step", 1, loss=1.0)
        assert steps(tmp_path / "a") == [1]


@pytest.mark.s3
def test_remote_runs_are_put_whole_at_flush_and_resume(s3_server: Any, tmp_path: Path) -> None:
    run = f"{s3_server.bucket('metrics')}/runs/a"
    log = RunLog(run, None)
    log.write("step", 1, loss=1.0)
    assert read_metrics(f"{run}/metrics.jsonl") == []
    log.flush()
    log.write("step", 2, loss=2.0)
    assert [r["step"] for r in read_metrics(f"{run}/metrics.jsonl")] == [1]
    log.close()
    with RunLog(run, 1) as log:
        log.write("step", 2, loss=20.0)
    assert [r["loss"] for r in read_metrics(f"{run}/metrics.jsonl")] == [1.0, 20.0]
    files = storage.list_files(f"{run}/tensorboard")
    assert len({file.rpartition("/")[2].split(".")[3] for file in files}) == 2, "names in order, also within one second"
    (tmp_path / "tensorboard").mkdir()
    for file in files:
        (tmp_path / "tensorboard" / file.rpartition("/")[2]).write_bytes(storage.read_bytes(file))
    assert scalars(tmp_path)["step/loss"] == {1: 1.0, 2: 20.0}


@pytest.mark.s3
def test_remote_runs_upload_by_themselves_after_a_while(s3_server: Any) -> None:
    run, now = f"{s3_server.bucket('metrics')}/runs/b", [0.0]
    with RunLog(run, None, tensorboard=False, upload_every_s=30, clock=lambda: now[0]) as log:
        for step, now[0] in enumerate([10.0, 29.0, 31.0, 40.0], start=1):
            log.write("step", step)
        assert [r["step"] for r in read_metrics(f"{run}/metrics.jsonl")] == [1, 2, 3]


@pytest.mark.s3
def test_an_unreachable_store_stops_flush_but_not_write(
    s3_server: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    run = f"{s3_server.bucket('metrics')}/runs/c"
    log = RunLog(run, None, tensorboard=False, upload_every_s=0)
    with monkeypatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
        log.write("step", 1, loss=1.0)
        assert "metrics not uploaded, will try again" in caplog.text
        with pytest.raises(StorageError, match="no answer"):
            log.flush()
    log.close()
    assert [r["step"] for r in read_metrics(f"{run}/metrics.jsonl")] == [1]


def test_lines_wait_while_the_disk_is_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    log = RunLog(str(tmp_path), None, tensorboard=False)
    log.write("step", 1, loss=1.0)
    real = log._file
    with open("/dev/full", "ab", buffering=0) as full:
        log._file = full
        for step in (2, 3):
            log.write("step", step, loss=float(step))
        monkeypatch.setattr("rayssl.storage.attempts.FIRST_WAIT_S", 0.01)
        with pytest.raises(StorageError, match=r"metrics\.jsonl"):
            log.flush()
    assert steps(tmp_path) == [1]
    log._file = real
    log.write("step", 4, loss=4.0)
    log.close()
    assert steps(tmp_path) == [1, 2, 3, 4]
    told = capfd.readouterr().err
    assert told.count("No space left on device; the figures wait until there is room") == 1 and told.count("\n") == 1


def test_training_goes_on_where_tensorboard_cannot_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """One line, no traceback of TensorBoard's thread, and a new file once there is room again."""
    now = [0.0]
    log = RunLog(str(tmp_path), None, clock=lambda: now[0])
    log.write("step", 1, loss=1.0)
    log.flush()

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as disk:
        disk.setattr(RecordWriter, "write", full)
        disk.setattr("torch.utils.tensorboard.SummaryWriter", full)
        for step in (2, 3):
            now[0] += 40.0
            log.write("step", step, loss=float(step))
            log.flush()
    now[0] += 40.0
    log.write("step", 4, loss=4.0)
    log.close()
    assert steps(tmp_path) == [1, 2, 3, 4]
    found = scalars(tmp_path)["step/loss"]
    assert found[1] == 1.0 and found[4] == 4.0
    told = capfd.readouterr().err
    assert "tensorboard: [Errno 28] No space left on device; figures are missing there" in told
    assert told.count("\n") == 1
