"""Room responses: direct path first, unit energy, the decay asked for, seeds; recorded responses."""

import numpy as np
import pytest

from rayssl.views.rooms import from_recordings, generate

RATE = 16000


def test_direct_path_is_first_and_energy_is_one() -> None:
    rooms = generate(32, 4800, RATE, (0.1, 0.5), 1)
    assert rooms.dtype == np.float32
    np.testing.assert_allclose((rooms.astype(np.float64) ** 2).sum(axis=1), 1.0, rtol=1e-5)
    assert (np.abs(rooms).argmax(axis=1) == 0).mean() > 0.9
    assert (rooms[:, 0] > 0.3).all()


@pytest.mark.parametrize("rt60", [0.2, 0.4])
def test_tail_decays_by_60_db_in_rt60(rt60: float) -> None:
    rooms = generate(64, 4800, RATE, (rt60, rt60), 1).astype(np.float64)
    # after the last early reflection (40 ms), mean energies 100 ms apart
    early, late = (rooms[:, at : at + 800] for at in (800, 2400))
    assert 10 * np.log10((early**2).mean() / (late**2).mean()) == pytest.approx(60 * 0.1 / rt60, abs=0.7)


def test_rooms_follow_from_the_seed() -> None:
    assert np.array_equal(generate(4, 1600, RATE, (0.1, 0.3), 1), generate(4, 1600, RATE, (0.1, 0.3), 1))
    assert not np.array_equal(generate(4, 1600, RATE, (0.1, 0.3), 1), generate(4, 1600, RATE, (0.1, 0.3), 2))


def test_recorded_responses_are_aligned_to_their_direct_path() -> None:
    recorded = np.array([0, 5, -3000, 400, -300], dtype=np.int16)
    room = from_recordings([recorded, np.zeros(4, dtype=np.int16)], 6)
    assert room.shape == (1, 6)
    expected = np.array([3000, -400, 300, 0, 0, 0])
    np.testing.assert_allclose(room[0], expected / np.linalg.norm(expected), atol=1e-6)
    with pytest.raises(ValueError, match="sound"):
        from_recordings([np.zeros(4, dtype=np.int16)], 6)
