"""The arithmetic of the trials: steps trained twice, bits compared, lines read, the table; and one trial as a whole."""

from __future__ import annotations

import http.client
import io
import json
import signal
import subprocess
import sys
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from rayssl.progress import Stepped, Trained
from rayssl.progress.screens import JsonLines
from rayssl.training import checkpoint
from tests.faults import kinds, processes, watching
from tests.faults.places import ROOT, environment
from tests.faults.stores import Burst, Line, Outage
from tests.faults.table import spread, table
from tests.faults.trial import Result
from tests.faults.watching import MetricsWatch, OutputWatch, Resume
from tests.faults.work import checkpoints_differ, same, tables_differ
from tests.runs import experiment, fit, write_corpus


def metrics(run: Path, *steps: int, again: bool = False) -> None:
    """Appends a line for each step; ``again``: in a new file, as a run that resumes does."""
    text = "".join(json.dumps({"kind": "step", "step": step}) + "\n" for step in steps)
    if again:
        (run / "new").write_text(text)
        (run / "new").replace(run / "metrics.jsonl")
        return
    with (run / "metrics.jsonl").open("a") as file:
        file.write(text)


def test_steps_trained_twice_are_counted_from_the_metrics(tmp_path: Path) -> None:
    """Killed after step 7 with a checkpoint of 4: three steps are lost; then none; then all of ten."""
    watch = MetricsWatch(str(tmp_path))
    watch.look()
    assert watch.steps.last == 0
    metrics(tmp_path, 1, 2, 3, 4, 5, 6, 7)
    watch.look()
    metrics(tmp_path, 1, 2, 3, 4, again=True)
    watch.look()
    assert watch.steps.last == 4
    metrics(tmp_path, 5, 6, 7, 8)
    watch.look()
    metrics(tmp_path, *range(1, 9), again=True)
    watch.look()
    metrics(tmp_path, 9, 10)
    watch.look()
    metrics(tmp_path, again=True)
    watch.look()
    assert watch.steps.resumes == [Resume(7, 4), Resume(8, 8), Resume(10, 0)]
    assert watching.steps_lost(watch.steps.resumes) == 13


def test_half_a_line_is_read_when_it_is_whole(tmp_path: Path) -> None:
    watch = MetricsWatch(str(tmp_path))
    (tmp_path / "metrics.jsonl").write_text('{"kind": "step", "step": 1}\n{"kind": "st')
    watch.look()
    assert watch.steps.last == 1
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('ep", "step": 2}\n{"kind": "refresh", "step": 3}\n{"kind": "epoch", "step": 2, "epoch": 1}\n')
    watch.look()
    assert watch.steps.last == 2 and watch.steps.epochs == {1} and watch.steps.resumes == []


def test_steps_trained_twice_are_counted_from_the_output(tmp_path: Path) -> None:
    out = io.StringIO()
    screen = JsonLines(out)
    for step in (1, 2, 3, 3, 4):
        screen.show(Stepped(1, 3, step, 18, 1.5, 20.0, 0.1))
    screen.show(Stepped(1, 3, 2, 18))  # a tick without a loss counts nothing
    screen.show(Trained(1, 3, 6, 18, 2.0, {"loss": 1.1}))
    (tmp_path / "out").write_text("raylet: a line\n" + out.getvalue())
    watch = OutputWatch(tmp_path / "out")
    watch.look()
    assert watch.steps.resumes == [Resume(3, 2)] and watch.steps.last == 4 and watch.steps.epochs == {1}


def test_what_a_person_reads() -> None:
    text = (
        "12:00:01 epoch 1/3  step 3/18  loss 1.5  20 utterances/s\n"
        "\x1b[33m(raylet)\x1b[0m WARNING: 8 PYTHON worker processes have been started on node: 1\n"
        "12:00:09 rank 0: resumed from /a (step 3 of 18)\n12:00:10 started 2 workers in 3.1 s\n"
        '{"time": 1.0, "event": "line", "text": "waits for a store"}\n{"event": "step", "step": 3, "loss": 1.0}\n'
        "12:00:01 memory: 0.0 MB in one actor\n\n/a: trained to epoch 3, loss 1.2\n"
    )
    assert watching.lines(text) == [
        "rank 0: resumed from /a (step 3 of 18)",
        "waits for a store",
        "/a: trained to epoch 3, loss 1.2",
    ]


def test_bits_are_compared_and_not_values() -> None:
    assert same(torch.tensor([float("nan")]), torch.tensor([float("nan")]))
    assert not same(torch.tensor([0.0]), torch.tensor([-0.0]))
    assert not same(np.zeros(2, np.float32), np.zeros(2, np.float64))
    assert not same(np.zeros((2, 1)), np.zeros((1, 2)))


