"""The command line: ``rayssl show | prepare | train | sweep | evaluate | embed | export | report | bench | doctor``.

A user's mistake prints one line and exits with status 2; a defect keeps its traceback.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from rayssl import __version__
from rayssl.errors import CorpusError, Stopped, UserError

_Verb = Callable[[argparse.Namespace], int]


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one verb; returns the exit status."""
    arguments = _arguments(argv)
    verb: _Verb = arguments.verb_function
    try:
        return verb(arguments)
    except UserError as error:
        print(f"rayssl {arguments.verb}: {error}", file=sys.stderr)
        return 2
    except Stopped as stopped:
        print(f"rayssl {arguments.verb}: {stopped}", file=sys.stderr)
        return stopped.status
    except KeyboardInterrupt:
        print(f"rayssl {arguments.verb}: interrupted; run the same command again to go on", file=sys.stderr)
        return 130
    finally:
        _leave_ray()


def show(arguments: argparse.Namespace) -> int:
    """Prints the resolved configuration, each value with where it came from."""
    from rayssl.runs.origin import origins

    tree, experiment = _experiment(arguments)
    leaves = _leaves(experiment)
    where = origins(tree, arguments.overrides, experiment)
    width = max(len(key) for key in leaves)
    for key, value in leaves.items():
        print(f"{key:<{width}}  {json.dumps(value):<40}  {where[key]}")
    return 0


def prepare(arguments: argparse.Namespace) -> int:
    """Makes (or with --verify checks) the corpora of a configuration."""
    from rayssl.data.corpus import PrepareConfig
    from rayssl.runtime import prepare as runtime
    from rayssl.schema import parse

    config = parse(PrepareConfig, _tree(arguments), arguments.config)
    if arguments.verify:
        problems = runtime.verify_corpora(config)
        for problem in problems:
            print(problem)
        if problems:
            raise CorpusError(
                f"{arguments.config}: {len(problems)} problems; delete the damaged corpus and prepare it again"
            )
        print("every corpus agrees with its manifest")
        return 0
    print(runtime.prepare(config, progress=not arguments.quiet, overwrite=arguments.overwrite).text())
    return 0


def train(arguments: argparse.Namespace) -> int:
    """Trains, or goes on training."""
    from rayssl.experiment.build import check_start
    from rayssl.experiment.job import resolve
    from rayssl.runs.origin import origins, record
    from rayssl.runtime import train as runtime

    tree, experiment = _experiment(arguments)
    job = resolve(experiment)
    check_start(job)
    record(experiment, origins(tree, arguments.overrides, experiment))
    metrics = runtime.train(job)
    print(
        f"{experiment.run}: trained to epoch {experiment.training.epochs}, loss {metrics.get('loss', float('nan')):.4f}"
    )
    return 0


def sweep(arguments: argparse.Namespace) -> int:
    """Tries many values of the keys of an experiment; the same command again goes on where it stopped."""
    from rayssl.sweeps import points, state
    from rayssl.sweeps.config import assignments, read_plan

    plan = read_plan(arguments.config, arguments.overrides)
    if arguments.dry_run:
        if plan.config.search == "optuna":
            points.suggested(plan.config, 0, [])
            print(f"{points.count(plan.config)} trials, each drawn by optuna from what came of those before")
            return 0
        for index, point in enumerate(points.drawn(plan.config)):
            print(f"trial {index}  {' '.join(assignments(point))}")
        return 0
    from rayssl.runtime.sweep.run import sweep as run

    kept = run(plan, lambda line: print(line, flush=True), retry_failed=arguments.retry_failed)
    print(state.table(kept))
    print(f"{plan.uri}: best.yaml for 'rayssl train', results.json, report.html")
    return 0


def evaluate(arguments: argparse.Namespace) -> int:
    """Embeds a run's test corpus and scores its trials, or classifies it."""
    from rayssl.runtime.evaluation import evaluate as runtime

    if arguments.checkpoint == "every":
        found = runtime.over_time(arguments.run, arguments.overrides)
    else:
        result = runtime.evaluate(arguments.run, arguments.checkpoint, arguments.overrides)
        found = iter([(arguments.checkpoint, result)])
    for which, figures in found:
        for each in figures if isinstance(figures, list) else [figures]:
            print(f"{arguments.run} ({which}): {runtime.told(each)}", flush=True)
    return 0


