"""What is gathered from a run's folder, whole, partial or damaged."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from rayssl.errors import StorageError
from rayssl.reports.run.reading import Run, choose, read_run
from tests.reports.example_run import write_run


def test_a_whole_run_is_read(small_run: Path) -> None:
    run = read_run(f"file://{small_run}")
    assert run.name == "small" and not run.problems
    assert run.config is not None and run.config["method"]["over"]["name"] == "simclr"
    steps, loss = run.series("step", "loss")
    assert steps.tolist() == list(range(1, 61)) and np.isfinite(loss).all()
    assert run.results[0]["checkpoint"] == "step-1200"
    assert run.scores is not None and run.scores.label.sum() == run.results[0]["targets"]


def test_the_sample_holds_the_rows_it_says(small_run: Path) -> None:
    """Rows come from several row groups; each must still carry its own speaker, recording and embedding."""
    sample = read_run(str(small_run), speakers=4, utterances=40).sample
    assert sample is not None and len(sample.embedding) == 40 and len(np.unique(sample.speaker)) == 4
    path = small_run / "evaluation/embeddings.parquet"
    assert pq.ParquetFile(path).num_row_groups > 1
    table = pq.read_table(path).to_pydict()
    columns = [table[name] for name in ("embedding", "speaker", "recording")]
    known = {tuple(row): (who, where) for row, who, where in zip(*columns, strict=True)}
    found = [known[tuple(row)] for row in sample.embedding]
    assert found == list(zip(sample.speaker, sample.recording, strict=True))


def test_choice_prefers_speakers_of_several_recordings_and_skips_unknown_ones() -> None:
    speaker = np.array([0] * 5 + [1] * 5 + [2] * 5 + [-1] * 5)
    recording = np.array([0] * 5 + [1, 2, 1, 2, 1] + [3, 4, 4, 4, 4] + [9] * 5)
    for seed in range(5):
        rows = choose(speaker, recording, speakers=2, utterances=6, seed=seed)
        assert set(speaker[rows]) == {1, 2} and len(rows) == 6 and rows.tolist() == sorted(rows)
    assert set(speaker[choose(speaker, recording, 9, 100, 0)]) == {0, 1, 2}
    assert len(choose(np.full(4, -1), np.zeros(4, int), 9, 100, 0)) == 0


def test_ssps_start_from_coverage_from_event_or_not_at_all(small_run: Path, tmp_path: Path) -> None:
    assert read_run(str(small_run)).ssps_start() == 30  # 3 epochs of 10 steps came before
    plain = write_run(tmp_path / "plain", epochs=2, steps=5, ssps=False, evaluated=False)
    assert read_run(str(plain)).ssps_start() is None
    with (plain / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "event", "event": "ssps_start", "step": 7}\n')
    assert read_run(str(plain)).ssps_start() == 7


def test_series_leave_out_what_is_no_number() -> None:
    lines = [{"kind": "step", "step": s, "loss": v} for s, v in enumerate([1.0, None, "x", float("nan"), True, 2])]
    steps, values = Run("r", metrics=[*lines, {"kind": "epoch", "step": 9, "loss": 5.0}]).series("step", "loss")
    assert steps.tolist() == [0, 5] and values.tolist() == [1.0, 2.0]
    assert Run("r", metrics=lines).names("step") == ["loss"]


def test_no_run_is_an_error_that_says_so(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"no run here \(neither config\.yaml nor metrics\.jsonl\)"):
        read_run(str(tmp_path))


def test_torn_last_line_of_a_live_run_is_passed_over(small_run: Path, tmp_path: Path) -> None:
    whole = (small_run / "metrics.jsonl").read_bytes()
    (tmp_path / "metrics.jsonl").write_bytes(whole[:-20])
    run = read_run(str(tmp_path))
    assert len(run.metrics) == whole.count(b"\n") - 1 and not run.problems


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("config.yaml", b"a: [1"),
        ("config.yaml", b"- 1"),
        ("origin.json", b"{"),
        ("origin.json", b"[1]"),
        ("evaluation/result.json", b"[3]"),
        ("evaluation/result.json", b"\xff\xfe"),
        ("evaluation/scores.parquet", b"PAR1 no"),
        ("evaluation/embeddings.parquet", b""),
    ],
)
def test_a_damaged_part_becomes_a_sentence(name: str, damage: bytes, small_run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(small_run, folder)
    (folder / name).write_bytes(damage)
    run = read_run(str(folder))
    assert len(run.problems) == 1 and run.problems[0].startswith(f"{name} cannot be used: ")
    assert run.metrics


def test_parts_of_another_shape_become_sentences(small_run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(small_run, folder)
    scores = pq.read_table(folder / "evaluation/scores.parquet")
    pq.write_table(scores.drop_columns(["score"]), folder / "evaluation/scores.parquet")
    run = read_run(str(folder))
    assert run.scores is None and "scores.parquet cannot be used" in run.problems[0]
    (folder / "evaluation/result.json").write_text(json.dumps([{"eer": 0.1}, {"eer": 0.2}]))
    assert [result["eer"] for result in read_run(str(folder)).results] == [0.1, 0.2]


def test_results_are_divided_and_heads_come_in_their_order() -> None:
    heads = [("knn", 1.0), ("linear", 0.1), ("odd", None), ("linear", 1.0), ("model", None)]
    classified = [{"balanced_accuracy": 0.1, "head": head, "share": share} for head, share in heads]
    run = Run("r", results=[{"eer": 0.1}, *classified])
    assert run.verified == [{"eer": 0.1}]
    order = [("model", None), ("linear", 1.0), ("linear", 0.1), ("knn", 1.0), ("odd", None)]
    assert [(r["head"], r["share"]) for r in run.classified] == order


def test_pseudo_labels_are_read_and_lines_that_do_not_fit_passed_over() -> None:
    def line(*lists: object, **more: object) -> dict[str, object]:
        return {
            "kind": "classes",
            **dict(zip(("predicted", "confident", "right", "truth"), lists, strict=False)),
            **more,
        }

    good = ([1, 2], [0, 1], [1, 0], [3, 3])
    bad = [line(*good[:3]), line([1], [1], [1], [1]), line([1, 2], [0, 1], [1, 0], [3, None]), line([1, -2], *good[1:])]
    bad += [line([1, 2.5], *good[1:]), line([True, 2], *good[1:]), line("ab", *good[1:]), line([], [], [], [])]
    lines = [bad[0], line(*good, epoch=4, names=["a", "b"]), *bad[1:], line([5, 0], [0, 0], [0, 0], [3, 3], epoch=7)]
    found = Run("r", metrics=lines).pseudo_labels()
    assert found is not None and found.names == ["a", "b"] and found.epoch.tolist() == [4, 7]
    assert found.predicted.tolist() == [[1, 2], [5, 0]] and found.truth.tolist() == [[3, 3]] * 2
    assert found.confident.tolist() == [[0, 1], [0, 0]] and found.right.tolist() == [[1, 0], [0, 0]]
    nameless = Run("r", metrics=[line(*good, names=["a"]), line(*good)]).pseudo_labels()
    assert nameless is not None and nameless.names == ["0", "1"] and nameless.epoch.tolist() == [0, 1]
    assert Run("r", metrics=bad[3:]).pseudo_labels() is None


def test_probes_are_read_by_their_seconds() -> None:
    lines = [{"kind": "probe", "seconds": s, "accuracy": a} for s, a in ((1, 0.5), (2, None), (None, 0.5), (3.5, 0.75))]
    seconds, values = Run("r", metrics=lines).timed("accuracy")
    assert seconds.tolist() == [1, 3.5] and values.tolist() == [0.5, 0.75]
