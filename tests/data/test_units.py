"""A unit survives being killed at any moment: whatever a crash leaves, the next run makes the same shard."""

from __future__ import annotations

from pathlib import Path

import pytest

from rayssl import storage
from rayssl.data import corpus, units
from rayssl.data.corpus import PreparedCorpusConfig
from rayssl.errors import StorageError
from tests.data.corpora import files_below, folder_config, prepare


@pytest.mark.parametrize("writes", [0, 1, 2, 3, 4, 5, 6, 7, 8])
def test_a_crash_after_any_write_changes_nothing_in_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, writes: int
) -> None:
    prepare(folder_config(tmp_path / "in", tmp_path / "whole"))
    settings = folder_config(tmp_path / "in", tmp_path / "out")
    real, left = storage.write_bytes, [writes]

    def fail_when_used_up(uri: str, data: bytes) -> None:
        if left[0] == 0:
            raise StorageError("power cut")
        left[0] -= 1
        real(uri, data)

    with monkeypatch.context() as patch:
        patch.setattr(storage, "write_bytes", fail_when_used_up)
        try:
            prepare(settings)
        except StorageError:
            assert not storage.exists(storage.join(settings.out, "manifest.json"))
    prepare(settings)
    assert files_below(tmp_path / "out") == files_below(tmp_path / "whole")


def test_an_old_record_never_vouches_for_another_runs_shard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def planned(format: str) -> tuple[PreparedCorpusConfig, corpus.PreparePlan]:
        settings = folder_config(tmp_path / "in", tmp_path / "out", format=format)
        return settings, corpus.plan(settings, 0)

    settings, flac = planned("flac")
    _, pcm = planned("pcm16")
    units.process(flac.work, flac.units[0])
    with monkeypatch.context() as patch:  # the other run writes its shard and dies before its record
        patch.setattr(storage, "write_text", lambda uri, text: (_ for _ in ()).throw(StorageError("power cut")))
        with pytest.raises(StorageError, match="power cut"):
            units.process(pcm.work, pcm.units[0])
    prepare(settings)
    prepare(folder_config(tmp_path / "in", tmp_path / "whole"))
    assert files_below(tmp_path / "out") == files_below(tmp_path / "whole")
