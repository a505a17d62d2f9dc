from __future__ import annotations

from tests.corpora.mutated import damaged, run, seeds


def test_damaged_files_never_end_the_process_and_raise_only_image_errors():
    report = run(range(100))

    assert report.failures == []
    assert report.outcomes.total() == 100
    assert {"ok", "image_truncated", "image_undecodable"} <= set(report.outcomes)


def test_damaged_file_is_the_same_for_its_number():
    good = seeds()

    assert damaged(7, good) == damaged(7, good)
    assert damaged(7, good) != damaged(8, good)
