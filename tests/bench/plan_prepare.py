"""How long `rayssl prepare` takes to plan, and how much memory: a source of made-up references, no audio.

    python -m tests.bench.plan_prepare [--utterances 10000000] [--recordings 1000000] [--speakers 100000] [--parts 1]
                                       [--conditions 0] [--join] [--shard 512] [--ray] [--folder FOLDER]

Prints one line of JSON. ``peak_rss_bytes`` is that of this process, ``peak_task_rss_bytes`` that of the largest task;
``cpu_seconds`` are those of this process. ``work_bytes`` are the files that the plan leaves for the tasks.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import tempfile
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa

from rayssl.data import corpus
from rayssl.data.corpus import PreparedCorpusConfig
from rayssl.data.listing import list_rows
from rayssl.data.sources.base import Reference, Source, SourceConfig
from rayssl.runtime.prepare import in_tasks


class MadeUpConfig(SourceConfig):
    """A source of ``utterances`` in ``parts``; utterance k has recording k % recordings, which has one speaker."""

    name: Literal["tests.bench.plan_prepare:MadeUp"] = "tests.bench.plan_prepare:MadeUp"
    utterances: int = 1000
    recordings: int = 100
    speakers: int = 10
    parts: int = 1


class MadeUp(Source):
    """References without audio."""

    Config = MadeUpConfig
    config: MadeUpConfig

    def parts(self) -> Sequence[str]:
        return [str(part) for part in range(self.config.parts)]

    def list_part(self, part: str) -> Iterator[Reference]:
        config = self.config
        recordings, speakers = config.recordings, config.speakers
        for k in range(int(part), config.utterances, config.parts):
            recording = k % recordings
            speaker = f"id{recording % speakers:06d}"
            yield Reference(f"{speaker}/{recording:08d}/{k:09d}.flac", speaker, f"{recording:08d}", None, (part, k))


def peak() -> int:
    """The largest resident memory of this process so far, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def listed_and_peak(settings: Any, seed: int, part: str) -> Iterator[tuple[pa.RecordBatch | None, int]]:
    """What a task lists, and at the end its memory."""
    for batch in list_rows(settings, seed, part):
        yield batch, 0
    yield None, peak()


def measure(arguments: argparse.Namespace, folder: str) -> dict[str, Any]:
    """The figures of one plan."""
    keys = ("utterances", "recordings", "speakers", "parts")
    source = MadeUpConfig.model_validate({key: getattr(arguments, key) for key in keys})
    changes: dict[str, Any] = {"join": {"min_s": 4.0}} if arguments.join else {}
    if arguments.conditions:
        changes["conditions"] = {"count": 8, "per_utterance": arguments.conditions}
    settings = PreparedCorpusConfig.model_validate(
        {"source": source, "out": f"{folder}/out", "shard_utterances": arguments.shard, **changes}
    )
    listed, tasks = None, [0]
    if arguments.ray:
        work = corpus.prepare_work(settings, 0)
        answers = in_tasks(partial(listed_and_peak, work.settings, 0), source.build().parts())
        listed = (batch for batch, used in answers if tasks.append(used) or batch is not None)  # type: ignore[func-returns-value]
    stages: dict[str, float] = {}
    begun, used = time.monotonic(), time.process_time()

    def tell(what: str, utterances: int) -> None:
        stages[what] = round(time.monotonic() - begun, 2)

    plan = corpus.plan(settings, 0, listed, tell)
    seconds, cpu = time.monotonic() - begun, time.process_time() - used
    files = [path.stat() for path in Path(folder).rglob("units-*")]
    return {
        "utterances": plan.sources,
        "renderings": plan.count(),
        "units": len(plan.units),
        "names": {kind: names.count for kind, names in plan.names.items()},
        "digest": plan.digest,
        "seconds": round(seconds, 2),
        "cpu_seconds": round(cpu, 2),
        **{f"seconds_{what}": at for what, at in stages.items()},
        "us_an_utterance": round(seconds / plan.sources * 1e6, 2),
        "peak_rss_bytes": peak(),
        "peak_task_rss_bytes": max(tasks),
        "work_bytes": sum(file.st_size for file in files),
        "load": round(os.getloadavg()[0], 1),
    }


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--utterances", type=int, default=10_000_000)
    parser.add_argument("--recordings", type=int, default=1_000_000)
    parser.add_argument("--speakers", type=int, default=100_000)
    parser.add_argument("--parts", type=int, default=1)
    parser.add_argument("--conditions", type=int, default=0, help="renderings of each utterance")
    parser.add_argument("--join", action="store_true")
    parser.add_argument("--shard", type=int, default=512)
    parser.add_argument("--ray", action="store_true", help="list the parts in tasks")
    parser.add_argument("--folder", help="for the files of the plan; the default is a temporary one")
    arguments = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        print(json.dumps(measure(arguments, folder)), flush=True)


if __name__ == "__main__":
    main()
