"""The points of a sweep, drawn from its seed: the same in any order, on any machine, and after any interruption."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np

from rayssl.errors import ConfigError
from rayssl.sweeps.config import Choices, Domain, Point, SweepConfig
from rayssl.sweeps.records import TrialRecord

_TRIES = 50  # to find a point that is none of those before


def count(config: SweepConfig) -> int:
    """How many trials the sweep has."""
    if config.search != "grid":
        assert config.trials is not None
        return config.trials
    whole = math.prod(len(domain.choices) for domain in config.space.values() if isinstance(domain, Choices))
    return min(config.trials or whole, whole)


def drawn(config: SweepConfig) -> list[Point]:
    """Every point of a grid or a random search, in order; more ``trials`` only add to them."""
    return _grid(config) if config.search == "grid" else _random(config, count(config))


def suggested(config: SweepConfig, index: int, records: Iterable[TrialRecord]) -> Point:
    """The point that optuna's TPE would try next, as trial ``index``, after those of ``records``.

    A function of its arguments: the study is built from the records each time, so nothing else is kept. Raises
    `ConfigError` where optuna is not installed.
    """
    try:
        import optuna
    except ImportError:
        raise ConfigError("search: optuna is not installed; pip install 'rayssl[sweep]'") from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    domains = {key: _distribution(optuna, domain) for key, domain in config.space.items()}
    seed = int(np.random.SeedSequence([config.seed, index]).generate_state(1)[0])
    # constant_liar counts running trials as poor ones, so that two at once are not alike
    sampler = optuna.samplers.TPESampler(seed=seed, constant_liar=True)
    study = optuna.create_study(sampler=sampler, direction="minimize" if config.mode == "min" else "maximize")
    for record in sorted(records, key=lambda record: record.index):
        study.add_trial(_known_trial(optuna, config, domains, record))
    suggestion = study.ask(domains)
    return {key: _value(domain, suggestion.params[key]) for key, domain in config.space.items()}


def perturbed(config: SweepConfig, point: Point, rng: np.random.Generator) -> Point:
    """A point near to ``point``: each value a step up or down, or, one time in four, drawn again.

    A step is to the neighbour among choices, as they were written; by a fifth of a logarithmic value; by a tenth of the
    width of any other range.
    """
    found: Point = {}
    for key, domain in config.space.items():
        up, again = bool(rng.integers(2)), rng.uniform() < 0.25
        value = point[key]
        if again:
            found[key] = _draw(domain, rng)
        elif isinstance(domain, Choices):
            place = domain.choices.index(value) + (1 if up else -1)
            found[key] = domain.choices[min(max(place, 0), len(domain.choices) - 1)]
        elif domain.log:
            found[key] = domain.number(value * (1.2 if up else 1 / 1.2))
        else:
            found[key] = domain.number(value + (0.1 if up else -0.1) * (domain.high - domain.low))
    return found


def _grid(config: SweepConfig) -> list[Point]:
    choices = [domain.choices for domain in config.space.values() if isinstance(domain, Choices)]
    shape = [len(each) for each in choices]
    order = np.random.default_rng(config.seed).permutation(math.prod(shape))[: count(config)]
    places = np.stack(np.unravel_index(order, shape), axis=1)
    return [{key: each[int(k)] for key, each, k in zip(config.space, choices, place, strict=True)} for place in places]


def _random(config: SweepConfig, trials: int) -> list[Point]:
    points: list[Point] = []
    for index in range(trials):
        rng = np.random.default_rng([config.seed, index])
        point: Point = {}
        for _ in range(_TRIES):
            point = {key: _draw(domain, rng) for key, domain in config.space.items()}
            if point not in points:
                break
        points.append(point)
    return points


def _draw(domain: Domain, rng: np.random.Generator) -> Any:
    if isinstance(domain, Choices):
        return domain.choices[int(rng.integers(len(domain.choices)))]
    if domain.log:
        return domain.number(math.exp(rng.uniform(math.log(domain.low), math.log(domain.high))))
    if domain.integer:
        return int(rng.integers(int(domain.low), int(domain.high) + 1))
    return domain.number(rng.uniform(domain.low, domain.high))


def _distribution(optuna: Any, domain: Domain) -> Any:
    kinds = optuna.distributions
    if isinstance(domain, Choices):
        return kinds.CategoricalDistribution(list(range(len(domain.choices))))  # by place: values may be lists
    if domain.integer:
        return kinds.IntDistribution(int(domain.low), int(domain.high), log=domain.log)
    return kinds.FloatDistribution(domain.low, domain.high, log=domain.log)


def _value(domain: Domain, found: Any) -> Any:
    return domain.choices[found] if isinstance(domain, Choices) else domain.number(found)


def _known_trial(optuna: Any, config: SweepConfig, domains: dict[str, Any], record: TrialRecord) -> Any:
    """A record as a trial of optuna; stopped ones count as pruned, with their values so far."""
    states = optuna.trial.TrialState
    params = {
        key: domain.choices.index(record.point[key]) if isinstance(domain, Choices) else record.point[key]
        for key, domain in config.space.items()
    }
    state = {"finished": states.COMPLETE, "stopped": states.PRUNED, "failed": states.FAIL}.get(
        record.state, states.RUNNING
    )
    return optuna.trial.create_trial(
        state=state,
        params=params,
        distributions=domains,
        value=record.value if record.state == "finished" else None,
        intermediate_values={rung.epoch: rung.value for rung in record.rungs},
    )
