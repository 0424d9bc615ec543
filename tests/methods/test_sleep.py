"""Sleep's step against the pure losses on the epochs that count, picked one by one; what its keys compute and what not.

Every expectation here picks the epochs by index and leaves the others away. The method masks them.
"""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from rayssl.losses.ccssl import ccssl
from rayssl.losses.noise_consistency import noise_consistency
from rayssl.losses.sequential import pair_weights
from rayssl.losses.ssc import ssc
from rayssl.memory.classes.memory import ClassMemory
from rayssl.memory.classes.settings import ClassSettings
from rayssl.methods.base import Batch, ClassRecall, JobFacts, View
from rayssl.methods.sleep import Sleep, SleepConfig
from rayssl.training.inputs import to_classes
from rayssl.views.recipes import ViewsConfig
from tests.methods.few_labels import same_gradients
from tests.night_runs import CLASSES, SEQUENCE, SLEEP_METHOD, build_sleep, sleep_batch

OWN = [[0, 1, 2, 3], [8, 9, 9, 9], [10, 11, 12, 13]]  # the second night has two epochs
LABELLED = [[20, 21, 22, 23], [30, 31, 32, 32], [40, 41, 42, 43]]
LABELS = [[0, -1, 1, 2], [3, 1, 1, 1], [-1, 1, 0, 3]]
WIDTH = 5
NAMES = ("labelled", "labelled_noisy", "weak", "strong")
TERMS: dict[str, dict[str, Any]] = {
    "supervised": {},
    "stage_power": {"stage_power": 0.5},
    "adjust": {"adjust": 1.5},
    "noise on labelled": {"noise": {"weight": 0.5, "nights": "labelled"}},
    "noise on unlabelled": {"noise": {"weight": 0.5, "nights": "unlabelled", "distance": "kl"}},
    "noise on both": {"noise": {"weight": 0.5, "nights": "both", "detach_clean": True}},
    "fixmatch": {"fixmatch": {"weight": 0.7, "threshold": 0.6}},
    "sequential": {"sequential": {"weight": 2.0, "w_min": 0.3}},
    "sequential, l1": {"sequential": {"weight": 2.0, "distance": "l1", "detach_b": True}},
    "ccssl": {"ccssl": {"weight": 0.4, "temperature": 0.5, "push": 0.5}},
    "ssc": {"ssc": {"weight": 0.3, "temperature": 0.5, "threshold": 0.2}},
    "ssc, count": {"ssc": {"weight": 0.3, "temperature": 0.5, "normaliser": "count"}},
    "ssc, memory": {"ssc": {"weight": 0.3, "temperature": 0.5, "anchors": "memory", "queue": 3}},
}
ALL = {key: value for each in TERMS.values() for key, value in each.items()}
ALL_OF_BATCH = {**ALL, "ssc": TERMS["ssc"]["ssc"], "pseudo": "average"}
CASES = {**TERMS, "all": ALL, "all, anchors of the batch, pseudo-labels of the average": ALL_OF_BATCH}


def outputs(seed: int = 0) -> dict[str, Tensor]:
    """What `forward` returns, as leaves that take a gradient, and the average's logits."""
    generator = torch.Generator().manual_seed(seed)

    def leaf(rows: int, width: int) -> Tensor:
        return (1.5 * torch.randn(rows, SEQUENCE, width, generator=generator, dtype=torch.float64)).requires_grad_()

    sizes = {name: len(OWN) if name in ("weak", "strong") else len(LABELLED) for name in NAMES}
    out = {name: leaf(size, 4) for name, size in sizes.items()}
    out |= {f"{name}_rows": leaf(size, WIDTH) for name, size in sizes.items()}
    return out | {"weak_average": leaf(len(OWN), 4)}


def batch(step: int = 0) -> Batch:
    return sleep_batch(OWN, LABELLED, LABELS, step=step)


