from __future__ import annotations

from contextlib import contextmanager

import pytest
import torch
from torch import nn

from tests.training.helpers import tinynet
from training.config.config import Augment
from training.data.augment import Augmentation
from training.data.batches import EvaluationTransform
from training.data.samples import Sample
from training.errors import ArchitectureRefused, DataRefused
from training.learning.features import FeatureExtraction, cached_features, linear_classifier
from training.networks.architectures import normalise

SPEC = tinynet.spec()
PLAIN = EvaluationTransform(SPEC)


def samples_of(n):
    return [
        Sample(f"{i}.png", i % 3, data=tinynet.picture(tinynet.NAMES[i % 3], seed=i))
        for i in range(n)
    ]


def test_cached_features_are_the_input_of_the_classifier():
    network, samples = tinynet.TinyNet().eval(), samples_of(5)

    seen = cached_features(
        network, samples, [PLAIN], seed=0, extraction=FeatureExtraction(batch_size=2)
    )

    assert seen.values.shape == (1, 5, 6)
    assert seen.values.dtype == torch.float32
    assert seen.indexes.tolist() == [0, 1, 2, 0, 1]
    pixels = torch.stack([PLAIN(sample.read()) for sample in samples])
    with torch.inference_mode():
        logits = network(normalise(pixels, SPEC))
        torch.testing.assert_close(network.classifier(seen.values[0]), logits)


def test_augmented_views_differ_and_repeat_for_the_same_seed():
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
        cached_features(
            network, samples, [random], seed=1, extraction=FeatureExtraction(batch_size=n)
        )
        for n in (2, 5)
    )

    torch.testing.assert_close(small.values, large.values)


def test_extraction_uses_the_given_context_for_each_batch():
    inference_modes: list[bool] = []

    @contextmanager
    def context():
        inference_modes.append(torch.is_inference_mode_enabled())
        yield

    cached_features(
        tinynet.TinyNet().eval(),
        samples_of(5),
        [PLAIN, PLAIN],
        seed=0,
        extraction=FeatureExtraction(batch_size=3, autocast=context),
    )

    assert inference_modes == [True] * 4


def test_unreadable_picture_is_left_out_of_all_views_and_logged(caplog):
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


def test_no_readable_picture_is_refused():
    with pytest.raises(DataRefused, match="none of the pictures"):
        cached_features(tinynet.TinyNet(), [Sample("a", 0, data=b"")], [PLAIN], seed=0)


@pytest.mark.parametrize("training", [True, False])
def test_network_runs_in_evaluation_mode_and_returns_to_its_own(training):
    class ModeRecording(tinynet.TinyNet):
        modes: list[bool] = []  # noqa: RUF012 - shared on purpose

        def forward_features(self, x):
            self.modes.append(self.training)
            return super().forward_features(x)

    network = ModeRecording().train(training)

    cached_features(network, samples_of(2), [PLAIN], seed=0)

    assert network.modes[-1] is False
    assert network.training is training


class Normalising(tinynet.TinyNet):
    """Normalises between the embedding and the classifier."""

    def forward_head(self, x, pre_logits=False):
        pooled = self.pool(x).flatten(1)
        return pooled if pre_logits else self.classifier(10 * pooled - 3)


def test_features_are_the_classifiers_input_even_if_that_is_not_the_embedding():
    network, samples = Normalising().eval(), samples_of(4)

    seen = cached_features(network, samples, [PLAIN], seed=0)

    pixels = torch.stack([PLAIN(sample.read()) for sample in samples])
    with torch.inference_mode():
        expected = network(normalise(pixels, SPEC))
        torch.testing.assert_close(network.classifier(seen.values[0]), expected)


class CallsTwice(tinynet.TinyNet):
    def forward(self, x):
        return super().forward(x) + super().forward(-x)


def test_classifier_that_is_called_twice_is_refused():
    with pytest.raises(ArchitectureRefused, match="leave"):
        cached_features(CallsTwice().eval(), samples_of(2), [PLAIN], seed=0)


class TwoHeads(tinynet.TinyNet):
    def get_classifier(self):
        return self.classifier, self.classifier


@pytest.mark.parametrize("network", [TwoHeads(), nn.Linear(2, 2)], ids=["two", "none"])
def test_network_without_one_linear_classifier_is_refused(network):
    with pytest.raises(ArchitectureRefused, match=r"leave \[head\] out"):
        linear_classifier(network)
