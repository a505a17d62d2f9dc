import platform

from training.system.memory import reuse_freed_memory


def test_freed_memory_is_kept_where_the_c_library_knows_how():
    assert reuse_freed_memory() is (platform.libc_ver()[0] == "glibc")