@pytest.mark.long
def test_a_bit_of_a_checkpoint_is_seen(tmp_path: Path) -> None:
    """Equal: two runs of the same seed. Not equal: one bit of a weight, one of the memory, another step."""
    write_corpus(tmp_path / "corpus")
    runs = [str(tmp_path / name) for name in ("one", "other")]
    for run in runs:
        fit(experiment(Path(run), tmp_path / "corpus"))
    assert checkpoints_differ(*runs) == []
    loaded = checkpoint.load(checkpoint.locate(runs[1], "last"))
    name, weight = next((n, w) for n, w in loaded.state["method"].items() if w.dtype == torch.float32 and w.dim())
    weight.view(torch.int32).flatten()[0] ^= 1
    records = dict(loaded.memory)
    checkpoint.save(runs[1], checkpoint.Meta(**{**loaded.meta.__dict__, "files": {}}), loaded.state, lambda _: records)
    assert checkpoints_differ(*runs) == [f"method.{name}"]
    fit(experiment(Path(runs[0]), tmp_path / "corpus", "training.epochs=4"))
    assert checkpoints_differ(*runs)[0].startswith("step ")


def test_tables_are_compared_by_their_places(tmp_path: Path) -> None:
    for name, values in (("a/1", [1]), ("a/2", [1]), ("b/1", [1]), ("b/2", [2]), ("b/3", [3])):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        pq.write_table(pa.table({"x": values}), tmp_path / f"{name}.parquet")
    assert tables_differ(str(tmp_path / "a"), str(tmp_path / "b")) == ["/3.parquet", "/2.parquet"]


def test_the_table_counts_what_the_trials_say() -> None:
    results = [
        Result("worker", "training", 0, ended="by itself", same_bits=True, steps_lost=2, seconds_lost=10.0, lines=3),
        Result("worker", "training", 1, ended="by the same command", same_bits=True, steps_lost=4, seconds_lost=30.0),
        Result("worker", "training", 2, ended="lost", steps_lost=90, lines=800),
        Result("worker", "embed", 0, ended="by its advice", same_bits=False),
    ]
    head, _, training, embed = table(results).splitlines()
    assert [cell.strip() for cell in head.split("|")][:4] == ["fault", "during", "trials", "by itself"]
    cells = [cell.strip() for cell in training.split("|")]
    assert cells == ["worker", "training", "3", "1", "1", "0", "2 of 3", "3 / 4", "20 / 30", "2 / 3"]
    assert [cell.strip() for cell in embed.split("|")][2:8] == ["1", "0", "0", "1", "0 of 1", "-"]
    assert spread([None]) == "-"


def test_what_a_trial_started_is_found_and_ended(tmp_path: Path) -> None:
    """Also a grandchild whose parent is gone, by the mark; nothing else."""
    mark = f"test-{tmp_path.name}"
    code = "sleep 98 & sleep 99 & exec sleep 97"
    first = subprocess.Popen(["bash", "-c", code], env=environment(mark, {}))
    other = subprocess.Popen(["sleep", "96"])
    try:
        assert processes.wait_until(lambda: len(processes.below([first.pid], mark)) == 3, 5)
        first.send_signal(signal.SIGKILL)
        first.wait()
        left = processes.below([], mark)
        assert sorted(process.title for process in left) == ["sleep 98", "sleep 99"]
        assert processes.titled(left, r"sleep \d8") == [p for p in left if p.title == "sleep 98"]
        processes.end(left)
        assert processes.below([], mark) == [] and other.poll() is None
    finally:
        processes.end(processes.below([], mark))
        other.kill()
        other.wait()


class _Answer(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "1000")
        self.end_headers()
        self.wfile.write(bytes(1000))

    def log_message(self, format: str, *arguments: Any) -> None:
        pass


@pytest.mark.parametrize("kind", ["errors", "half", "resets", "outage"])
def test_a_proxy_does_harm_and_stops(kind: str) -> None:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Answer)
    Thread(target=server.serve_forever, daemon=True).start()
    endpoint = f"http://127.0.0.1:{server.server_port}"
    makers: dict[str, Any] = {
        "errors": lambda: Burst(endpoint, ("500", "503"), 1.0),
        "half": lambda: Burst(endpoint, ("cut", "reset"), 1.0),
        "resets": lambda: Line(endpoint, resets=1.0),
        "outage": lambda: Outage(endpoint),
    }
    proxy = makers[kind]()
    try:
        for harm in (False, True, False):
            proxy.begin() if harm else proxy.end()
            try:
                with urllib.request.urlopen(proxy.endpoint, timeout=5) as answer:
                    whole = len(answer.read()) == 1000
            except (OSError, http.client.HTTPException):
                whole = False
            assert whole is not harm
    finally:
        proxy.close()
        server.shutdown()
        server.server_close()


def test_every_kind_has_a_phase_and_work() -> None:
    for kind in kinds.every().values():
        for during in kind.phases:
            assert kind.work_in(during).name and callable(kind.cause_in(during))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["worker", "--during", "nonsense"], "invalid choice"),
        (["flipped-bit", "--during", "embed"], "not during embed"),
    ],
)
def test_what_cannot_be_tried_is_status_2(words: list[str], said: str) -> None:
    command = [sys.executable, "-m", "tests.faults", *words]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and said in done.stderr.splitlines()[-1]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_killed_worker_loses_no_bits(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.faults", "worker", "--json", "--folder", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (result,) = json.loads(done.stdout)
    assert (result["ended"], result["same_bits"], result["kills"]) == ("by itself", True, 1)
    assert result["steps_lost"] <= 4 and "resumes from the last checkpoint" in " ".join(result["read"])