def embed(arguments: argparse.Namespace) -> int:
    """Embeds a prepared corpus into a folder of Parquet files; the same command again goes on where it stopped."""
    from rayssl.runtime.embedding.files import embed_corpus

    def say(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    given = (arguments.run, arguments.corpus, arguments.out, arguments.checkpoint, arguments.overrides)
    done = embed_corpus(*given, actors=arguments.actors, say=say)
    record = done.record
    made = f"{done.made} made now in {done.wall_s:.1f} s" if done.made else "all there already"
    print(
        f"{arguments.out}: {record.rows} embeddings [{record.dim}] of {arguments.corpus} by {record.checkpoint}, "
        f"in {len(record.files)} Parquet files ({made})"
    )
    return 0


def export(arguments: argparse.Namespace) -> int:
    """Writes front end and encoder of a run as one file for torch.export.load, once it agrees with the run."""
    from rayssl.inference.export import export as write

    done = write(arguments.run, arguments.out, arguments.checkpoint)
    print(
        f"{done.out}: samples [B, T] at {done.rate} Hz to embeddings [B, {done.dim}], T of {done.minimum_samples} at "
        f"least; largest difference to the run {done.difference:.1e} of an embedding's scale, over {done.clips} clips "
        f"of {done.compared_on}"
    )
    return 0


def report(arguments: argparse.Namespace) -> int:
    """Writes the HTML page of a run or of a sweep, or one that compares several runs."""
    if len(arguments.runs) > 1:
        from rayssl.reports.comparison.page import write_comparison

        print(write_comparison(arguments.runs, arguments.out or "comparison.html"))
        return 0
    from rayssl.reports.run.page import write_report
    from rayssl.reports.sweep.page import is_sweep, write_sweep_report

    run = arguments.runs[0]
    print(write_sweep_report(run) if is_sweep(run) else write_report(run, arguments.out))
    return 0


def doctor(arguments: argparse.Namespace) -> int:
    """Checks this machine, its packages, the Ray cluster and storage, and says what to mend; status 1 with any FAIL."""
    from rayssl.doctor import findings, machine, packages, store
    from rayssl.runtime.doctor import cluster

    checks: list[Callable[[], list[findings.Finding]]] = [machine.machine, packages.packages]
    checks += [lambda: [packages.gpu()], cluster]
    checks += [partial(store.store, uri) for uri in arguments.storage]
    found: list[findings.Finding] = []
    for check in checks:
        for finding in check():
            found.append(finding)
            if not arguments.json:
                print(finding.text(), flush=True)
    status, said = findings.verdict(found)
    print(findings.as_json(found) if arguments.json else said)
    return status


def kmeans(arguments: argparse.Namespace) -> int:
    """Clusters made-up points as the memory of SSPS would its references, and says what that took."""
    from rayssl.bench.kmeans import KMeansCase, measure, table

    given = {name: value for name, value in vars(arguments).items() if name in KMeansCase.__dataclass_fields__}
    figures = measure(KMeansCase(**given))
    print(table(figures))
    if arguments.json:
        print(json.dumps(figures))
    return 0


def memory(arguments: argparse.Namespace) -> int:
    """Fills a memory of SSPS in actors on the Ray cluster (or a local one), calls it as training would, saves it."""
    from rayssl.bench.kmeans import table
    from rayssl.runtime.cluster import connect

    connect(2)
    from rayssl.runtime.bench import MemoryCase, measure

    given = {name: value for name, value in vars(arguments).items() if name in MemoryCase.__dataclass_fields__}
    figures = measure(MemoryCase(**given), lambda line: print(line, file=sys.stderr, flush=True))
    print(table(figures))
    if arguments.json:
        print(json.dumps(figures))
    return 0


def _leaves(experiment: Any) -> dict[str, Any]:
    from rayssl.schema import flatten

    return flatten(experiment.model_dump(mode="json"))


def _tree(arguments: argparse.Namespace) -> dict[str, Any]:
    from rayssl import storage
    from rayssl.schema import load_yaml, override

    return override(load_yaml(storage.read_text(arguments.config), arguments.config), arguments.overrides)


def _experiment(arguments: argparse.Namespace) -> tuple[dict[str, Any], Any]:
    from rayssl.experiment.config import Experiment
    from rayssl.schema import parse

    tree = _tree(arguments)
    return tree, parse(Experiment, tree, arguments.config)


def _leave_ray() -> None:
    if "ray" in sys.modules and not os.environ.get("RAYSSL_KEEP_RAY"):
        from rayssl.runtime.cluster import disconnect

        disconnect()


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Overrides may also follow an option, which argparse alone would not take as such."""
    parser = _parser()
    arguments, rest = parser.parse_known_args(argv)
    if not hasattr(arguments, "overrides") or any(argument.startswith("-") for argument in rest):
        return parser.parse_args(argv)
    arguments.overrides += rest
    return arguments


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="rayssl",
        description="Self- and semi-supervised audio training on Ray.",
        epilog="URIs: local paths, file:// or s3:// (AWS_ENDPOINT_URL and AWS_* credentials from the environment).",
    )
    parser.add_argument("--version", action="version", version=f"rayssl {__version__}")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    over = (
        "overrides",
        {"nargs": "*", "metavar": "key.path=value", "help": "override any key, the value read as YAML"},
    )
    config = ("config", {"metavar": "CONFIG", "help": "YAML file or URI"})
    run = ("run", {"metavar": "RUN", "help": "folder or URI of a run (the 'run' of its configuration)"})
    _add(verbs, show, "resolved configuration, with origins", "configs/synthetic_ssps.yaml seed=1", config, over)
    made = _add(verbs, prepare, "raw audio to shards", "configs/gsc_prepare.yaml --verify", config, over)
    made.add_argument("--verify", action="store_true", help="check existing corpora against their manifests instead")
    made.add_argument("--overwrite", action="store_true", help="replace corpora that were made with other settings")
    made.add_argument("--quiet", action="store_true", help="no progress bar")
    example = "configs/gsc_ssps_simclr.yaml method.clusters=500 training.epochs=30"
    _add(verbs, train, "train, or go on training after any interruption", example, config, over)
    text, example = "search over keys of an experiment", "configs/sweep_synthetic.yaml trials=20 training.epochs=12"
    searched = _add(verbs, sweep, text, example, config, over)
    searched.add_argument("--retry-failed", action="store_true", help="try trials that failed once more")
    searched.add_argument("--dry-run", action="store_true", help="print what would be tried")
    text = "figures on trials, or on the classes of a test corpus"
    scored = _add(verbs, evaluate, text, "runs/synthetic/ssps --checkpoint best", run, over)
    scored.add_argument("--checkpoint", default="last", help="last (default), best, epoch-N, step-N, or every one kept")
    _embed_and_export(verbs, run, over)
    runs = (
        "runs",
        {
            "nargs": "+",
            "metavar": "RUN",
            "help": "folders or URIs of runs, or one of a sweep; several runs are compared",
        },
    )
    page = _add(verbs, report, "one self-contained HTML page", "runs/a runs/b runs/c --out comparison.html", runs)
    page.add_argument(
        "--out", metavar="PAGE", help="file or URI (default: RUN/report.html; comparison.html of several)"
    )
    checked = _add(verbs, doctor, "what to mend before the first run", "--storage s3://bucket/prefix")
    tried = "folder or URI to try out with small objects, which are removed; may be given several times"
    checked.add_argument("--storage", action="append", default=[], metavar="URI", help=tried)
    checked.add_argument("--json", action="store_true", help="print the findings as JSON instead")
    text = "times parts of a job on this machine, before the job"
    measured = verbs.add_parser("bench", help=text, description=text).add_subparsers(
        dest="measured", required=True, metavar="WHAT"
    )
    _bench_kmeans(measured)
    _bench_memory(measured)
    return parser


def _embed_and_export(verbs: Any, run: Any, over: Any) -> None:
    checkpoint = {"default": "last", "help": "last (default), best, epoch-N or step-N"}
    corpus = ("corpus", {"metavar": "CORPUS", "help": "folder or URI of a prepared corpus"})
    out = ("out", {"metavar": "OUT", "help": "folder or URI for the Parquet files, one for each shard of the corpus"})
    example = "runs/synthetic/ssps runs/synthetic/test embeddings/test --actors 4"
    embedded = _add(verbs, embed, "a corpus to embeddings in Parquet", example, run, corpus, out, over)
    embedded.add_argument("--checkpoint", **checkpoint)
    actors = "that embed at once (default: one a GPU, without GPUs the run's evaluation.actors)"
    embedded.add_argument("--actors", type=_count, default=0, metavar="N", help=actors)
    text, example = "one file that needs only torch", "runs/synthetic/ssps --out encoder.pt2"
    exported = _add(verbs, export, text, example, run)
    exported.add_argument("--checkpoint", **checkpoint)
    place = "file or URI (default: RUN/exported/CHECKPOINT.pt2)"
    exported.add_argument("--out", metavar="FILE", help=place)


def _count(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"a whole number from 1 on, got '{text}'")
    return int(text)


def _bench_kmeans(measured: Any) -> None:
    example = "--rows 1092009 --dim 512 --clusters 25000 --mode fast --compare --json"
    parser = _add(measured, kmeans, "clustering: seconds, objective, memory", example)
    _whole_numbers(
        parser,
        ("rows", 100_000, "points"),
        ("dim", 512, "of a point"),
        ("clusters", 2_500, "to make of them"),
        ("seed", 0, "of the points and of the clustering"),
        ("iterations", 10, "of k-means"),
    )
    parser.add_argument("--mode", choices=("exact", "fast"), default="exact", help="default exact")
    parser.add_argument("--device", default="cpu", help="cpu (default), or a GPU by torch's name for it: cuda, cuda:1")
    planted = "planted clusters with noise around them (default), or noise alone"
    parser.add_argument("--data", choices=("planted", "noise"), default="planted", help=planted)
    parser.add_argument(
        "--spread", type=float, default=1.0, help="norm of that noise, the centre's being 1 (default 1)"
    )
    compare = "also compare with the exact mode on clusters of about N points (50000 if no N is given)"
    parser.add_argument("--compare", type=int, nargs="?", const=50_000, default=0, metavar="N", help=compare)
    parser.add_argument("--json", action="store_true", help="end with one line of JSON that holds every figure")


def _whole_numbers(parser: Any, *options: tuple[str, int, str]) -> None:
    for name, default, text in options:
        parser.add_argument(f"--{name}", type=int, default=default, metavar="N", help=f"{text} (default {default})")


def _bench_memory(measured: Any) -> None:
    example = "--rows 1092009 --dim 512 --batch 256 --ranks 2 --shards 1 --clusters 25000 --half --json"
    parser = _add(measured, memory, "the memory's actors: rows/s, latency, bytes, saving and restoring", example)
    _whole_numbers(
        parser,
        ("rows", 100_000, "utterances"),
        ("dim", 512, "of a reference, and of a positive"),
        ("batch", 256, "utterances of a step, all ranks together"),
        ("ranks", 2, "that call at once"),
        ("shards", 1, "actors that hold the rows"),
        ("clusters", 0, "of the clustering; 0 for one for every 40 rows"),
        ("iterations", 10, "of k-means"),
        ("calls", 50, "exchanges of each rank"),
        ("seed", 0, "of rows and draws"),
    )
    parser.add_argument("--half", action="store_true", help="keep the rows in fp16")
    parser.add_argument("--into", default="", metavar="URI", help="where to save the state (default: a local folder)")
    parser.add_argument("--json", action="store_true", help="end with one line of JSON that holds every figure")


def _add(verbs: Any, function: _Verb, text: str, example: str, *arguments: tuple[str, dict[str, Any]]) -> Any:
    name = function.__name__
    parser = verbs.add_parser(name, help=text, description=f"{function.__doc__}")
    parser.epilog = f"example: {parser.prog} {example}"
    for argument, options in arguments:
        parser.add_argument(argument, **options)
    parser.set_defaults(verb_function=function)
    return parser


if __name__ == "__main__":
    sys.exit(main())
