from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from contract.preprocessing import read_pixels
from tests.training.helpers import tinynet
from training.config.config import Augment
from training.data.augment import Augmentation
from training.data.batches import Batches, EvaluationTransform, Sampling
from training.data.samples import Sample

SPEC = tinynet.spec()


def samples_of(n, classes=3):
    """Returns pictures in memory, each with different noise."""
    names = tinynet.NAMES
    return [
        Sample(f"{i}.png", i % classes, data=tinynet.picture(names[i % 3], seed=i, size=(40, 36)))
        for i in range(n)
    ]


@dataclass(frozen=True)
class SeedTagged(EvaluationTransform):
    """Writes the seed it was called with into the corner of the picture."""

    def __call__(self, data: bytes, seed: tuple[int, ...] = ()) -> torch.Tensor:
        pixels = super().__call__(data)
        pixels[0, 0, : len(seed)] = torch.tensor([part % 256 for part in seed], dtype=torch.uint8)
        return pixels


class CountedSample(Sample):
    """A sample that records each read."""

    reads: list[str] = []  # noqa: RUF012 - shared on purpose

    def read(self) -> bytes:
        self.reads.append(self.name)
        return super().read()


@pytest.fixture
def reads():
    CountedSample.reads.clear()
    return CountedSample.reads


def test_batches_of_an_epoch_contain_every_picture_once_in_nearly_equal_parts():
    batches = Batches(samples_of(10), EvaluationTransform(SPEC), batch_size=4, sampling=Sampling(0))

    epoch = list(batches.epoch(0))

    assert len(batches) == 3
    assert sorted(len(batch.images) for batch in epoch) == [3, 3, 4]
    assert sorted(torch.cat([batch.numbers for batch in epoch]).tolist()) == list(range(10))
    assert [batch.global_size for batch in epoch] == [len(batch.images) for batch in epoch]


def test_batches_contain_the_pixels_the_service_sees_and_their_classes():
    samples = samples_of(5)

    (batch,) = Batches(samples, EvaluationTransform(SPEC), batch_size=8).epoch(0)

    assert batch.images.shape == (5, 3, 32, 32)
    assert batch.images.dtype == torch.uint8
    assert batch.numbers.tolist() == [0, 1, 2, 3, 4]
    assert batch.indexes.tolist() == [0, 1, 2, 0, 1]
    for image, sample in zip(batch.images, samples, strict=True):
        expected = read_pixels(sample.read(), SPEC)
        np.testing.assert_array_equal(image.permute(1, 2, 0).numpy(), expected)


def test_batches_give_each_position_a_seed_of_its_own():
    batches = Batches(samples_of(6), SeedTagged(SPEC), batch_size=4, sampling=Sampling(7))

    seeds = [
        tuple(image[0, 0, :3].tolist()) for batch in batches.epoch(2) for image in batch.images
    ]

    assert sorted(seeds) == [(7, 2, i) for i in range(6)]


def test_unshuffled_batches_are_seeded_and_in_order():
    sampling = Sampling(7, shuffled=False)
    (batch,) = Batches(samples_of(3), SeedTagged(SPEC), batch_size=4, sampling=sampling).epoch(1)

    assert batch.numbers.tolist() == [0, 1, 2]
    assert batch.images[:, 0, 0, :3].tolist() == [[7, 1, 0], [7, 1, 1], [7, 1, 2]]


def test_balanced_batches_augment_each_repeat_of_a_rare_picture_anew():
    samples = [*samples_of(9, classes=1), Sample("rare", 1, data=tinynet.picture("blue"))]
    batches = Batches(samples, SeedTagged(SPEC), batch_size=10, sampling=Sampling(0, balanced=True))

    (batch,) = batches.epoch(0)

    rare = batch.images[batch.indexes == 1]
    assert len(rare) == 5
    assert len({tuple(image[0, 0, :3].tolist()) for image in rare}) == 5