def recall() -> ClassRecall:
    """Queues of three: one full, one with one row, one with two, and none of the last stage."""
    filled = torch.tensor([3, 1, 2, 0])
    rows = torch.randn(4, 3, WIDTH, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    rows[torch.arange(3) >= filled[:, None]] = 0
    return ClassRecall(rows.mean(1), filled > 0, torch.zeros(4, dtype=torch.long), rows, filled)


def epochs(ids: list[list[int]], scored: slice) -> list[tuple[int, int]]:
    """Sequence and position of the epochs that count."""
    inside = range(SEQUENCE)[scored]
    return [(s, n) for s, row in enumerate(ids) for n in inside if n == 0 or row[n] != row[n - 1]]


def picked(x: Tensor, places: list[tuple[int, int]]) -> Tensor:
    return torch.stack([x[place] for place in places])


def expected(method: Sleep, out: dict[str, Tensor], known: ClassRecall | None) -> dict[str, Tensor]:
    """The terms, without their weights."""
    config, scored = method.config, method.scored
    few, many = epochs(LABELLED, scored), epochs(OWN, scored)
    with_stage = [(s, n) for s, n in few if LABELS[s][n] >= 0]
    stages = torch.tensor([LABELS[s][n] for s, n in with_stage])
    counts = torch.tensor(CLASSES.labelled).double()
    prior = (counts / counts.sum()).log().float()  # the method holds both in float32
    logits = picked(out["labelled"], with_stage) + config.adjust * prior.double()
    raw = counts**-config.stage_power
    weights = (raw * counts.sum() / (counts * raw).sum()).float().double()
    terms = {"supervised": (weights[stages] * cross_entropy(logits, stages, reduction="none")).mean()}
    noisy = []
    if config.noise.nights != "unlabelled":
        noisy.append((picked(out["labelled"], few), picked(out["labelled_noisy"], few)))
    if config.noise.nights != "labelled":
        noisy.append((picked(out["weak"], many), picked(out["strong"], many)))
    how = config.noise
    clean, noise = (torch.cat(rows) for rows in zip(*noisy, strict=True))
    total, count = noise_consistency(clean, noise, distance=how.distance, detach_clean=how.detach_clean)
    terms["noise"] = total / count
    of = out["weak_average"] if config.pseudo == "average" else out["weak"]
    pseudo = picked(of, many).detach().softmax(1)
    confident = [k for k in range(len(many)) if float(pseudo[k].max()) >= config.fixmatch.threshold]
    strong = picked(out["strong"], many)
    terms["fixmatch"] = sum((-strong[k].log_softmax(0)[pseudo[k].argmax()] for k in confident), strong.sum() * 0)
    terms["fixmatch"] = terms["fixmatch"] / len(many)
    terms["sequential"] = sequential(config, out, many)
    a, b = picked(out["weak_rows"], many), picked(out["strong_rows"], many)
    terms["ccssl"] = ccssl(
        a, b, pseudo, keys_a=a, keys_b=b, key_pseudo=pseudo, offset=0,
        temperature=config.ccssl.temperature, push=config.ccssl.push,
    )  # fmt: skip
    anchors, classes = picked(out["labelled_rows"], with_stage), stages
    if known is not None:
        places = [(c, k) for c in range(4) for k in range(int(known.filled[c]))]
        anchors, classes = picked(known.rows, places), torch.tensor([c for c, _ in places])
    total, count = ssc(
        anchors, classes, torch.cat([a, b]), torch.cat([pseudo, pseudo]), temperature=config.ssc.temperature,
        threshold=config.ssc.threshold, normaliser=config.ssc.normaliser,
    )  # fmt: skip
    return terms | {"ssc": total / count}


def sequential(config: SleepConfig, out: dict[str, Tensor], places: list[tuple[int, int]]) -> Tensor:
    """L_SC of each sequence's epochs that count, whose weights are those of their positions; by pairs, in loops."""
    weights = pair_weights(SEQUENCE, w_min=config.sequential.w_min)
    b = out["strong_rows"].detach() if config.sequential.detach_b else out["strong_rows"]
    views = [rows / rows.norm(dim=2, keepdim=True) for rows in (out["weak_rows"], b)]
    total = torch.zeros((), dtype=torch.float64)
    for s in range(len(OWN)):
        inside = [n for sequence, n in places if sequence == s]
        for i, j in itertools.product(inside, inside):
            difference = views[0][s, i] @ views[0][s, j] - views[1][s, i] @ views[1][s, j]
            distance = difference.abs() if config.sequential.distance == "l1" else difference**2
            total = total + weights[i, j] * distance / len(inside) ** 2
    return total / len(OWN)


def weights_of(config: SleepConfig) -> dict[str, float]:
    parts = ("noise", "fixmatch", "sequential", "ccssl", "ssc")
    return {"supervised": 1.0, **{name: getattr(config, name).weight for name in parts}}


def inputs(config: SleepConfig, out: dict[str, Tensor]) -> tuple[dict[str, Tensor], Batch]:
    """What a step of ``config`` gets: the only stream is the labelled one if nothing is learnt without labels."""
    return out, batch() if config.uses_unlabelled else sleep_batch(LABELLED, None, LABELS)


@pytest.mark.parametrize("backbone", ["sleepformer", "soundsleepnet"])
@pytest.mark.parametrize("case", CASES)
def test_the_terms_are_the_losses_of_the_epochs_that_count(case: str, backbone: str) -> None:
    """In value and gradient. SoundSleepNet scores the middle two of four epochs."""
    method = build_sleep(backbone, **CASES[case])
    assert method.scored == (slice(0, 4) if backbone == "sleepformer" else slice(1, 3))
    config, known = method.config, recall() if method.config.remembers_anchors else None
    out, twin = outputs(), outputs()
    step = method.step(*inputs(config, out), known)
    terms = expected(method, twin, known)
    weights = weights_of(config)
    same_gradients(step.loss, out, sum(weights[name] * terms[name] for name in weights), twin)
    for name, value in terms.items():
        assert (name in step.terms) == (weights[name] > 0)
        if name in step.terms:
            torch.testing.assert_close(step.terms[name], value.detach(), rtol=1e-6, atol=1e-9)
    assert not any(term.requires_grad for term in step.terms.values())


def spoilt(out: dict[str, Tensor], scored: slice) -> dict[str, Tensor]:
    """Other values at all places that do not count."""
    generator, changed = torch.Generator().manual_seed(5), {}
    for name, values in out.items():
        ids = OWN if name.startswith(("weak", "strong")) else LABELLED
        counted = torch.zeros(values.shape[:2], dtype=torch.bool)
        for place in epochs(ids, scored):
            counted[place] = True
        other = 9 * torch.randn(values.shape, generator=generator, dtype=torch.float64)
        changed[name] = torch.where(counted[:, :, None], values.detach(), other).requires_grad_()
    return changed


@pytest.mark.parametrize("backbone", ["sleepformer", "soundsleepnet"])
@pytest.mark.parametrize("anchors", ["batch", "memory"])
def test_other_epochs_change_nothing(anchors: str, backbone: str) -> None:
    """Not a bit of the loss, of a term, of a count, of what is remembered, or of a gradient; and they have none."""
    method = build_sleep(backbone, **(ALL if anchors == "memory" else ALL_OF_BATCH))
    known = recall() if anchors == "memory" else None
    out = outputs()
    other = spoilt(out, method.scored)
    # the stages of epochs that nobody has scored, and the truth of repeated ones
    given, changed = batch(), batch()
    assert changed.labelled is not None
    for ids, where in ((OWN, changed.truth), (LABELLED, changed.labelled.labels)):
        for s, n in itertools.product(range(len(ids)), range(SEQUENCE)):
            if (s, n) not in epochs(ids, method.scored):
                where[s * SEQUENCE + n] = 2
    one, two = method.step(out, given, known), method.step(other, changed, known)
    assert torch.equal(one.loss, two.loss)
    for mine, theirs in ((one.terms, two.terms), (one.counts or {}, two.counts or {})):
        assert mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)
    one.loss.backward()
    two.loss.backward()
    for name, mine in out.items():
        if mine.grad is None:
            assert other[name].grad is None
            continue
        torch.testing.assert_close(other[name].grad, mine.grad, rtol=0, atol=0)
        ids = OWN if name.startswith(("weak", "strong")) else LABELLED
        assert {(s, n) for s, n in mine.grad.abs().sum(2).nonzero().tolist()} <= set(epochs(ids, method.scored))
    stored = [to_classes(method.consult(o, b), 0)() for o, b in ((out, given), (other, changed))]
    assert stored[0].features is not None and stored[1].features is not None
    assert (stored[0].features == stored[1].features).all() and (stored[0].labels == stored[1].labels).all()


