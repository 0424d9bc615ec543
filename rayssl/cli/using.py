"""``rayssl embed | score | publish``: a trained encoder on audio, prepared or plain, and a folder of it for others."""

from __future__ import annotations

import argparse
import json
import re
import sys
from typing import TYPE_CHECKING

from rayssl.cli.advice import say_next
from rayssl.cli.parser import RUN, Argument, Verbs, count, declare
from rayssl.errors import ConfigError

if TYPE_CHECKING:
    from rayssl.data.trials import Trial
    from rayssl.inference.model import Model
    from rayssl.inference.scoring import Threshold

CHECKPOINT = "last (default), best, epoch-N or step-N"
_RUN: Argument = ("run", {"metavar": "RUN", "help": "folder or URI of a run or a published encoder; hf://OWNER/NAME"})
_OVERRIDE = re.compile(r"[a-z_]\w*(\.[\w-]+)*=")
_PLAIN = "embeddings.parquet"


def add(verbs: Verbs) -> None:
    """Declares the verbs of this file."""
    _add_embed(verbs)
    _add_score(verbs)
    folder: Argument = ("folder", {"metavar": "FOLDER", "help": "a new folder or URI"})
    text, example = "a folder for others: weights, configuration, model card", "runs/synthetic/ssps published/voices"
    published = declare(verbs, publish, text, example, RUN, folder)
    published.add_argument("--checkpoint", default="last", help=CHECKPOINT)


def _add_embed(verbs: Verbs) -> None:
    what = "audio files and folders of them; or a prepared corpus, then a folder for its Parquet files; key.path=value"
    inputs: Argument = ("inputs", {"nargs": "+", "metavar": "FILE", "help": what})
    text = "embed audio files, or a prepared corpus"
    embedded = declare(verbs, embed, text, "runs/synthetic/ssps a.wav recordings --out embeddings.npz", _RUN, inputs)
    embedded.epilog = f"{embedded.epilog}; of a corpus: {embedded.prog} runs/x runs/synthetic/test embeddings/test"
    place = f"of audio files: a .parquet or .npz file or URI (default {_PLAIN}); of a corpus: a folder or URI"
    embedded.add_argument("--out", metavar="OUT", help=place)
    embedded.add_argument("--checkpoint", default="last", help=CHECKPOINT)
    actors = "of a corpus: number of actors (default: the run's evaluation.actors, or one for each GPU)"
    embedded.add_argument("--actors", type=count, default=0, metavar="N", help=actors)
    precision = "of a corpus: of the encoder; bf16 has three digits (default: the run's evaluation.precision, or fp32)"
    embedded.add_argument("--precision", choices=("fp32", "bf16"), help=precision)
    embedded.add_argument("--local", action="store_true", help="of a corpus: in this process alone, without Ray")
    embedded.set_defaults(overrides=[])


def _add_score(verbs: Verbs) -> None:
    two = {"nargs": "*", "metavar": "FILE", "help": "two audio files or URIs"}
    text = "how alike two audio files are: the cosine of their embeddings"
    scored = declare(verbs, score, text, "runs/synthetic/ssps a.wav b.flac", _RUN, ("files", two))
    listed = (
        "instead of two files: a list of pairs, a line 'label FILE FILE' each, label 1 for the same speaker, else 0"
    )
    scored.add_argument("--trials", metavar="FILE", help=listed)
    scored.add_argument("--root", metavar="FOLDER", default="", help="where the files of --trials are (default: here)")
    scored.add_argument("--checkpoint", default="last", help=CHECKPOINT)
    scored.add_argument("--json", action="store_true", help="one JSON object a pair")


def embed(arguments: argparse.Namespace) -> int:
    """Embeds audio files, as they are, into one Parquet or .npz file with a row for each; or a prepared corpus into a
    folder of Parquet files, on Ray or with --local. A file that cannot be used gets one line, and the status becomes
    2; the others are embedded all the same. An interrupted corpus resumes with the same command.
    """
    from rayssl import storage
    from rayssl.data.shards import MANIFEST

    given = [*arguments.inputs, *arguments.overrides]
    overrides = [each for each in given if _OVERRIDE.match(each) and not storage.exists(each)]
    inputs = [each for each in given if each not in overrides]
    if not inputs:
        raise ConfigError("no audio file, folder or prepared corpus is named")
    first, out = inputs[0], arguments.out
    corpus = storage.exists(storage.join(first, MANIFEST))
    if not corpus and out is None and len(inputs) == 2 and not storage.exists(inputs[1]):
        corpus = not storage.is_file(first)  # as the second is not there, the first is meant to be a corpus
    if not corpus:
        return _embed_files(arguments, inputs, out or _PLAIN, overrides)
    if len(inputs) + (out is not None) != 2:
        raise ConfigError(f"{first}: is a prepared corpus; give one folder for its embeddings, and nothing else")
    return _embed_corpus(arguments, first, out or inputs[1], overrides)


