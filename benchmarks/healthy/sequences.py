"""Sequences: recurrent networks, transformers, letters and words."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from healthy.common import (
    Program,
    book,
    classifier,
    generator,
    loaders,
    regressor,
    sentences,
    usual_step,
    waves,
)


def _tones(n: int, seed: int) -> tuple[Tensor, Tensor]:
    """A tone (N, 25, 1) and its next value (N, 1)."""
    g = generator(seed)
    t = torch.arange(26)
    phase, speed = 6.28 * torch.rand(n, 1, generator=g), 0.2 + 0.4 * torch.rand(n, 1, generator=g)
    x = torch.sin(speed * t + phase) + 0.05 * torch.randn(n, 26, generator=g)
    return x[:, :-1, None].contiguous(), x[:, -1:].contiguous()


class Forecaster(nn.Module):
    """A recurrent layer and a linear one on its last output."""

    def __init__(self, rnn: nn.Module, *, batch_first: bool = True) -> None:
        super().__init__()
        self.rnn, self.head, self.batch_first = rnn, nn.Linear(32, 1), batch_first

    def forward(self, x: Tensor) -> Tensor:
        if self.batch_first:
            return self.head(self.rnn(x)[0][:, -1])
        return self.head(self.rnn(x.transpose(0, 1))[0][-1])


def lstm_forecast(seed: int) -> Program:
    model = Forecaster(nn.LSTM(1, 32, batch_first=True))
    opt = torch.optim.Adam(model.parameters(), lr=5e-3)
    return regressor(model, opt, loaders(_tones, 600, seed), 150, "LSTM forecast")


def gru_time_first(seed: int) -> Program:
    """batch_first=False, and the input is transposed as it must be."""
    model = Forecaster(nn.GRU(1, 32), batch_first=False)
    opt = torch.optim.RMSprop(model.parameters(), lr=3e-3)
    return regressor(model, opt, loaders(_tones, 600, seed), 150, "GRU, time first")


def rnn_given_time_first(seed: int) -> Program:
    """The loader itself gives (time, batch, features)."""
    model = nn.RNN(1, 32, num_layers=2)
    head = nn.Linear(32, 1)

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn, self.head = model, head

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.rnn(x)[0][-1])

    net = Net()
    opt = torch.optim.Adam(net.parameters(), lr=3e-3)
    x, y = _tones(640, 900 + seed)
    train = [(a.transpose(0, 1), b) for a, b in zip(x.split(32), y.split(32), strict=True)]
    x, y = _tones(200, 5900 + seed)
    return regressor(
        net, opt, (train, [(x.transpose(0, 1), y)]), 150, "plain RNN, (time, batch, features)"
    )


def transformer_words(seed: int) -> Program:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.place = nn.Embedding(40, 32), nn.Parameter(torch.zeros(16, 32))
            layer = nn.TransformerEncoderLayer(32, 4, 64, 0.1, batch_first=True)
            self.body = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
            self.head = nn.Linear(32, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.body(self.embed(x) + self.place).mean(1))

    model = Net()
    opt = torch.optim.AdamW(model.parameters(), lr=2e-3)
    return classifier(model, opt, loaders(sentences, 900, seed), 150, "transformer on words", 0.6)


def bag_of_words(seed: int) -> Program:
    """An EmbeddingBag, of which most rows get no gradient in a step (sparse Adagrad)."""

    def rare(n: int, seed: int) -> tuple[Tensor, Tensor]:
        return sentences(n, seed, words=400)

    model = nn.Sequential(nn.EmbeddingBag(400, 16, sparse=False), nn.Linear(16, 3))
    opt = torch.optim.Adagrad(model.parameters(), lr=0.2)
    return classifier(model, opt, loaders(rare, 900, seed), 200, "bag of words", 0.6)


def tied_letters(seed: int) -> Program:
    """A transformer decoder whose embedding is also its last layer."""
    text, other = book(4000, 910 + seed), book(1000, 5910 + seed)

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.place = nn.Embedding(20, 32), nn.Parameter(torch.zeros(16, 32))
            self.block = nn.TransformerEncoderLayer(32, 2, 64, 0.0, batch_first=True)
            self.head = nn.Linear(32, 20, bias=False)
            nn.init.normal_(self.embed.weight, std=0.1)
            self.head.weight = self.embed.weight

        def forward(self, x: Tensor) -> Tensor:
            mask = nn.Transformer.generate_square_subsequent_mask(16)
            return self.head(self.block(self.embed(x) + self.place, src_mask=mask, is_causal=True))

    def loss_fn(out: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(out.transpose(1, 2), y)

    def pairs(of: Tensor) -> tuple[Tensor, Tensor]:
        return of[:-1].unfold(0, 16, 8).contiguous(), of[1:].unfold(0, 16, 8).contiguous()

    model = Net()
    opt = torch.optim.AdamW(model.parameters(), lr=3e-3)
    data = loaders(lambda n, _: pairs(text if n > 200 else other), 500, seed)
    program = classifier(model, opt, data, 200, "tied weights", 0.3, loss_fn=loss_fn)

    def evaluate() -> dict[str, float]:
        model.eval()
        with torch.no_grad():
            right = [(model(x).argmax(2) == y).float().mean() for x, y in data[1]]
        return {"accuracy": float(torch.stack(right).mean())}

    program.evaluate = evaluate
    return program


def word_vectors(seed: int) -> Program:
    """Skip-gram with negative sampling: neighbours in a text of two topics.

    Judged by how often the most similar word is of the same topic: 50 % by guessing.
    """
    g = generator(920 + seed)
    words = 20 * torch.randint(2, (3000, 1), generator=g)
    words = words + torch.randint(20, (3000, 6), generator=g)

    class SkipGram(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.outer = nn.Embedding(40, 16), nn.Embedding(40, 16)

        def forward(self, pairs: Tensor) -> Tensor:
            return (self.inner(pairs[:, 0]) * self.outer(pairs[:, 1])).sum(1)

    model = SkipGram()
    for table in (model.inner, model.outer):
        nn.init.normal_(table.weight, std=0.1)
    opt = torch.optim.Adam(model.parameters(), lr=0.02)

    def step(batch: Sequence[Tensor]) -> float:
        pairs, y = batch
        model.train()
        opt.zero_grad()
        loss = F.binary_cross_entropy_with_logits(model(pairs), y)
        loss.backward()
        opt.step()
        return loss.item()

    def evaluate() -> dict[str, float]:
        with torch.no_grad():
            alike = F.normalize(model.inner.weight) @ F.normalize(model.inner.weight).T
        nearest = alike.fill_diagonal_(-2).argmax(1)
        return {"accuracy": float((nearest // 20 == torch.arange(40) // 20).float().mean())}

    met = torch.cat([words[:, [i, i + 1]] for i in range(5)])
    alone = met.clone()
    alone[:, 1] = torch.randint(40, (len(met),), generator=g)
    items = torch.cat([met, alone])
    labels = torch.cat([torch.ones(len(met)), torch.zeros(len(alone))])
    train, _ = loaders(lambda *_: (items, labels), 1, seed, batch=128)
    loss_fn = F.binary_cross_entropy_with_logits
    return Program(model, loss_fn, opt, train, None, step, evaluate, 200, "word vectors", 0.8)


def one_dimensional_cnn(seed: int) -> Program:
    model = nn.Sequential(
        nn.Conv1d(1, 16, 7, padding=3),
        nn.BatchNorm1d(16),
        nn.ReLU(),
        nn.MaxPool1d(2),
        nn.Conv1d(16, 32, 5, padding=2),
        nn.BatchNorm1d(32),
        nn.ReLU(),
        nn.AdaptiveAvgPool1d(1),
        nn.Flatten(),
        nn.Linear(32, 4),
    )
    opt = torch.optim.Adam(model.parameters(), lr=5e-3)
    return classifier(model, opt, loaders(waves, 900, seed), 200, "one-dimensional CNN", 0.5)


def dilated_causal(seed: int) -> Program:
    """Dilated convolutions with weight normalization, as in WaveNet-like networks."""
    norm = nn.utils.parametrizations.weight_norm
    layers: list[nn.Module] = []
    for k in range(4):
        layers += [nn.ConstantPad1d((2**k, 0), 0.0)]
        layers += [norm(nn.Conv1d(1 if k == 0 else 24, 24, 2, dilation=2**k)), nn.GELU()]
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(24, 4))
    opt = torch.optim.Adam(model.parameters(), lr=5e-3)
    return classifier(model, opt, loaders(waves, 900, seed), 250, "dilated convolutions", 0.45)


def ctc(seed: int) -> Program:
    """Three letters, each for some frames; judged by the share of texts that are read rightly."""
    shapes = torch.randn(5, 10, generator=generator(81))

    def recordings(n: int, seed: int) -> tuple[Tensor, Tensor]:
        g = generator(seed)
        y = torch.randint(1, 5, (n, 3), generator=g)
        at = torch.arange(15) // 5
        x = shapes[y[:, at]] + 0.4 * torch.randn(n, 15, 10, generator=g)
        return x, y

    class Reader(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.rnn = nn.Conv1d(10, 32, 3, padding=1), nn.GRU(32, 32, batch_first=True)
            self.head = nn.Linear(32, 5)

        def forward(self, x: Tensor) -> Tensor:
            h = F.relu(self.conv(x.transpose(1, 2))).transpose(1, 2)
            return self.head(self.rnn(h)[0]).log_softmax(2)

    model = Reader()
    opt = torch.optim.Adam(model.parameters(), lr=5e-3)

    def loss_fn(out: Tensor, y: Tensor) -> Tensor:
        n = len(out)
        return F.ctc_loss(out.transpose(0, 1), y, torch.full((n,), 15), torch.full((n,), 3))

    train, valid = loaders(recordings, 600, seed)

    def evaluate() -> dict[str, float]:
        model.eval()
        right = total = 0
        with torch.no_grad():
            for x, y in valid:
                for path, text in zip(model(x).argmax(2), y, strict=True):
                    read = [k for k in path.unique_consecutive().tolist() if k]
                    right += read == text.unique_consecutive().tolist() or read == text.tolist()
                    total += 1
        return {"accuracy": right / total}

    step = usual_step(model, loss_fn, opt)
    return Program(model, loss_fn, opt, train, valid, step, evaluate, 250, "CTC", 0.3)


def language_model(seed: int) -> Program:
    """The next letter, from texts in their order (not shuffled); guessing is right in 5 %."""
    text, other = book(4000, 800 + seed), book(1000, 5800 + seed)

    class Letters(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.rnn = nn.Embedding(20, 24), nn.GRU(24, 48, batch_first=True)
            self.head = nn.Linear(48, 20)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.rnn(self.embed(x))[0])

    def batches(of: Tensor) -> list[tuple[Tensor, Tensor]]:
        rows = of[:-1].unfold(0, 20, 20), of[1:].unfold(0, 20, 20)
        return list(zip(rows[0].split(10), rows[1].split(10), strict=True))

    model = Letters()
    opt = torch.optim.Adam(model.parameters(), lr=5e-3)

    def loss_fn(out: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(out.flatten(0, 1), y.flatten())

    train, valid = batches(text), batches(other)

    def evaluate() -> dict[str, float]:
        model.eval()
        with torch.no_grad():
            right = [(model(x).argmax(2) == y).float().mean() for x, y in valid]
            loss = [loss_fn(model(x), y) for x, y in valid]
        return {
            "loss": float(torch.stack(loss).mean()),
            "accuracy": float(torch.stack(right).mean()),
        }

    step = usual_step(model, loss_fn, opt)
    return Program(model, loss_fn, opt, train, valid, step, evaluate, 150, "letters in order", 0.3)
