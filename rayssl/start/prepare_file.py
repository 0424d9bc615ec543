"""The text of ``prepare.yaml``."""

from __future__ import annotations

import shlex
from typing import Any

from rayssl.data.nights.edf import open_edf
from rayssl.data.sources.files import join
from rayssl.start import testing
from rayssl.start.plan import Plan, examples, paths
from rayssl.start.yaml_text import YamlText

MEL = {"hop_ms": 100}  # as configs/nights_prepare.yaml
HELD_OUT_NIGHTS = 0.2
_MIC = ("mic", "sound", "audio", "snor", "trach")


def text(plan: Plan) -> str:
    """The preparation of ``plan``, with a comment at each guess."""
    made = YamlText()
    place = paths(plan)
    made.say(
        f"Shows: from {plan.uri} to corpora. rayssl init wrote this file for {described(plan)}.",
        f"Command: rayssl prepare {shlex.quote(place['prepare.yaml'])}{alone(plan)}",
        "Paths are relative to the folder in which you call rayssl. A comment says what was guessed, why, and when to "
        "change it.",
    )
    if plan.too_small:
        made.say(f"TOO SMALL: {too_small(plan)}")
    made.gap()
    made.key("corpora")
    if plan.purpose == "sleep":
        _nights(made, plan)
        return made.text()
    made.say("What the training reads.", indent=2)
    made.key("train", indent=2)
    _source(made, plan)
    _audio(made, plan)
    made.say("Where the corpus is written. Workers on other machines need an s3://, gs:// or az:// URI.", indent=4)
    made.key("out", place["train"], indent=4)
    made.say(
        f"{plan.sizes.shard_utterances} utterances a file, so that some readers share them; 512 are usual for many.",
        indent=4,
    )
    made.key("shard_utterances", plan.sizes.shard_utterances, indent=4)
    if plan.purpose == "classes":
        made.say(
            "Which labels a training may use (labels.split): all. labelled: {share: 0.1} tries fewer; the audio stays.",
            indent=4,
        )
        split: dict[str, Any] = {"labelled": {"share": 1.0}}
        made.key("splits", {"all": {**split, "unknown": True} if plan.semi else split}, indent=4)
    _test(made, plan)
    return made.text()


def alone(plan: Plan) -> str:
    """`` --local`` for the commands of a plan that is best done without Ray."""
    return " --local" if plan.local else ""


def described(plan: Plan) -> str:
    """What was found, in a few words."""
    count = f"{'' if plan.found.share == 1 else 'about '}{plan.found.utterances}"
    if plan.purpose == "sleep":
        subjects = len({one.speaker for one in plan.found.references})
        return f"{plan.why} ({subjects} subjects)"
    heard, known = plan.heard, ""
    if plan.speakers:
        known = f" of {plan.speakers} speakers"
    if plan.purpose == "classes":
        known = f" of {len(plan.classes)} classes" + (f" and {plan.speakers} speakers" if plan.speakers else "")
    rates = ", ".join(f"{rate:,} Hz" for rate, _ in heard.rates.most_common(3)) or "an unknown rate"
    about = "" if heard.whole else "about "
    hours = f"{plan.hours:.2g}" if plan.hours < 10 else f"{plan.hours:,.0f}"
    return f"{count} recordings{known}, {about}{hours} h, {_lengths(plan)}, at {rates}"


def too_small(plan: Plan) -> str:
    """Why so little is not enough, and what works all the same."""
    return (
        f"{plan.for_training} utterances to learn from are too few for an encoder that is of use: a training learns "
        "them by heart. These files only show that everything works. What works with so few: embed them with a run "
        "that was trained on more (rayssl embed RUN CORPUS OUT), or add recordings (hundreds, better thousands) and "
        "call rayssl init again."
    )


def _lengths(plan: Plan) -> str:
    low, middle, high = (plan.heard.at(share) for share in (0.1, 0.5, 0.9))
    return f"{low:.1f} to {high:.1f} s long (median {middle:.1f} s)"


def _source(made: YamlText, plan: Plan) -> None:
    source, held = plan.found.source, plan.held
    made.say(*(f"Guessed: {why}." for why in plan.found.why), indent=4)
    if plan.purpose is not None:
        said = f"Guessed: these are {plan.purpose}, because {plan.why}."
        if plan.why.startswith("--for"):
            said = f"As {plan.why} says."
        elif plan.unsure:
            other = "classes" if plan.purpose == "speakers" else "speakers"
            said += f" If they are {other}: rayssl init {shlex.quote(plan.uri)} --for {other} --overwrite."
        made.say(said, indent=4)
    else:
        made.say(f"No speakers and no classes: {plan.why}. Training needs none.", indent=4)
    if source["name"] == "folder" and "files" in source:
        made.say("Files that do not lie below such folders are passed over (files).", indent=4)
    shared = held.take is not None
    made.key("source", source, indent=4, anchor="source" if shared else "")
    if held.take is not None:
        made.say(
            f"{held.why}.",
            "Name others, or give a share such as 0.2, to hold others out. The test below takes the same rule.",
            indent=4,
        )
        made.key("take", {"part": "rest", **held.take}, indent=4, anchor="take")