@pytest.mark.parametrize("world", [2, 3])
def test_processes_together_get_the_batches_of_one_process(world):
    changes = Augment(flip=0.5, rotate_degrees=10, crop_scale=(0.5, 1.0))
    batches = Batches(
        samples_of(11), Augmentation(changes, SPEC), batch_size=6, sampling=Sampling(1)
    )

    whole = list(batches.epoch(3))

    parts = [list(batches.epoch(3, rank=rank, world=world)) for rank in range(world)]
    for step, batch in enumerate(whole):
        by_number = {
            int(number): image
            for rank in parts
            for number, image in zip(rank[step].numbers, rank[step].images, strict=True)
        }
        assert sorted(by_number) == sorted(batch.numbers.tolist())
        assert all(rank[step].global_size == len(batch.images) for rank in parts)
        for number, image in zip(batch.numbers.tolist(), batch.images, strict=True):
            assert torch.equal(by_number[number], image)


def test_epoch_from_a_later_step_reads_nothing_before_it(reads):
    samples = [CountedSample(s.name, s.index, data=s.data) for s in samples_of(9)]
    batches = Batches(samples, EvaluationTransform(SPEC), batch_size=3, sampling=Sampling(4))
    whole = list(batches.epoch(1))
    reads.clear()

    rest = list(batches.epoch(1, first_step=2))

    assert len(rest) == 1
    assert torch.equal(rest[0].images, whole[2].images)
    assert len(reads) == 3


def test_epoch_reads_one_batch_at_a_time(reads):
    samples = [CountedSample(s.name, s.index, data=s.data) for s in samples_of(9)]

    next(Batches(samples, EvaluationTransform(SPEC), batch_size=3).epoch(0))

    assert len(reads) == 3


def broken_samples(tmp_path):
    """Returns five samples: one is missing, one is truncated, one is not a picture."""
    good = samples_of(5)
    short = tmp_path / "short.png"
    short.write_bytes((good[1].data or b"")[:200])
    return [
        Sample("gone.png", 0, path=tmp_path / "gone.png"),
        Sample("short.png", 1, path=short),
        Sample("text.png", 2, data=b"no picture"),
        good[3],
        good[4],
    ]


def test_unreadable_files_are_left_out_and_logged_once(tmp_path, caplog):
    batches = Batches(broken_samples(tmp_path), EvaluationTransform(SPEC), batch_size=5)

    first, second = list(batches.epoch(0)), list(batches.epoch(1))

    for (batch,) in (first, second):
        assert batch.numbers.tolist() == [3, 4]
        assert batch.indexes.tolist() == [0, 1]
        assert len(batch.images) == 2
        assert batch.global_size == 5
    lines = caplog.messages
    assert len(lines) == 3
    assert lines[0] == "gone.png is left out: No such file or directory"
    assert lines[1].startswith("short.png is left out: ")
    assert str(tmp_path) not in "".join(lines)


def test_batch_of_unreadable_files_is_empty(tmp_path):
    (batch,) = Batches(broken_samples(tmp_path)[:2], EvaluationTransform(SPEC), batch_size=4).epoch(
        0
    )

    assert batch.images.shape == (0, 3, 32, 32)
    assert batch.indexes.dtype == torch.int64
    assert batch.global_size == 2


def test_no_samples_give_no_batches():
    assert list(Batches([], EvaluationTransform(SPEC), batch_size=4).epoch(0)) == []


def test_worker_processes_give_the_same_batches_epoch_after_epoch(tmp_path, caplog):
    samples = [*samples_of(7), *broken_samples(tmp_path)[:1]]
    prepare = Augmentation(Augment(rotate_degrees=20), SPEC)
    in_process = Batches(samples, prepare, batch_size=4, sampling=Sampling(0))
    torch.manual_seed(0)
    expected_random = torch.rand(1)
    torch.manual_seed(0)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        in_worker = Batches(samples, prepare, batch_size=4, sampling=Sampling(0), workers=1)
        next(in_worker.epoch(0))  # abandoned after one batch
        for epoch, first_step in ((0, 0), (1, 1)):
            expected = list(in_process.epoch(epoch, first_step=first_step))
            found = list(in_worker.epoch(epoch, first_step=first_step))

            assert len(expected) == len(found) == 2 - first_step
            for one, other in zip(expected, found, strict=True):
                assert torch.equal(one.images, other.images)
                assert torch.equal(one.indexes, other.indexes)
                assert torch.equal(one.numbers, other.numbers)
        in_worker.close()

    assert caplog.messages == 2 * ["gone.png is left out: No such file or directory"]
    assert torch.equal(torch.rand(1), expected_random)
