"""Components as a user would write them, in files outside of the package; right ones and ones that break a rule."""

from __future__ import annotations

from pathlib import Path

METHOD = '''
import torch
from rayssl import collectives
from rayssl.losses.ntxent import ntxent
from rayssl.methods.base import Step, embed_together
from rayssl.methods.pair import PairConfig, PairMethod


class Contrast(PairMethod):
    class Config(PairConfig):
        temperature: float = 0.5

    def __init__(self, config, encoder, views):
        super().__init__(config, encoder, views)
        self.seen = 0

    def forward(self, views):
        a, b = embed_together(self.encoder, [views["anchor"], views["positive"]])
        return {"anchor": self.projector(a), "positive": self.projector(b)}

    def step(self, out, batch, recall):
        a, b = out["anchor"], out["positive"]
        keys_a, keys_b = self.everyone(a), self.everyone(b)
        offset = collectives.rank() * len(a)
        loss = ntxent(a, b, keys_a=keys_a, keys_b=keys_b, offset=offset, temperature=self.config.temperature)
        return Step(self.changed(loss), {})

    def everyone(self, rows):
        return collectives.gather(rows)

    def changed(self, loss):
        return loss


class Detached(Contrast):
    """Rows of other ranks come without gradient."""

    class Config(Contrast.Config):
        pass

    def everyone(self, rows):
        parts = list(collectives.gather(rows.detach()).split(len(rows)))
        parts[collectives.rank()] = rows
        return torch.cat(parts)


class Alone(Contrast):
    """Each rank contrasts its own rows only."""

    class Config(Contrast.Config):
        pass

    def step(self, out, batch, recall):
        a, b = out["anchor"], out["positive"]
        return Step(ntxent(a, b, keys_a=a, keys_b=b, offset=0, temperature=0.5), {})


class Forgetful(Contrast):
    """What it counts is in no checkpoint."""

    class Config(Contrast.Config):
        pass

    def changed(self, loss):
        self.seen += 1
        return loss * self.seen


class Unseeded(Contrast):
    """It draws from a generator that nobody seeds."""

    class Config(Contrast.Config):
        pass

    def __init__(self, config, encoder, views):
        super().__init__(config, encoder, views)
        self.generator = torch.Generator()
        self.generator.seed()

    def changed(self, loss):
        return loss * torch.rand((), generator=self.generator)


class Broken(Contrast):
    class Config(Contrast.Config):
        pass

    def changed(self, loss):
        raise KeyError("temprature")
'''

BACKBONE = '''
import os
from pathlib import Path

import torch
from torch import nn
from rayssl.models.base import Backbone, BackboneConfig, Frontend, FrontendConfig


class Mean(Backbone):
    """The mean over time, and a layer. Each one that is built leaves a line in ``log``."""

    class Config(BackboneConfig):
        embedding_dim: int = 16
        log: str = ""

    least_frames = 2

    def __init__(self, config, features):
        super().__init__()
        self.project = nn.Linear(features, config.embedding_dim)
        if config.log:
            with open(config.log, "a") as file:
                file.write(f"{os.getpid()}\\n")

    def forward(self, features):
        return self.project(features.mean(-1))


class Sideways(Mean):
    """An embedding of another size than it says."""

    class Config(Mean.Config):
        pass

    def __init__(self, config, features):
        super().__init__(config, features)
        self.project = nn.Linear(features, 3)


class Energy(Frontend):
    """Log energy of eight stretches of each frame."""

    class Config(FrontendConfig):
        hop: int = 160

        @property
        def features(self):
            return 8

    def __init__(self, config, rate):
        super().__init__()
        self.hop = config.hop

    def forward(self, wave):
        frames = wave.float().unfold(1, self.hop, self.hop).unflatten(2, (8, -1))
        return torch.log(frames.square().mean(-1) + 1e-6).transpose(1, 2)

    def samples_for(self, frames):
        return frames * self.hop
'''


def write(folder: Path, text: str, name: str) -> str:
    """Writes a file of components; its path."""
    path = folder / name
    path.write_text(text)
    return str(path)
