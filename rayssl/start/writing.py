"""Writes the two files of a plan, after they have been read as `prepare` and `train` will read them."""

from __future__ import annotations

from rayssl import storage
from rayssl.data.corpus import PrepareConfig
from rayssl.errors import ConfigError
from rayssl.experiment.config import Experiment
from rayssl.schema import load_yaml, parse
from rayssl.start import layout, prepare_file, testing, train_file
from rayssl.start.plan import Plan, examples, paths


def write(plan: Plan, *, overwrite: bool = False) -> None:
    """Writes ``prepare.yaml`` and ``train.yaml`` below ``plan.out``.

    Raises `ConfigError`, before anything is written, if one of them is there and ``overwrite`` is not set.
    """
    place = paths(plan)
    texts = {place["prepare.yaml"]: prepare_file.text(plan), place["train.yaml"]: train_file.text(plan)}
    parse(PrepareConfig, load_yaml(texts[place["prepare.yaml"]], place["prepare.yaml"]), place["prepare.yaml"])
    parse(Experiment, load_yaml(texts[place["train.yaml"]], place["train.yaml"]), place["train.yaml"])
    there = [name for name in texts if storage.exists(name)]
    if there and not overwrite:
        raise ConfigError(f"{examples(there)}: exists; give another --out, or --overwrite to replace it")
    storage.check_writable(plan.out)
    for name, text in texts.items():
        storage.write_text(name, text)


def summary(plan: Plan) -> str:
    """What was guessed and why, and what each file is for: lines for people."""
    place = paths(plan)
    lines = [f"found: {prepare_file.described(plan)}", *_guessed(plan)]
    if plan.too_small:
        lines.append(f"TOO SMALL: {prepare_file.too_small(plan)}")
    lines += [f"settings: {_settings(plan)}", f"{place['prepare.yaml']}: recordings to corpora at {plan.out}"]
    tested = train_file.evaluated(plan)
    lines.append(f"{place['train.yaml']}: the training, {'with' if tested else 'without'} an evaluation")
    return "\n".join(lines)


def _guessed(plan: Plan) -> list[str]:
    lines = [f"  guessed: {why}" for why in plan.found.why]
    if plan.purpose in ("speakers", "classes"):
        other = "classes" if plan.purpose == "speakers" else "speakers"
        way = f"; if they are {other}: --for {other}" if plan.unsure else ""
        lines.append(f"  {'guessed' if not plan.why.startswith('--for') else 'given'}: {plan.purpose}: {plan.why}{way}")
    if plan.purpose is None:
        lines.append(f"  no speakers and no classes: {plan.why}")
        groups = layout.prefixes([one.name for one in plan.usable])
        if groups:
            what = f"the file names begin with {len(groups)} different words ({examples(groups)})"
            lines.append(f"  {what}: if these are speakers, make a folder for each, or a list with path and speaker")
    if plan.found.share < 1:
        lines.append(f"  {plan.found.share:.0%} of the files were listed; the others are taken to be alike")
    if not plan.heard.whole:
        lines.append(f"  lengths and rates are those of {plan.heard.asked} recordings")
    if plan.purpose != "sleep" and min(plan.heard.rates, default=16000) < 16000:
        lines.append(f"  some have a rate of {min(plan.heard.rates):,} Hz: they are resampled to 16 kHz, and stay dull")
    if plan.long:
        lines.append(f"  they are long: divided into segments of 2 to 20 s (detector: {plan.detector})")
    if plan.heard.unreadable:
        bad = plan.heard.unreadable
        (name, reason), some = next(iter(bad.items())), f"{len(bad)} of {plan.heard.asked}"
        lines.append(f"  {some} cannot be read and are left out, first '{name}' ({reason})")
    if plan.found.passed_over:
        kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(plan.found.passed_over.items()))
        lines.append(f"  passed over: {kinds}")
    return [*lines, *_tested(plan)]


def _tested(plan: Plan) -> list[str]:
    held = plan.held
    if plan.purpose == "sleep":
        return ["  test: a fifth of the subjects"] if train_file.evaluated(plan) else ["  no test: too few subjects"]
    if held.take is None:
        can = "what can be done: the curves (rayssl report), embeddings and their neighbours (rayssl embed)"
        return [f"  no test and no error rate: {held.why}; {can}"]
    lines = [f"  test: {held.why}"]
    if plan.purpose == "speakers" and held.speakers < testing.FEW_SPEAKERS:
        lines.append(
            f"  {held.speakers} test speakers make an error rate that says little; about {testing.FEW_SPEAKERS} do"
        )
    if plan.purpose == "speakers" and not held.across:
        lines.append("  trials may be inside one session, since nothing says which files belong to one: EER too low")
    return lines


def _settings(plan: Plan) -> str:
    if plan.purpose == "sleep":
        return f"those of configs/nights_sleep.yaml, on {plan.machine.text}"
    size = plan.sizes
    clusters = f", {size.clusters} clusters" if size.clusters else ""
    return (
        f"{size.steps} steps of {size.batch} utterances of {plan.for_training}, segments of {size.segment_s:g} s, "
        f"{size.workers} worker{'s' * (size.workers > 1)}{clusters}, on {plan.machine.text}"
    )
