from __future__ import annotations

from contextlib import contextmanager

import pytest
import torch
from torch import nn

from contract.images.decoding import decode
from tests.training import tinynet
from training.config.config import Augment, Head
from training.data.augment import Augmentation
from training.data.batches import Plain
from training.data.samples import Sample
from training.errors import ArchitectureRefused, DataRefused, LossNotFinite
from training.learning import features
from training.learning.features import (
    Extraction,
    Features,
    Objective,
    cached_features,
    fit_head,
    install_head,
    linear_classifier,
)
from training.networks.architectures import normalise

SPEC = tinynet.spec()
PLAIN = Plain(SPEC)


def samples_of(n):
    return [
        Sample(f"{i}.png", i % 3, data=tinynet.picture(tinynet.NAMES[i % 3], seed=i))
        for i in range(n)
    ]


def clusters(n_per_class, seed, spread=0.3, scale=1.0, n_views=1):
    """Returns features of three classes around three corners."""
    generator = torch.Generator().manual_seed(seed)
    indexes = torch.arange(3).repeat(n_per_class)
    noise = spread * torch.randn(n_views, len(indexes), 4, generator=generator)
    return Features(scale * (torch.eye(3, 4)[indexes] + 5 + noise), indexes)


def answers(head, features):
    return (features.values[0] @ head.weight.T + head.bias).argmax(dim=1)


def test_cached_features_are_what_the_classifier_gets():
    network, samples = tinynet.TinyNet().eval(), samples_of(5)

    seen = cached_features(network, samples, [PLAIN], seed=0, extraction=Extraction(batch_size=2))

    assert seen.values.shape == (1, 5, 6)
    assert seen.values.dtype == torch.float32
    assert seen.indexes.tolist() == [0, 1, 2, 0, 1]
    pixels = torch.stack([PLAIN(decode(sample.read())) for sample in samples])
    with torch.inference_mode():
        logits = network(normalise(pixels, SPEC))
        torch.testing.assert_close(network.classifier(seen.values[0]), logits)


def test_each_augmented_view_is_another_one_and_the_same_for_the_same_seed():
    network, samples = tinynet.TinyNet().eval(), samples_of(3)
    random = Augmentation(Augment(color_jitter=0.5), SPEC)

    one = cached_features(network, samples, [PLAIN, random, random], seed=1)
    again = cached_features(network, samples, [PLAIN, random, random], seed=1)
    other = cached_features(network, samples, [PLAIN, random, random], seed=2)

    assert torch.equal(one.values, again.values)
    assert torch.equal(one.values[0], other.values[0])
    assert not torch.isclose(one.values[1], one.values[2]).all(dim=1).any()
    assert not torch.isclose(one.values[1], other.values[1]).all(dim=1).any()


def test_views_do_not_depend_on_the_batch_size():
    network, samples = tinynet.TinyNet().eval(), samples_of(5)
    random = Augmentation(Augment(rotate_degrees=30), SPEC)

    small, large = (
        cached_features(network, samples, [random], seed=1, extraction=Extraction(batch_size=n))
        for n in (2, 5)
    )

    torch.testing.assert_close(small.values, large.values)


def test_extraction_tells_progress_and_uses_the_given_context():
    entered: list[bool] = []
    progress: list[int] = []

    @contextmanager
    def context():
        entered.append(torch.is_inference_mode_enabled())
        yield

    cached_features(
        tinynet.TinyNet().eval(),
        samples_of(5),
        [PLAIN, PLAIN],
        seed=0,
        extraction=Extraction(batch_size=3, autocast=context, progress=progress.append),
    )

    assert progress == [3, 5, 8, 10]
    assert entered == [True] * 4


def test_picture_that_cannot_be_read_is_left_out_of_all_views_with_a_line(caplog):
    samples = [*samples_of(3), Sample("bad.png", 1, data=b"no picture")]

    seen = cached_features(
        tinynet.TinyNet(),
        samples,
        [PLAIN, PLAIN],
        seed=0,
    )

    assert seen.values.shape == (2, 3, 6)
    assert seen.indexes.tolist() == [0, 1, 2]
    assert all(line.startswith("bad.png is left out") for line in caplog.messages)


def test_no_readable_picture_at_all_is_an_error():
    with pytest.raises(DataRefused, match="none of the pictures"):
        cached_features(tinynet.TinyNet(), [Sample("a", 0, data=b"")], [PLAIN], seed=0)


@pytest.mark.parametrize("training", [True, False])
def test_network_runs_in_evaluation_mode_and_stays_as_it_was(training):
    class Watched(tinynet.TinyNet):
        modes: list[bool] = []  # noqa: RUF012 - shared on purpose

        def forward_features(self, x):
            self.modes.append(self.training)
            return super().forward_features(x)

    network = Watched().train(training)

    cached_features(network, samples_of(2), [PLAIN], seed=0)

    assert network.modes[-1] is False
    assert network.training is training


class Normalising(tinynet.TinyNet):
    """Normalises between what `forward_head` calls the embedding and the classifier."""

    def forward_head(self, x, pre_logits=False):
        pooled = self.pool(x).flatten(1)
        return pooled if pre_logits else self.classifier(10 * pooled - 3)