def test_an_epoch_without_a_stage_has_no_supervised_loss_and_is_no_anchor() -> None:
    method = build_sleep(ssc={"weight": 1.0})
    out, other = outputs(), outputs()
    with torch.no_grad():
        for name in ("labelled", "labelled_rows"):
            for place in ((0, 1), (2, 0)):  # the two with the stage -1
                other[name][place] += 7
    assert torch.equal(method.step(out, batch(), None).loss, method.step(other, batch(), None).loss)


@pytest.mark.parametrize("labels", [[[-1] * 4] * 3, LABELS])
def test_a_batch_without_any_stage_is_finite(labels: list[list[int]]) -> None:
    out = outputs()
    method = build_sleep(**ALL_OF_BATCH)
    step = method.step(out, sleep_batch(OWN, LABELLED, labels), None)
    step.loss.backward()
    assert torch.isfinite(step.loss) and all(x.grad is None or torch.isfinite(x.grad).all() for x in out.values())
    assert (float(step.terms["supervised"]) == 0) == (labels is not LABELS)


def test_a_memory_without_rows_gives_no_loss() -> None:
    empty = ClassRecall(torch.zeros(4, 5), torch.zeros(4).bool(), torch.zeros(4).long(), torch.zeros(4, 3, WIDTH),
                        torch.zeros(4).long())  # fmt: skip
    step = build_sleep(**TERMS["ssc, memory"]).step(outputs(), batch(), empty)
    assert float(step.terms["ssc"]) == 0 and torch.isfinite(step.loss)


