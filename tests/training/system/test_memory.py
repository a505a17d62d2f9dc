import platform

import pytest

from training.system.memory import memory_bytes, reuse_freed_memory


def test_freed_memory_is_kept_where_the_c_library_knows_how():
    assert reuse_freed_memory() is (platform.libc_ver()[0] == "glibc")


def test_memory_bytes_is_no_more_than_a_container_may_have(tmp_path):
    limit = tmp_path / "memory.max"
    limit.write_text("104857600\n")

    assert memory_bytes(limit) == 104857600


@pytest.mark.parametrize("content", ["max\n", None], ids=["no-limit", "no-container"])
def test_memory_bytes_is_that_of_the_machine_where_nothing_limits_it(tmp_path, content):
    limit = tmp_path / "memory.max"
    if content is not None:
        limit.write_text(content)

    assert memory_bytes(limit) > 2**28