def test_features_are_the_classifiers_input_even_if_that_is_not_the_embedding():
    network, samples = Normalising().eval(), samples_of(4)

    seen = cached_features(network, samples, [PLAIN], seed=0)

    pixels = torch.stack([PLAIN(decode(sample.read())) for sample in samples])
    with torch.inference_mode():
        expected = network(normalise(pixels, SPEC))
        torch.testing.assert_close(network.classifier(seen.values[0]), expected)


class Twice(tinynet.TinyNet):
    def forward(self, x):
        return super().forward(x) + super().forward(-x)


def test_classifier_that_is_asked_twice_is_refused():
    with pytest.raises(ArchitectureRefused, match="leave"):
        cached_features(Twice().eval(), samples_of(2), [PLAIN], seed=0)


class TwoHeads(tinynet.TinyNet):
    def get_classifier(self):
        return self.classifier, self.classifier


@pytest.mark.parametrize("network", [TwoHeads(), nn.Linear(2, 2)], ids=["two", "none"])
def test_network_without_one_linear_classifier_is_refused(network):
    with pytest.raises(ArchitectureRefused, match=r"leave \[head\] out"):
        linear_classifier(network)


def test_fitted_head_tells_classes_of_unseen_features_apart():
    train, unseen = clusters(40, seed=0), clusters(20, seed=1)

    head = fit_head(train, unseen, Head(epochs=60, learning_rate=0.03), Objective(3), seed=0)

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
            Objective(3),
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
        fit_head(train, unseen, settings, Objective(3), seed=seed) for seed in (1, 1, 2)
    )

    assert torch.equal(one.weight, same.weight)
    assert not torch.equal(one.weight, other.weight)
    assert torch.equal(torch.get_rng_state(), before)


def test_fit_sees_every_view():
    """Only the second view tells the classes apart."""
    useful = clusters(30, seed=0)
    values = torch.cat([torch.zeros_like(useful.values), useful.values])
    train = Features(values, useful.indexes)
    settings = Head(epochs=60, learning_rate=0.03)

    head = fit_head(train, clusters(9, seed=1), settings, Objective(3), seed=0)

    assert head.top1 > 0.9


@pytest.mark.parametrize(("best_by", "kept"), [("top1", 2), ("nll", 3)])
def test_kept_epoch_is_the_best_by_the_chosen_metric(best_by, kept, monkeypatch):
    judged = iter([(0.5, 1.0), (0.9, 2.0), (0.9, 0.5), (0.7, 0.1), (0.8, 0.3)])
    monkeypatch.setattr(features, "_judge", lambda *_: next(judged))

    head = fit_head(
        clusters(5, 0), clusters(5, 1), Head(epochs=5), Objective(3, best_by=best_by), seed=0
    )

    assert head.epoch == kept


def test_class_weights_even_out_classes_of_other_sizes():
    """Features that say nothing: all that is left are the classes' shares."""
    blank = Features(torch.zeros(1, 40, 4), torch.tensor([0] * 30 + [1] * 10))
    settings = Head(epochs=200, learning_rate=0.05)

    plain = fit_head(blank, blank, settings, Objective(2, best_by="nll"), seed=0)
    weighed = fit_head(
        blank, blank, settings, Objective(2, class_weights=torch.tensor([1.0, 3.0])), seed=0
    )

    assert torch.softmax(plain.bias, 0).tolist() == pytest.approx([0.75, 0.25], abs=0.02)
    assert weighed.bias[0].item() == pytest.approx(weighed.bias[1].item(), abs=0.1)


def test_label_smoothing_keeps_logits_small():
    train, unseen = clusters(30, 0, spread=0.01), clusters(9, 1, spread=0.01)
    settings = Head(epochs=100, learning_rate=0.1)

    sharp, smooth = (
        fit_head(
            train, unseen, settings, Objective(3, label_smoothing=value, best_by="nll"), seed=0
        )
        for value in (0.0, 0.3)
    )

    assert smooth.nll > 10 * sharp.nll
    assert smooth.top1 == sharp.top1 == 1.0


def test_fit_that_diverges_names_the_epoch():
    with pytest.raises(LossNotFinite, match=r"diverged in epoch 1; lower head\.learning_rate"):
        fit_head(clusters(5, 0), clusters(5, 1), Head(learning_rate=1e30), Objective(3), seed=0)


def test_installed_head_gives_the_fitted_answers_in_the_network():
    network = tinynet.TinyNet().eval()
    seen = cached_features(network, samples_of(6), [PLAIN], seed=0)
    head = fit_head(seen, seen, Head(epochs=2), Objective(3), seed=0)

    install_head(network, head)

    pixels = torch.stack([PLAIN(decode(sample.read())) for sample in samples_of(6)])
    with torch.inference_mode():
        logits = network(normalise(pixels, SPEC))
    torch.testing.assert_close(logits, seen.values[0] @ head.weight.T + head.bias)


def test_head_of_another_network_is_refused():
    head = fit_head(clusters(5, 0), clusters(5, 1), Head(epochs=1), Objective(3), seed=0)

    with pytest.raises(ArchitectureRefused, match="another shape"):
        install_head(tinynet.TinyNet(), head)