def _embed_corpus(arguments: argparse.Namespace, corpus: str, out: str, overrides: list[str]) -> int:
    from rayssl.runtime.embedding.files import embed_corpus

    if arguments.local and arguments.actors:
        raise ConfigError("--local embeds in this process and --actors on Ray: leave one out")
    given = (arguments.run, corpus, out, arguments.checkpoint, overrides)
    how = {"actors": arguments.actors, "precision": arguments.precision, "local": arguments.local}
    done = embed_corpus(*given, **how, say=_say)
    record = done.record
    made = f"{done.made} made now in {done.wall_s:.1f} s" if done.made else "all were there before"
    print(
        f"{out}: {record.rows} embeddings [{record.dim}] of {corpus} by {record.checkpoint}, "
        f"in {len(record.files)} Parquet files ({made})"
    )
    say_next(arguments, "export", arguments.run, note="the encoder as one file that needs only torch")
    return 0


def _embed_files(arguments: argparse.Namespace, places: list[str], out: str, overrides: list[str]) -> int:
    from rayssl.inference.files import audio_files, check_out, embed_files, write
    from rayssl.inference.model import load

    if overrides:
        raise ConfigError(f"{overrides[0]}: no key of the run changes how audio files are embedded; leave it out")
    check_out(out)
    names = audio_files(places)
    refused = list[str]()

    def refuse(line: str) -> None:
        refused.append(line)
        _say(f"rayssl embed: {line}")

    model = load(arguments.run, arguments.checkpoint)
    found = embed_files(model, names, _say, refuse)
    if not found.names:
        return 2
    write(out, found, model)
    left = f"; {len(refused)} of {len(names)} files were left out" if refused else ""
    print(f"{out}: {len(found.names)} embeddings [{model.dim}] by {model.source.uri}{left}")
    if refused:
        return 2
    pair = (found.names * 2)[:2]
    say_next(arguments, "score", arguments.run, *pair, note="how alike two files are")
    return 0


def score(arguments: argparse.Namespace) -> int:
    """Scores pairs of audio files: a line with the cosine of their embeddings in [-1, 1], which is higher for voices
    that are more alike. If the run was evaluated on trials, the line says on which side of the threshold at the equal
    error rate it is.
    """
    from rayssl.data import trials
    from rayssl.data.trials import Trial
    from rayssl.inference.model import load
    from rayssl.inference.scoring import score_files, threshold_of

    if bool(arguments.trials) == bool(arguments.files) or len(arguments.files) not in (0, 2):
        raise ConfigError("give two audio files, or a list of pairs with --trials")
    listed = trials.read(arguments.trials) if arguments.trials else [Trial(-1, *arguments.files)]
    model = load(arguments.run, arguments.checkpoint)
    threshold = threshold_of(model.source, arguments.checkpoint)
    scores = []
    for trial, value in zip(listed, score_files(model, listed, arguments.root), strict=True):
        scores.append(value)
        print(_scored(arguments, trial, value, threshold), flush=True)
    labels = [trial.label for trial in listed]
    if {0, 1} <= set(labels) and not arguments.json:
        from rayssl.evaluation.verification import verification_result
        from rayssl.runtime.evaluation.evaluate import summary_line

        print(f"{arguments.trials}: {summary_line(verification_result(scores, labels))}")
    _say_after(arguments, model, threshold, listed[0].enrol)
    return 0


def publish(arguments: argparse.Namespace) -> int:
    """Writes the encoder of a run into a new folder: safetensors weights, the configuration without places, and a model
    card with data, method and figures, whose licence is left open. rayssl.load, score, embed and encoder.start_from
    read it, also from a hub as hf://OWNER/NAME. Evaluate the run first: then the card has its figures.
    """
    from rayssl.inference.publishing import publish as write

    done = write(arguments.run, arguments.folder, arguments.checkpoint)
    figures = "with its figures" if done.evaluated else "without figures, because this checkpoint was not evaluated"
    print(
        f"{done.folder}: the encoder of {done.checkpoint}, {done.bytes / 1e6:.1f} MB of weights; the card README.md is "
        f"{figures}, and its licence is yours to choose"
    )
    say_next(arguments, "score", done.folder, "A.wav", "B.wav", note=f"or to a hub: hf upload OWNER/NAME {done.folder}")
    return 0


def _scored(arguments: argparse.Namespace, trial: Trial, value: float, threshold: Threshold | None) -> str:
    """The line of a pair."""
    same = None if threshold is None else value >= threshold.value
    if arguments.json:
        labelled = {} if trial.label < 0 else {"label": trial.label}
        limits = {"threshold": None if threshold is None else threshold.value, "same": same}
        return json.dumps({"score": value, "a": trial.enrol, "b": trial.test, **labelled, **limits})
    shown = [f"{value:.4f}", *([] if trial.label < 0 else [str(trial.label)]), trial.enrol, trial.test]
    if threshold is not None:
        shown.append(f"({'the same speaker' if same else 'different speakers'}: {threshold.text()})")
    return "  ".join(shown)


def _say_after(arguments: argparse.Namespace, model: Model, threshold: Threshold | None, file: str) -> None:
    experiment = model.source.experiment
    if threshold is None and experiment.evaluation is not None and experiment.evaluation.task == "verification":
        say_next(arguments, "evaluate", arguments.run, note="gives the threshold between the same and different voices")
        return
    say_next(arguments, "embed", arguments.run, file, note="the embeddings themselves")


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