@pytest.mark.parametrize("term", ["noise on labelled", "noise on unlabelled", "fixmatch", "sequential", "ccssl", "ssc"])
def test_what_has_no_weight_is_not_computed(term: str) -> None:
    """Outputs that only other terms use may be anything."""
    needs = {
        "noise on labelled": {"labelled", "labelled_noisy"},
        "noise on unlabelled": {"labelled", "weak", "strong"},
        "fixmatch": {"labelled", "weak", "strong"},
        "sequential": {"labelled", "weak", "weak_rows", "strong_rows"},
        "ccssl": {"labelled", "weak", "weak_rows", "strong_rows"},
        "ssc": {"labelled", "labelled_rows", "weak", "weak_rows", "strong_rows"},
    }[term]
    method = build_sleep(**TERMS[term])
    out, other = outputs(), outputs()
    for name in other.keys() - needs:
        other[name] = torch.full_like(other[name], float("nan"))
    steps = [method.step(*inputs(method.config, values), None) for values in (out, other)]
    assert torch.equal(steps[0].loss, steps[1].loss) and torch.isfinite(steps[0].loss)
    assert len(weights_of(method.config).keys() & steps[0].terms.keys()) == 2


def test_the_counts_of_pseudo_labels() -> None:
    method = build_sleep("soundsleepnet", fixmatch={"weight": 1.0, "threshold": 0.6})
    out = outputs()
    step = method.step(out, batch(), None)
    rows = {name: torch.zeros(4, dtype=torch.long) for name in ("predicted", "confident", "right", "truth")}
    places = epochs(OWN, method.scored)
    sure = 0
    for s, n in places:
        share = out["weak"][s, n].softmax(0)
        found, truth = int(share.argmax()), OWN[s][n] % 4
        rows["predicted"][found] += 1
        rows["confident"][found] += int(share[found] >= 0.6)
        rows["right"][found] += int(found == truth)
        rows["truth"][truth] += 1
        sure += int(share[found] >= 0.6)
    assert step.counts is not None and all(torch.equal(step.counts[name], rows[name]) for name in rows)
    assert float(step.terms["confident"]) == pytest.approx(sure / len(places))


