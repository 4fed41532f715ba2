"""The cache of contents on disk: what is found again, what is not trusted, how large it gets."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from calumma.core import content_cache
from calumma.core.content_cache import CacheWarning, ContentCache
from calumma.core.errors import InputError

KEY, OTHER = "0" * 64, "1" * 64


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ContentCache:
    monkeypatch.setenv("CALUMMA_CACHE", str(tmp_path))
    monkeypatch.setenv("CALUMMA_CACHE_MB", "100")
    return ContentCache("things", "thing")


def test_contents_come_back_with_what_is_said_about_them(cache: ContentCache, tmp_path: Path) -> None:
    assert cache.get(KEY) is None
    cache.put(KEY, b"contents", {"size": 8})
    assert cache.get(KEY) == b"contents" and cache.get(OTHER) is None
    out = tmp_path / "out"
    assert cache.copy(KEY, out, lambda about: about["size"] == 9) is None and not out.exists()
    assert cache.copy(KEY, out, lambda about: True) == {"size": 8} and out.read_bytes() == b"contents"
    cache.put(OTHER, out)
    assert cache.get(OTHER) == b"contents"
    cache.put(KEY, b"")
    assert cache.get(KEY) == b""


@pytest.mark.parametrize("place", range(0, 150, 7))
def test_an_entry_with_any_byte_changed_is_not_used(cache: ContentCache, tmp_path: Path, place: int) -> None:
    cache.put(KEY, b"contents" * 5, {"about": "it", "n": 1})
    data = bytearray((cache.folder / KEY).read_bytes())
    data[place % len(data)] ^= 0x10
    (cache.folder / KEY).write_bytes(data)
    with pytest.warns(CacheWarning, match="cached thing .* is damaged .* made anew"):
        assert cache.get(KEY) is None
    out = tmp_path / "out"
    out.write_bytes(b"before")
    with pytest.warns(CacheWarning):
        assert cache.copy(KEY, out, lambda about: True) is None
    assert out.read_bytes() == b"before"
    cache.put(KEY, b"new")
    assert cache.get(KEY) == b"new"


def test_an_entry_is_that_of_its_key_alone_and_whole(cache: ContentCache) -> None:
    cache.put(KEY, b"contents")
    (cache.folder / KEY).rename(cache.folder / OTHER)
    data = (cache.folder / OTHER).read_bytes()
    for left in (data, data[1:], data[:-1], b"", b"x" * 300):
        (cache.folder / OTHER).write_bytes(left)
        with pytest.warns(CacheWarning, match="is damaged"):
            assert cache.get(OTHER) is None


def test_what_others_can_write_is_not_used(cache: ContentCache) -> None:
    umask = os.umask(0)
    try:
        cache.put(KEY, b"contents")
    finally:
        os.umask(umask)
    assert cache.get(KEY) == b"contents"
    (cache.folder / KEY).chmod(0o620)
    with pytest.warns(CacheWarning, match="can be written by others"):
        assert cache.get(KEY) is None
    (cache.folder / KEY).chmod(0o600)
    cache.folder.chmod(0o770)
    with pytest.warns(CacheWarning, match="can be written by others"):
        assert cache.get(KEY) is None
    with pytest.warns(CacheWarning, match="is not kept"):
        cache.put(OTHER, b"contents")


def test_what_was_used_last_is_kept_within_the_limit(cache: ContentCache, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CALUMMA_CACHE_MB", "1")
    cache = ContentCache("things", "thing")
    keys = [str(n) * 64 for n in range(4)]
    for age, key in enumerate(keys[:3]):
        cache.put(key, bytes(300_000))
        os.utime(cache.folder / key, (1e9 + age, 1e9 + age))
    abandoned, written_now = cache.folder / ".a.tmp", cache.folder / ".b.tmp"
    for path in (abandoned, written_now):
        path.write_bytes(b"half")
    os.utime(abandoned, (1e9, 1e9))
    assert cache.get(keys[0]) is not None  # used: now the last one
    cache.put(keys[3], bytes(300_000))
    cache.trim()
    assert sorted(path.name for path in cache.folder.iterdir()) == [".b.tmp", keys[0], keys[2], keys[3]]
    cache.put(keys[1], bytes(2_000_000))
    cache.trim()
    assert cache.get(keys[1]) is None, "larger than all of the cache"


def test_the_cache_can_be_switched_off(cache: ContentCache, monkeypatch: pytest.MonkeyPatch) -> None:
    cache.put(KEY, b"contents")
    monkeypatch.setenv("CALUMMA_CACHE_MB", "0")
    off = ContentCache("things", "thing")
    off.put(OTHER, b"contents")
    off.trim()
    assert off.get(KEY) is None and not (off.folder / OTHER).exists()
    assert cache.get(KEY) == b"contents", "switched on again"
    monkeypatch.setenv("CALUMMA_CACHE_MB", "much")
    with pytest.raises(InputError, match="CALUMMA_CACHE_MB='much': give a number"):
        content_cache.limit_bytes()


def test_a_folder_that_cannot_be_made_costs_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("CALUMMA_CACHE", str(tmp_path / "file"))
    monkeypatch.setenv("CALUMMA_CACHE_MB", "100")
    cache = ContentCache("things", "thing")
    with pytest.warns(CacheWarning, match="cached thing is not kept"):
        cache.put(KEY, b"contents")
    assert cache.get(KEY) is None
