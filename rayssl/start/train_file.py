"""The text of ``train.yaml``."""

from __future__ import annotations

import shlex
from typing import Any

from rayssl.start import sizes, testing
from rayssl.start.plan import Plan, paths
from rayssl.start.prepare_file import HELD_OUT_NIGHTS, MEL, alone, described, too_small
from rayssl.start.yaml_text import YamlText

_SMALL = "On CPUs: the small encoder of configs/gsc_simclr.yaml. On a GPU channels of 512 or 1024 are usual."
_VALIDATIONS = 10  # in a training
_PAIRED_S = 1.0  # utterances that are mostly shorter have no two segments that say something
_WITHOUT_RAY = (
    "--local: one process, which starts in seconds. Ray takes about half a minute to start on two cores; leave --local "
    "out for more cores, for GPUs and for a cluster."
)
_WORDS = {"time_shift": {"p": 0.5, "most": 0.1}}


def text(plan: Plan) -> str:
    """The experiment of ``plan``, with a comment at each guess."""
    made, place = YamlText(), paths(plan)
    run = shlex.quote(place["run"])
    how = alone(plan)
    then = f" && rayssl evaluate {run}{how}" if evaluated(plan) else ""
    made.say(
        f"Shows: {_goal(plan)}. rayssl init wrote this file for {described(plan)}, and {plan.machine.text}.",
        f"Command: rayssl train {shlex.quote(place['train.yaml'])}{how}{then} && rayssl report {run}",
        f"After: rayssl prepare {shlex.quote(place['prepare.yaml'])}{how}",
        *([_WITHOUT_RAY] if how else []),
        _measured(plan),
        "Every key can also be given behind the command, for example training.epochs=40. rayssl show lists all keys.",
    )
    if plan.too_small:
        made.say(f"TOO SMALL: {too_small(plan)}")
    made.gap()
    made.say("The folder of the run: configuration, figures, checkpoints, report. Another run needs another name.")
    made.key("run", place["run"])
    made.gap()
    made.say("readers: tasks that read at once; auto takes the cores that training leaves free, at least one a worker.")
    made.key("corpus", {"uri": place["nights" if plan.purpose == "sleep" else "train"], "readers": "auto"})
    if plan.purpose == "sleep":
        _sleep(made, plan)
    elif plan.purpose == "classes":
        _classes(made, plan)
    else:
        _speech(made, plan)
    return made.text()


def evaluated(plan: Plan) -> bool:
    """Whether the experiment has a test."""
    if plan.purpose == "sleep":
        return len({one.speaker for one in plan.found.references}) >= testing.LEAST_SPEAKERS
    return plan.held.take is not None


def _goal(plan: Plan) -> str:
    if plan.purpose == "sleep":
        return "stages of sleep from sound, learned from the scored nights"
    if plan.purpose == "classes":
        way = (
            "FixMatch: labelled clips, and pseudo-labels of the others"
            if plan.semi
            else "CLAR with the labels there are"
        )
        return f"{len(plan.classes)} classes by {way}"
    way = "SimCLR, then SSPS" if plan.sizes.clusters else "SimCLR"
    tested = "tested on speakers who were not heard" if plan.held.take else "without a test: no speakers are known"
    return f"an encoder of speech by {way}, without labels, {tested}"


def _measured(plan: Plan) -> str:
    if plan.machine.gpus:
        return "Nothing like this was measured on a GPU: watch the first epochs."
    if plan.purpose == "sleep":
        return "Measured with such settings: configs/nights_sleep.yaml, six to nine minutes on two CPU cores."
    return (
        "Measured with such settings, on other data: about 900 steps of 64 utterances take six minutes on two CPU "
        f"cores (configs/README.md). This file asks for {plan.sizes.steps} steps of {plan.sizes.batch}."
    )