@pytest.mark.parametrize(
    ("terms", "own", "labelled"),
    [
        ({}, ["labelled"], []),
        ({"noise": {"weight": 1, "nights": "labelled"}}, ["labelled", "labelled_noisy"], []),
        ({"noise": {"weight": 1, "nights": "unlabelled"}}, ["weak", "strong"], ["labelled"]),
        ({"noise": {"weight": 1, "nights": "both"}}, ["weak", "strong"], ["labelled", "labelled_noisy"]),
        ({"noise": {"weight": 0, "nights": "both"}}, ["labelled"], []),
        ({"ssc": {"weight": 1}}, ["weak", "strong"], ["labelled"]),
    ],
)
def test_views_and_streams(terms: dict[str, Any], own: list[str], labelled: list[str]) -> None:
    config = SleepConfig.model_validate({**terms, "labelled_recipe": "none"})
    views = ViewsConfig()
    segments, few = config.segments(views, 0), config.labelled_segments(views, 0)
    assert [each.name for each in segments] == own and [each.name for each in few] == labelled
    recipes = {each.name: each.recipe for each in (*segments, *few)}
    known = {"labelled": "none", "labelled_noisy": "strong", "weak": "weak", "strong": "strong"}
    assert recipes == {name: known[name] for name in recipes}
    assert config.role == ("unlabelled" if labelled else "labelled") and config.learns_labels


def pictures(names: tuple[str, ...] = NAMES, keyed: bool = True) -> dict[str, View]:
    generator = torch.Generator().manual_seed(2)
    sizes = {"labelled": 2, "labelled_noisy": 2, "weak": 3, "strong": 3}
    made = {}
    for number, name in enumerate(names):
        wave = torch.randn(sizes[name], SEQUENCE, 8, 31, generator=generator) - 4
        made[name] = View(wave, torch.arange(sizes[name]) + 10 * number if keyed else None)
    return made


@pytest.mark.parametrize("features", ["head", "backbone"])
def test_forward(features: str) -> None:
    """Every view as if alone, in eval mode; which rows the contrastive terms get; whose the pseudo-labels are."""
    method = build_sleep("soundsleepnet", **{**ALL_OF_BATCH, "features": features}).eval()
    with torch.no_grad():
        for parameter in method.average.parameters():
            parameter.mul_(1.3)
    views = pictures()
    out = method(views)
    night = method.model.encoder
    dim = 16 if features == "head" else 8
    for name, view in views.items():
        z, own = night.sequence(view.wave, None)
        assert out[f"{name}_rows"].shape == (len(view.wave), SEQUENCE, dim)
        torch.testing.assert_close(out[name], method.model.classifier(z), rtol=1e-4, atol=1e-5)
        rows = z if features == "head" else own
        torch.testing.assert_close(out[f"{name}_rows"], rows, rtol=1e-4, atol=1e-5)
    z = method.average.encoder.sequence(views["weak"].wave, None)[0]
    torch.testing.assert_close(out["weak_average"], method.average.classifier(z), rtol=1e-5, atol=1e-6)
    assert not torch.equal(out["weak_average"], out["weak"]) and not out["weak_average"].requires_grad
    assert "weak_average" not in build_sleep("soundsleepnet", **ALL)(views)


