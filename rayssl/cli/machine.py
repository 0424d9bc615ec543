"""``rayssl doctor | bench``: whether a machine can run a job, and how long parts of the job would take on it."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from rayssl.cli.advice import say_next
from rayssl.cli.parser import Verbs, add_whole_numbers, count, declare

if TYPE_CHECKING:
    from rayssl.doctor.findings import Finding


def add(verbs: Verbs) -> None:
    """Declares the verbs of this file."""
    checked = declare(verbs, doctor, "what to fix before the first run", "--storage s3://bucket/prefix")
    tried = "folder or URI to test with small objects, which are removed again; may be given several times"
    checked.add_argument("--storage", action="append", default=[], metavar="URI", help=tried)
    checked.add_argument("--json", action="store_true", help="print the findings as JSON instead")
    text = "times parts of a job on this machine, before the job"
    bench = verbs.add_parser("bench", help=text, description=text)
    bench.epilog = "examples: rayssl bench shuffle --json; rayssl bench ingest --corpus URI --against dataloader --json"
    measured = bench.add_subparsers(dest="measured", required=True, metavar="WHAT")
    _add_kmeans(measured)
    _add_memory(measured)
    _add_shuffle(measured)
    _add_ingest(measured)
    _add_judges(measured)


def _add_kmeans(measured: Verbs) -> None:
    example = "--rows 1092009 --dim 512 --clusters 25000 --mode fast --compare --json"
    parser = declare(measured, kmeans, "clustering: seconds, objective, memory", example)
    add_whole_numbers(
        parser,
        ("rows", 100_000, "points"),
        ("dim", 512, "dimensions of a point"),
        ("clusters", 2_500, "clusters"),
        ("merged-from", 0, "smaller clusters that are made first and merged by Ward's criterion; 0: none"),
        ("seed", 0, "of the points and of the clustering"),
        ("iterations", 10, "of k-means"),
    )
    parser.add_argument("--mode", choices=("exact", "fast"), default="exact", help="default exact")
    parser.add_argument("--device", default="cpu", help="cpu (default), or a GPU by torch's name for it: cuda, cuda:1")
    planted = "planted: clusters with noise around them (default); noise: noise alone"
    parser.add_argument("--data", choices=("planted", "noise"), default="planted", help=planted)
    spread = "norm of that noise; the norm of a centre is 1 (default 1)"
    parser.add_argument("--spread", type=float, default=1.0, help=spread)
    compare = "also compare with the exact mode on clusters of about N points (50000 if no N is given)"
    parser.add_argument("--compare", type=int, nargs="?", const=50_000, default=0, metavar="N", help=compare)
    parser.add_argument("--json", action="store_true", help="print a last line of JSON with all figures")


def _add_memory(measured: Verbs) -> None:
    example = "--rows 1092009 --dim 512 --batch 256 --ranks 2 --shards 1 --clusters 25000 --half --json"
    parser = declare(measured, memory, "the memory's actors: rows/s, latency, bytes, saving and restoring", example)
    add_whole_numbers(
        parser,
        ("rows", 100_000, "utterances"),
        ("dim", 512, "dimensions of a reference, and of a positive"),
        ("batch", 256, "utterances of a step, all ranks together"),
        ("ranks", 2, "ranks that call at once"),
        ("shards", 1, "actors that hold the rows"),
        ("clusters", 0, "clusters; 0 for one for every 40 rows"),
        ("iterations", 10, "of k-means"),
        ("calls", 50, "exchanges of each rank"),
        ("ahead", 1, "steps of an exchange"),
        ("relays", 0, "as if the ranks were on so many nodes, with one call of each (0: one of each rank)"),
        ("seed", 0, "of rows and draws"),
    )
    parser.add_argument("--half", action="store_true", help="store the rows in fp16")
    parser.add_argument("--into", default="", metavar="URI", help="where to save the state (default: a local folder)")
    parser.add_argument("--json", action="store_true", help="print a last line of JSON with all figures")


def _add_shuffle(measured: Verbs) -> None:
    example = "--shards 64 --shard-utterances 512 --batch 256 --epochs 20 --json"
    parser = declare(measured, shuffle, "how well batches mix a corpus, against a full shuffle", example)
    add_whole_numbers(
        parser,
        ("shards", 64, "shards of the corpus"),
        ("shard-utterances", 512, "utterances of a shard"),
        ("batch", 256, "utterances of a step, all ranks together"),
        ("epochs", 20, "epochs"),
        ("shuffle-shards", 16, "corpus.shuffle_shards"),
        ("unit-rows", 1024, "corpus.unit_rows"),
        ("group-rows", 32, "utterances of a row group of a shard; 0 for the whole shard"),
        ("seed", 0, "of the shuffling"),
    )
    parser.add_argument("--json", action="store_true", help="print a last line of JSON with all figures")


def _add_ingest(measured: Verbs) -> None:
    example = "--corpus s3://bucket/corpus --segments 4,4,2,2,2,2 --readers 8 --against dataloader --json"
    parser = declare(measured, ingest, "reading, decoding and cutting: utterances/s, cores a GPU needs", example)
    parser.add_argument("--corpus", default="", metavar="URI", help="a prepared corpus (default: a synthetic one)")
    add_whole_numbers(
        parser,
        ("utterances", 4096, "utterances of the synthetic corpus"),
        ("batch", 256, "utterances of a step, all ranks together"),
        ("ranks", 1, "ranks"),
        ("steps", 0, "steps to measure; 0 for as many as --for takes"),
        ("shuffle-shards", 16, "corpus.shuffle_shards"),
        ("unit-rows", 1024, "corpus.unit_rows"),
        ("seed", 0, "of the corpus and of the draws"),
    )
    for name, default, text in (
        ("seconds", 3.0, "length of an utterance of the synthetic corpus"),
        ("for", 10.0, "seconds to measure"),
        ("step-ms", 40.0, "milliseconds of the step that a pause stands for"),
        ("target", 0.0, "utterances per second of all ranks, for the cores needed; 0 for --batch in --step-ms"),
    ):
        dest = {"for": "duration"}.get(name, name.replace("-", "_"))
        help = f"{text} (default {default:g})"
        parser.add_argument(f"--{name}", type=float, default=default, dest=dest, metavar="X", help=help)
    parser.add_argument("--format", choices=("flac", "pcm16"), default="flac", help="of that corpus (default flac)")
    into = "folder or URI below which that corpus lies while it is read (default: a temporary folder)"
    parser.add_argument("--into", default="", metavar="URI", help=into)
    cut = "lengths of the segments in seconds, with commas (default 2,2)"
    parser.add_argument("--segments", type=_lengths, default=(2.0, 2.0), metavar="S,S", help=cut)
    readers = "data tasks at once (default auto: as many as a training would have)"
    parser.add_argument("--readers", type=_readers, default=0, metavar="N", help=readers)
    against = "measure this in turn, too: a PyTorch DataLoader with as many processes as readers"
    parser.add_argument("--against", choices=("dataloader",), default="", help=against)
    parser.add_argument("--json", action="store_true", help="print a last line of JSON with all figures")


def _add_judges(measured: Verbs) -> None:
    example = "runs/gsc/simclr runs/gsc/ssps --utterances 500 --json"
    text = "which figures without labels agree with the true EER, over stored checkpoints"
    parser = declare(measured, judges, text, example)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="folder or URI of a run with trials, or of a sweep")
    of = "corpus of the figures without labels (default: the training corpus of each run)"
    parser.add_argument("--corpus", default="", metavar="URI", help=of)
    add_whole_numbers(parser, ("utterances", 1000, "utterances of it that are embedded"))
    seconds = "length of a segment of pseudo-trials (default 2)"
    parser.add_argument("--segment-s", type=float, default=2.0, dest="segment_s", metavar="S", help=seconds)
    parser.add_argument("--json", action="store_true", help="print a last line of JSON with all figures")


def _lengths(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be seconds with commas between them, got '{text}'") from None


def _readers(text: str) -> int:
    return 0 if text == "auto" else count(text)


def doctor(arguments: argparse.Namespace) -> int:
    """Checks this machine, its packages, the Ray cluster and storage, and says what to fix. Any FAIL gives status 1."""
    from rayssl.doctor import findings, machine, packages, store
    from rayssl.runtime.doctor import cluster

    checks: list[Callable[[], list[Finding]]] = [machine.machine, packages.packages]
    checks += [lambda: [packages.gpu()], cluster]
    checks += [partial(store.store, uri) for uri in arguments.storage]
    found: list[Finding] = []
    for check in checks:
        for finding in check():
            found.append(finding)
            if not arguments.json:
                print(finding.text(), flush=True)
    status, said = findings.verdict(found)
    print(findings.as_json(found) if arguments.json else said)
    if status:
        given = [word for uri in arguments.storage for word in ("--storage", uri)]
        say_next(arguments, "doctor", *given, note="when what FAILs is corrected")
    else:
        say_next(
            arguments,
            "init",
            "FOLDER",
            note="of your recordings; or without any: rayssl prepare configs/synthetic_prepare.yaml",
        )
    return status


def kmeans(arguments: argparse.Namespace) -> int:
    """Clusters synthetic points, as the memory of SSPS clusters its references, and prints what that takes."""
    from rayssl.bench.kmeans import KMeansCase, measure, table

    given = {name: value for name, value in vars(arguments).items() if name in KMeansCase.__dataclass_fields__}
    figures = measure(KMeansCase(**given))
    print(table(figures))
    sizes = [word for name in ("rows", "dim", "clusters") for word in (f"--{name}", str(getattr(arguments, name)))]
    say_next(arguments, "bench", "memory", *sizes)
    if arguments.json:
        print(json.dumps(figures))
    return 0


def memory(arguments: argparse.Namespace) -> int:
    """Fills a memory of SSPS on the Ray cluster (or a local one), calls it as training does, and saves it."""
    from rayssl.bench.kmeans import table
    from rayssl.runtime.cluster import connect, prepare

    prepare()  # the next line imports ray
    from rayssl.runtime.bench.memory import MemoryCase, measure

    given = {name: value for name, value in vars(arguments).items() if name in MemoryCase.__dataclass_fields__}
    case = MemoryCase(**given)
    connect(2 + arguments.ranks / 10)  # a rank of the measurement takes a tenth of a CPU
    figures = measure(case, lambda line: print(line, file=sys.stderr, flush=True))
    print(table(figures))
    say_next(arguments, "bench", "ingest", "--batch", str(arguments.batch), "--ranks", str(arguments.ranks))
    if arguments.json:
        print(json.dumps(figures))
    return 0


def shuffle(arguments: argparse.Namespace) -> int:
    """Counts how many different utterances an utterance meets in its batches, as a training makes them."""
    from rayssl.bench.shuffle import ShuffleCase, measure, table

    given = {name: value for name, value in vars(arguments).items() if name in ShuffleCase.__dataclass_fields__}
    figures = measure(ShuffleCase(**given))
    print(table(figures))
    say_next(arguments, "bench", "ingest", "--batch", str(arguments.batch))
    if arguments.json:
        print(json.dumps(figures))
    return 0


def ingest(arguments: argparse.Namespace) -> int:
    """Reads, decodes and cuts a corpus as a training does, on the Ray cluster or a local one, without a network."""
    from rayssl.bench.ingest import IngestCase, measure, table

    given = {name: value for name, value in vars(arguments).items() if name in IngestCase.__dataclass_fields__}
    figures = measure(IngestCase(**given), lambda line: print(line, file=sys.stderr, flush=True))
    print(table(figures))
    say_next(arguments, "doctor", note="whether this machine has the cores that a GPU needs")
    if arguments.json:
        print(json.dumps(figures))
    return 0


def judges(arguments: argparse.Namespace) -> int:
    """Judges stored checkpoints with and without labels, and prints Spearman's correlation of each figure with the EER.

    Each run needs checkpoints of several epochs (training.checkpoints.milestones), or give several runs.
    """
    from rayssl.bench.judges import measure, table

    names = ("corpus", "utterances", "segment_s")
    given = {name: value for name, value in vars(arguments).items() if name in names}
    figures = measure(arguments.runs, lambda line: print(line, file=sys.stderr, flush=True), **given)
    print(table(figures["correlation"]))
    say_next(arguments, "report", arguments.runs[0])
    if arguments.json:
        print(json.dumps(figures))
    return 0