def _training(made: YamlText, plan: Plan, optimiser: dict[str, Any]) -> None:
    size = plan.sizes
    made.gap()
    made.key("training")
    steps = f"{size.steps} steps, about {size.passes:.0f} passes over {plan.for_training} utterances"
    made.say(f"{steps}. Raise epochs while the loss falls and the figures rise.", indent=2)
    made.key("epochs", size.epochs, indent=2)
    if size.epoch_steps:
        made.say("Steps between two checkpoints. Without this key an epoch is one pass.", indent=2)
        made.key("epoch_steps", size.epoch_steps, indent=2)
    made.say(
        "Utterances of a step, over all workers. The larger, the more negatives a contrastive loss has; lower it if "
        "the memory is too small.",
        indent=2,
    )
    made.key("batch", size.batch, indent=2)
    if plan.machine.gpus:
        made.key("precision", "bf16", indent=2)
    made.say("Lower lr if the loss jumps; change it with the batch.", indent=2)
    made.key("optimiser", optimiser, indent=2)
    by_classes = plan.purpose == "classes"
    made.key("checkpoints", {"keep": 1, "best": None} if by_classes else {"keep": 1}, indent=2)
    _validate(made, plan, by_classes)
    _workers(made, plan)


def _validate(made: YamlText, plan: Plan, by_classes: bool) -> None:
    size = plan.sizes
    every = max(1, size.epochs // _VALIDATIONS)
    if not by_classes and not plan.long and plan.heard.at(0.5) < _PAIRED_S:
        made.say(
            "While it trains, the run is judged without labels: how many dimensions are used (effective_rank, high is "
            "good). --checkpoint best takes the checkpoint with the highest one.",
            indent=2,
        )
        made.key("validate", {"metric": "effective_rank", "utterances": 500, "every_epochs": every}, indent=2)
    elif not by_classes:
        metric, also = ("effective_rank", "pseudo_eer") if size.clusters else ("pseudo_eer", "effective_rank")
        best = "highest effective_rank" if size.clusters else "lowest pseudo_eer"
        why = ": pseudo_eer rises under SSPS while voices are told apart better" if size.clusters else ""
        made.say(
            "While it trains, the run is judged without labels: whether two noisy segments of an utterance are told "
            "from those of others (pseudo_eer, low is good), and how many dimensions are used (effective_rank, high is "
            f"good). --checkpoint best takes the checkpoint with the {best}{why}.",
            indent=2,
        )
        judged = {"metric": metric, "also": [also], "segment_s": size.segment_s}
        made.key("validate", {**judged, "utterances": 500, "every_epochs": every}, indent=2)
    elif plan.held.take is not None:
        made.say(
            "While it trains, the accuracy on the test clips is shown. No checkpoint is chosen by it (best: null), so "
            "the figure of rayssl evaluate stays honest.",
            indent=2,
        )
        judged = {"metric": "balanced_accuracy", "corpus": paths(plan)["test"]}
        made.key("validate", {**judged, "every_epochs": every}, indent=2)


def _workers(made: YamlText, plan: Plan) -> None:
    size = plan.sizes
    how = "one on each GPU" if plan.machine.gpus else "one for each two cores, since the other cores read"
    made.gap()
    made.say(f"Data-parallel workers on {plan.machine.text}: {how}. They must divide the batch.")
    made.key("ray", {"workers": size.workers})


def _encoder(made: YamlText, plan: Plan) -> None:
    made.gap()
    made.key("encoder")
    if plan.machine.gpus:
        made.say("The published ECAPA-TDNN. Channels of 1024 take twice as long.", indent=2)
        made.key("backbone", {"name": "ecapa", "channels": plan.sizes.width, "embedding_dim": 192}, indent=2)
        return
    made.say(_SMALL, indent=2)
    width = plan.sizes.width
    made.key("frontend", {"hop_ms": 20, "win_ms": 32}, indent=2)
    backbone = {"name": "ecapa", "channels": width, "scale": 4, "mfa_channels": 3 * width, "embedding_dim": 128}
    made.key("backbone", {**backbone, "attention_channels": 64, "se_channels": 32}, indent=2)


def _speech(made: YamlText, plan: Plan) -> None:
    size, place = plan.sizes, paths(plan)
    views: dict[str, Any] = {"segment_s": size.segment_s}
    lengths = f"three quarters of the utterances (from {plan.heard.at(0.25):.1f} s on)"
    if plan.long:
        lengths = "most segments of the recordings"
    made.gap()
    made.say(
        f"Two segments of an utterance are to be alike. At {size.segment_s:g} s "
        + (f"both fit into {lengths} without a sample in common." if size.disjoint else "they overlap in most of them.")
        + " Longer segments say more about a voice and take longer."
    )
    if size.clusters:
        views["reference_s"] = size.reference_s
    made.key("views", {**views, "disjoint": size.disjoint})
    _encoder(made, plan)
    made.gap()
    if size.clusters:
        _ssps(made, plan)
    else:
        few = f"SSPS (positives from other utterances) needs about {sizes.MANY_FOR_SSPS}: with 640 it did not pay."
        if plan.for_training >= sizes.MANY_FOR_SSPS:
            few = "SSPS needs whole passes over the corpus, which take too long on these cores; on a GPU, try it."
        made.say(few)
        made.key("method", {"name": "simclr", "temperature": 0.1})
    if plan.machine.gpus:
        optimiser = {"lr": 0.001, "schedule": {"name": "cosine", "warmup_epochs": 1, "final_lr": 1e-05}}
    else:
        every = max(1, size.epochs // 3)
        optimiser = {"lr": 0.002, "schedule": {"name": "step", "factor": 0.25, "every_epochs": every}}
    _training(made, plan, optimiser)
    made.gap()
    if plan.held.take is None:
        made.say(
            f"There is no evaluation: {plan.held.why}. Without known speakers no error rate can be computed, and a "
            "falling loss does not say that voices are told apart. What can be done: rayssl report (the curves) and "
            "rayssl embed (then listen to nearest neighbours). Recordings of 20 known speakers make a first figure.",
        )
        return
    made.say("The error rate (EER, minDCF) on the list of trials that the preparation writes.")
    made.key("evaluation", {"corpus": place["test"], "trials": place["trials.txt"]})


def _ssps(made: YamlText, plan: Plan) -> None:
    size = plan.sizes
    each = plan.for_training / size.clusters
    made.say("SimCLR first; from start_epoch on, positives are other utterances of the same cluster.")
    made.key("method")
    made.key("name", "ssps", indent=2)
    made.key("over", {"name": "simclr", "temperature": 0.1}, indent=2)
    made.say("Half of the training: clusters need an encoder that has learned something.", indent=2)
    made.key("start_epoch", size.epochs // 2, indent=2)
    made.key("references", "fill", indent=2)
    made.key("whiten", True, indent=2)
    made.say(
        f"K, so that {each:.0f} utterances form a cluster. Choose more than a recording has and no more than a speaker"
        + (
            f" (here about {plan.utterances / plan.speakers:.0f})."
            if plan.speakers
            else "; how many that are is not known here."
        )
        + " 320 of 2,551 were chosen by the error rate, 25,000 of 1,092,009 are published; try half and twice as many.",
        indent=2,
    )
    made.key("clusters", size.clusters, indent=2)
    if size.merged_from:
        made.say(
            "k-means makes this many clusters, and those that belong together become one. The training then says how "
            "many clusters it suggests: about as many as there are speakers.",
            indent=2,
        )
        made.key("merged_from", size.merged_from, indent=2)
    made.key("neighbours", 0, indent=2)


def _classes(made: YamlText, plan: Plan) -> None:
    size, place = plan.sizes, paths(plan)
    made.gap()
    made.say(
        "The labels of the split of prepare.yaml."
        + (" ratio: two unlabelled clips for each labelled one." if plan.semi else "")
    )
    made.key("labels", {"split": "all", "ratio": 2} if plan.semi else {"split": "all"})
    made.say(
        f"Segments of {size.segment_s:g} s: most clips are as long. Longer ones say more and take longer. The recipes "
        "must leave the class as it is: take out what changes yours (time_shift, where the order of sounds matters).",
    )
    made.key("views")
    made.key("segment_s", size.segment_s, indent=2)
    noise = {"white_noise": {"p": 0.5, "snr_db": [5, 20]}}
    if plan.semi:
        made.key("weak", _WORDS, indent=2)
        strong = {**_WORDS, "fade": {"p": 0.5}, "time_mask": {"p": 0.5, "most": 0.25}, **noise}
        made.key("strong", strong, indent=2)
        _encoder(made, plan)
        made.gap()
        made.say("ema: the evaluated weights are an average. threshold: lower it if few pseudo-labels are taken.")
        made.key("method", {"name": "fixmatch", "threshold": 0.9, "ema": 0.99})
        optimiser: dict[str, Any] = {"lr": 0.002, "schedule": {"name": "cosine", "final_lr": 1e-05}}
    else:
        strong = {"fade": {"p": 0.5}, "time_mask": {"p": 0.5}, "time_shift": {"p": 0.5}, **noise}
        made.key("strong", strong, indent=2)
        made.gap()
        made.say("As configs/digits_clar.yaml. Width 32 or 64 and a GPU for many thousands of clips.")
        made.key("encoder")
        made.key("frontend", {"name": "spectrum", "n_fft": 1024, "hop_ms": 16, "bins": 64}, indent=2)
        width = 64 if plan.machine.gpus else 16
        made.key("backbone", {"name": "resnet2d", "width": width, "embedding_dim": 128}, indent=2)
        made.gap()
        made.say("labels: none learns without the labels, and probes judge it.")
        projector = {"sizes": [256, 256, 128]}
        made.key("method", {"name": "clar", "labels": "cross_entropy", "projector": projector})
        schedule = {"name": "cosine", "warmup_epochs": 2, "final_lr": 0.0001}
        optimiser = {"name": "adam_lars", "lr": 0.02, "schedule": schedule}
    _training(made, plan, optimiser)
    made.gap()
    if plan.held.take is None:
        made.say(f"There is no evaluation: {plan.held.why}. Each class needs two clips at least, better dozens.")
        return
    made.say("Accuracy, balanced over the classes, of the method's classifier and of a linear probe on held-out clips.")
    made.key("evaluation", {"task": "classification", "corpus": place["test"], "probes": ["linear"]})


def _sleep(made: YamlText, plan: Plan) -> None:
    place = paths(plan)
    made.gap()
    made.say("The nights whose stages may be used: those of the split of prepare.yaml.")
    made.key("labels", {"split": "staging", "ratio": 1})
    made.gap()
    made.say("The small SoundSleepNet of configs/nights_sleep.yaml; a width of 64 and more for a GPU.")
    made.key("encoder")
    made.key("frontend", {"name": "nightmel", "mel": MEL, "centre": "band"}, indent=2)
    small = {"name": "soundsleepnet", "width": 64 if plan.machine.gpus else 32, "embedding_dim": 64, "hidden": 128}
    made.key("backbone", {**small, "sequence": 20, "scored": [0, 20], "dropout": 0.1}, indent=2)
    made.gap()
    made.say("Learns from the scored nights alone; terms for the others stand in configs/README.md.")
    made.key("method", {"name": "sleep", "ema": 0.98, "labelled_recipe": "strong", "stage_power": 0.5})
    made.key("training")
    made.say("1,200 steps of 8 sequences, as measured. Raise epochs while the figures rise.", indent=2)
    made.key("epochs", 8, indent=2)
    made.key("epoch_steps", 150, indent=2)
    made.key("batch", 8, indent=2)
    made.say("The statistics of all workers: four sequences of each alone are too few.", indent=2)
    made.key("sync_batchnorm", True, indent=2)
    schedule = {"name": "cosine", "final_lr": 1e-05}
    made.key("optimiser", {"lr": 0.002, "clip_norm": 5.0, "schedule": schedule}, indent=2)
    made.key("checkpoints", {"keep": 1}, indent=2)
    made.gap()
    made.say(f"Data-parallel workers on {plan.machine.text}. They must divide the batch.")
    made.key("ray", {"workers": min(2, sizes.ranks(plan.machine))})
    made.gap()
    if not evaluated(plan):
        made.say("There is no evaluation: too few subjects to hold some out.")
        return
    made.say(f"Macro F1 and kappa on the {HELD_OUT_NIGHTS:.0%} of subjects that the split holds out.")
    made.key("evaluation", {"task": "staging", "corpus": place["nights"], "split": "staging", "stride": 10})