def test_views_without_keys_pass_apart() -> None:
    """Labelled sequences with the recipe none: no dropout, and batch statistics of their own."""
    method = build_sleep("soundsleepnet", {"dropout": 0.5}, **SLEEP_METHOD).train()
    views = pictures() | pictures(("labelled",), keyed=False)
    out = method(views)
    torch.testing.assert_close(
        out["labelled_rows"], method.model.encoder.sequence(views["labelled"].wave, None)[0], rtol=1e-5, atol=1e-6
    )
    assert (out["weak_rows"] == method(views)["weak_rows"]).all()  # the draws follow from the keys


def test_sequences_see_neighbours_in_head_and_not_in_backbone() -> None:
    views = pictures(("labelled",))
    changed = {"labelled": View(views["labelled"].wave.clone(), None)}
    changed["labelled"].wave[:, 3] += torch.randn(8, 31, generator=torch.Generator().manual_seed(0))
    for features, differ in (("head", True), ("backbone", False)):
        method = build_sleep(features=features).eval()
        one, two = (method(each)["labelled_rows"][:, :3] for each in (views, changed))
        assert torch.allclose(one, two, rtol=1e-5, atol=1e-6) != differ


def test_a_stage_that_the_batch_lacks_has_anchors_from_the_memory() -> None:
    """REM was in an earlier batch. Without queues L_SSC has no REM anchor, and no candidate is drawn to it."""
    method = build_sleep(**TERMS["ssc, memory"])
    memory = ClassMemory(ClassSettings(classes=4, dim=WIDTH, length=3, anchors=3))
    first, later = outputs(0), outputs(1)
    no_rem = [[0 if stage == 3 else stage for stage in row] for row in LABELS]
    for step, (out, labels) in enumerate(((first, LABELS), (later, no_rem))):
        given = sleep_batch(OWN, LABELLED, labels, step=step)
        memory.remember(to_classes(method.consult(out, given), step)())
    known = ClassRecall(**{name: torch.tensor(array) for name, array in vars(memory.recall(1)).items()})
    rem = torch.stack([first["labelled_rows"][1, 0], first["labelled_rows"][2, 3]]).detach()
    assert known.filled.tolist() == [
        3,
        3,
        2,
        2,
    ]  # of the first stage and the second there are more than the queues hold
    torch.testing.assert_close(known.rows[3, :2], rem.flip(0).float())
    step = method.step(later, sleep_batch(OWN, LABELLED, no_rem, step=1), known)
    torch.testing.assert_close(step.terms["ssc"], expected(method, later, known)["ssc"].detach(), rtol=1e-5, atol=1e-7)
    without = ClassRecall(
        known.prototypes, known.present, known.histogram, known.rows, known.filled * (torch.arange(4) < 3)
    )
    assert (
        abs(float(method.step(later, sleep_batch(OWN, LABELLED, no_rem), without).terms["ssc"] - step.terms["ssc"]))
        > 1e-3
    )
    assert not known.rows.requires_grad


def test_settings_of_the_memory() -> None:
    facts = JobFacts("c", 90, 9, 9, ViewsConfig(), 16, 4, classes=CLASSES, sequence=4)
    assert SleepConfig().memory(facts) is None
    assert SleepConfig.model_validate({"ssc": {"weight": 0, "anchors": "memory"}}).memory(facts) is None
    made = SleepConfig.model_validate({"ssc": {"weight": 1, "anchors": "memory", "queue": 7}}).memory(facts)
    assert made == ClassSettings(classes=4, dim=16, length=7, anchors=7)


def test_trial_settings_have_every_term() -> None:
    config = SleepConfig.model_validate(SleepConfig.trial_settings())
    assert all(weight > 0 for weight in weights_of(config).values()) and config.remembers_anchors
    small = SleepConfig.model_validate({"ssc": {"weight": 1, "anchors": "memory", "queue": 99}}).for_trial()
    assert small.ssc.queue == 4 and small.ssc.anchors == "memory"
