from __future__ import annotations

import pytest
import torch
from torch import nn

from tests.training.helpers import tinynet
from tests.training.learning.test_features import PLAIN, SPEC, samples_of
from training.config.config import Head
from training.errors import ArchitectureRefused, CheckpointRefused, LossNotFinite
from training.learning.features import Features, cached_features
from training.learning.head import (
    FittedHead,
    HeadObjective,
    fit_head,
    install_head,
    read_head,
    write_head,
)
from training.learning.validation import ValidationScore
from training.networks.architectures import normalise


def clusters(n_per_class, seed, spread=0.3, scale=1.0, n_views=1):
    """Returns features of three classes, each scattered around its own centre."""
    generator = torch.Generator().manual_seed(seed)
    indexes = torch.arange(3).repeat(n_per_class)
    noise = spread * torch.randn(n_views, len(indexes), 4, generator=generator)
    return Features(scale * (torch.eye(3, 4)[indexes] + 5 + noise), indexes)


def answers(head, features):
    return (features.values[0] @ head.weight.T + head.bias).argmax(dim=1)


def test_fitted_head_classifies_unseen_features():
    train, unseen = clusters(40, seed=0), clusters(20, seed=1)

    head = fit_head(train, unseen, Head(epochs=60, learning_rate=0.03), HeadObjective(3), seed=0)

    assert head.top1 == (answers(head, unseen) == unseen.indexes).float().mean().item() > 0.95
    logits = unseen.values[0] @ head.weight.T + head.bias
    assert head.nll == pytest.approx(
        nn.functional.cross_entropy(logits, unseen.indexes).item(), rel=1e-4
    )


def test_fit_does_not_depend_on_the_scale_of_the_features():
    settings = Head(epochs=20, learning_rate=0.01)

    heads = [
        fit_head(
            clusters(30, 0, scale=scale),
            clusters(9, 1, scale=scale),
            settings,
            HeadObjective(3),
            seed=0,
        )
        for scale in (1.0, 1000.0)
    ]

    assert heads[0].nll == pytest.approx(heads[1].nll, rel=1e-3)
    torch.testing.assert_close(heads[0].weight, 1000 * heads[1].weight, rtol=1e-2, atol=1e-3)


def test_fit_is_a_pure_function_of_its_arguments():
    train, unseen = clusters(10, seed=0, n_views=3), clusters(5, seed=1)
    settings = Head(epochs=3, batch_size=7)
    torch.manual_seed(1)
    before = torch.get_rng_state()

    one, same, other = (
        fit_head(train, unseen, settings, HeadObjective(3), seed=seed) for seed in (1, 1, 2)
    )

    assert torch.equal(one.weight, same.weight)
    assert not torch.equal(one.weight, other.weight)
    assert torch.equal(torch.get_rng_state(), before)


def test_fit_uses_every_view():
    """Only the second view separates the classes."""
    useful = clusters(30, seed=0)
    values = torch.cat([torch.zeros_like(useful.values), useful.values])
    train = Features(values, useful.indexes)
    settings = Head(epochs=60, learning_rate=0.03)

    head = fit_head(train, clusters(9, seed=1), settings, HeadObjective(3), seed=0)

    assert head.top1 > 0.9


@pytest.mark.parametrize(("best_by", "kept"), [("top1", 2), ("nll", 3)])
def test_fit_keeps_the_best_epoch_by_the_chosen_metric(best_by, kept, monkeypatch):
    results = [(0.5, 1.0), (0.9, 2.0), (0.9, 0.5), (0.7, 0.1), (0.8, 0.3)]
    # The plain NLL goes the other way, and must not count.
    scores = iter(ValidationScore(top1, -nll, nll, 1.0) for top1, nll in results)
    monkeypatch.setattr("training.learning.head.score_validation", lambda *_: next(scores))

    head = fit_head(
        clusters(5, 0), clusters(5, 1), Head(epochs=5), HeadObjective(3, best_by=best_by), seed=0
    )

    assert head.epoch == kept


def test_class_weights_balance_classes_of_different_sizes():
    """The features are blank, so that only the classes' shares can be learned."""
    blank = Features(torch.zeros(1, 40, 4), torch.tensor([0] * 30 + [1] * 10))
    settings = Head(epochs=200, learning_rate=0.05)

    plain = fit_head(blank, blank, settings, HeadObjective(2, best_by="nll"), seed=0)
    weighted = fit_head(
        blank, blank, settings, HeadObjective(2, class_weights=torch.tensor([1.0, 3.0])), seed=0
    )

    assert torch.softmax(plain.bias, 0).tolist() == pytest.approx([0.75, 0.25], abs=0.02)
    assert weighted.bias[0].item() == pytest.approx(weighted.bias[1].item(), abs=0.1)


def test_label_smoothing_keeps_logits_small():
    train, unseen = clusters(30, 0, spread=0.01), clusters(9, 1, spread=0.01)
    settings = Head(epochs=100, learning_rate=0.1)

    sharp, smooth = (
        fit_head(
            train, unseen, settings, HeadObjective(3, label_smoothing=value, best_by="nll"), seed=0
        )
        for value in (0.0, 0.3)
    )

    assert smooth.nll > 10 * sharp.nll
    assert smooth.top1 == sharp.top1 == 1.0


def test_fit_that_diverges_names_the_epoch():
    with pytest.raises(LossNotFinite, match=r"diverged in epoch 1; lower head\.learning_rate"):
        fit_head(clusters(5, 0), clusters(5, 1), Head(learning_rate=1e30), HeadObjective(3), seed=0)


def test_installed_head_gives_the_network_its_answers():
    network = tinynet.TinyNet().eval()
    seen = cached_features(network, samples_of(6), [PLAIN], seed=0)
    head = fit_head(seen, seen, Head(epochs=2), HeadObjective(3), seed=0)

    install_head(network, head)

    pixels = torch.stack([PLAIN(sample.read()) for sample in samples_of(6)])
    with torch.inference_mode():
        logits = network(normalise(pixels, SPEC))
    torch.testing.assert_close(logits, seen.values[0] @ head.weight.T + head.bias)


def test_head_of_another_network_is_refused():
    head = fit_head(clusters(5, 0), clusters(5, 1), Head(epochs=1), HeadObjective(3), seed=0)

    with pytest.raises(ArchitectureRefused, match="another shape"):
        install_head(tinynet.TinyNet(), head)


def test_head_round_trips_through_its_file(tmp_path):
    head = FittedHead(torch.randn(3, 8), torch.randn(3), 0.1 + 0.2, 1 / 3, 1 / 7, 0.9, 7)

    write_head(tmp_path / "head.safetensors", head)
    found = read_head(tmp_path / "head.safetensors")

    assert torch.equal(found.weight, head.weight)
    assert torch.equal(found.bias, head.bias)
    assert (found.score, found.epoch) == (head.score, head.epoch)


def test_head_that_is_damaged_is_refused(tmp_path):
    (tmp_path / "head.safetensors").write_bytes(b"damaged")

    with pytest.raises(CheckpointRefused, match="delete it"):
        read_head(tmp_path / "head.safetensors")
