"""Generated utterances: names are numbers, and reading is speaking."""

from __future__ import annotations

import numpy as np

from rayssl.data import speech
from rayssl.data.sources.checked import CheckedSource
from rayssl.data.sources.synthetic import SyntheticConfig
from tests.data.corpora import listed, read


def test_speakers_of_ranges_that_do_not_meet_differ() -> None:
    first = listed(SyntheticConfig(speakers=3, recordings=2, utterances=2))
    second = listed(SyntheticConfig(speakers=3, recordings=2, utterances=2, first_speaker=3))
    assert len(first) == len(second) == 12
    assert not {one.speaker for one in first} & {one.speaker for one in second}


def test_a_reference_is_spoken_as_its_numbers_say() -> None:
    config = SyntheticConfig(speakers=2, recordings=2, utterances=2, seconds=0.3, seed=5, channel=0.4)
    one = listed(config)[-1]
    assert (one.name, one.speaker, one.recording, one.label) == ("s00001/r01/u001", "s00001", "r01", None)
    spoken = speech.speak(5, 1, 1, 1, seconds=0.3, channel=0.4)
    assert np.array_equal(read(config, [one])[one.name], spoken)
    assert CheckedSource(config).place(one) == config.describe() == "the synthetic source"
    assert config.located() == config


def test_words_are_said_in_turn_and_are_the_labels() -> None:
    config = SyntheticConfig(speakers=1, recordings=1, utterances=5, seconds=0.5, words=3, likeness=0.2, channel=0)
    found = listed(config)
    assert [one.label for one in found] == ["w000", "w001", "w002", "w000", "w001"]
    word = speech.draw_word(0, 1, 0.2)
    assert np.array_equal(
        read(config, found)[found[4].name], speech.speak(0, 0, 0, 4, seconds=0.5, channel=0, word=word)
    )