def _audio(made: YamlText, plan: Plan) -> None:
    """The keys that both corpora have."""
    if plan.long:
        detector = plan.detector
        what = (
            f"Recordings are long (median {plan.heard.at(0.5):.0f} s), so they are divided into segments of 2 to 20 s"
        )
        if detector == "none":
            how = "All sounds count (detector: none)."
            if plan.purpose != "classes":
                how += " For speech alone install rayssl[vad] and write {}: silero finds it."
        else:
            how = f"{detector} finds speech. For sounds that are not speech write detector: none."
        made.say(f"{what}. {how}", indent=4)
        made.key("segments", {} if detector == "silero" else {"detector": detector}, indent=4)
    if plan.channels > 2:
        made.say(f"Some files have {plan.channels} channels; their mean is taken. first takes the first one.", indent=4)
        made.key("channels", "mean", indent=4)
    if plan.reject_share is not None:
        unreadable = plan.heard.unreadable
        name, reason = next(iter(unreadable.items()))
        made.say(
            f"{len(unreadable)} of {plan.heard.asked} recordings that were looked at cannot be used, first '{name}' "
            f"({reason}). They are left out; by default more than 0.01 of them ends the preparation. Fix the files, "
            "then leave this key out.",
            indent=4,
        )
        made.key("max_reject_share", round(plan.reject_share, 2), indent=4)


def _test(made: YamlText, plan: Plan) -> None:
    held, place = plan.held, paths(plan)
    made.gap()
    if held.take is None:
        what = "speakers" if plan.purpose == "speakers" else "speakers or classes"
        made.say(
            f"There is no test corpus: {held.why}.",
            f"For a figure, add recordings of known {what} (a folder for each, or a list) and call rayssl init again.",
            indent=2,
        )
        return
    made.say("What the figures are of: the part that is held out above.", indent=2)
    made.key("test", indent=2)
    made.alias("source", "source", indent=4)
    made.key("take", {"part": "held_out"}, indent=4, merge="take")
    _audio(made, plan)
    made.key("out", place["test"], indent=4)
    made.key("shard_utterances", plan.sizes.shard_utterances, indent=4)
    if plan.purpose != "speakers":
        return
    if held.across:
        made.say("Pairs of one speaker are from different recordings, as they must be for an honest figure.", indent=4)
    else:
        made.say(
            "Nothing says which files were recorded together, so a pair of one speaker may be of one session (across: "
            "any), and the error rate too low. With folders SPEAKER/RECORDING/FILE leave across out.",
            indent=4,
        )
    if held.speakers < testing.FEW_SPEAKERS:
        made.say(
            f"{held.speakers} test speakers make an error rate that says little; from about {testing.FEW_SPEAKERS} on "
            "it can be compared.",
            indent=4,
        )
    trials: dict[str, Any] = {"out": place["trials.txt"], "pairs": held.pairs}
    made.key("trials", {"all": trials if held.across else {**trials, "across": "any"}}, indent=4)


def _nights(made: YamlText, plan: Plan) -> None:
    place, references = paths(plan), plan.found.references
    made.say("All nights, labelled or not.", indent=2)
    made.key("nights", indent=2)
    source = dict(plan.found.source)
    first = join(plan.uri, str(references[0].locator[1 + int(references[0].locator[0])]))
    if first.lower().endswith(".edf"):
        labels = [channel.label for channel in open_edf(first, first).channels]
        heard = [label for label in labels if any(word in label.lower() for word in _MIC)]
        source["channel"] = heard or labels[:1]
        made.say(
            f"Guessed: the sound is the first of {examples(source['channel'])}. The first file has the signals "
            f"{examples(labels, 12)}: name the one of the microphone.",
            indent=4,
        )
    made.key("source", source, indent=4)
    made.key("out", place["nights"], indent=4)
    made.say(
        "Log-mel pictures with a frame every 100 ms, as configs/nights_prepare.yaml; flac keeps the sound.", indent=4
    )
    made.key("format", "mel", indent=4)
    made.key("nights", {"mel": MEL}, indent=4)
    subjects = len({one.speaker for one in references})
    some = {"held_out": HELD_OUT_NIGHTS} if subjects >= testing.LEAST_SPEAKERS else {}
    made.say(
        f"Splits are by subject: {HELD_OUT_NIGHTS:.0%} of them are held out for the figures."
        if some
        else f"{subjects} subjects are too few to hold some out, so there are no figures of unheard subjects.",
        indent=4,
    )
    made.key("splits", {"staging": {"nights": some}}, indent=4)
