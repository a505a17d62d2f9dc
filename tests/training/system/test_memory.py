import platform

import pytest

from training.system.memory import memory_bytes, reuse_freed_memory


def test_reuse_freed_memory_works_with_glibc_only():
    assert reuse_freed_memory() is (platform.libc_ver()[0] == "glibc")


def test_memory_bytes_is_the_limit_of_the_container(tmp_path):
    limit = tmp_path / "memory.max"
    limit.write_text("104857600\n")

    assert memory_bytes(limit) == 104857600


@pytest.mark.parametrize("content", ["max\n", None], ids=["no-limit", "no-container"])
def test_memory_bytes_without_a_limit_is_the_memory_of_the_machine(tmp_path, content):
    limit = tmp_path / "memory.max"
    if content is not None:
        limit.write_text(content)

    assert memory_bytes(limit) > 2**28
