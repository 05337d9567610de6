"""What the processes of a machine share on its disk: drafts that become entries."""

import os
import stat
import sys
from time import time

import pytest

from stitchgrid.cache import ABANDONED_SECONDS, draft


@pytest.fixture
def entries(tmp_path):
    return tmp_path / "cache" / "entries"


def publish(entries, name):
    with draft(entries) as folder:
        (folder / "file").write_text("content")
        folder.replace(entries / name)


def test_a_draft_becomes_an_entry_or_nothing(entries):
    publish(entries, "one")
    with pytest.raises(ValueError, match="gave up"), draft(entries) as folder:  # noqa: PT012  # in the middle of it
        (folder / "file").write_text("half")
        raise ValueError("gave up")
    assert [path.name for path in entries.iterdir()] == ["one"]
    assert (entries / "one" / "file").read_text() == "content"


@pytest.mark.skipif(sys.platform == "win32", reason="no modes of files")
@pytest.mark.parametrize(("umask", "folder_mode", "file_mode"), [(0o022, 0o755, 0o644), (0o077, 0o700, 0o600)])
def test_an_entry_is_as_readable_as_the_files_of_its_writer_are(umask, folder_mode, file_mode, entries):
    before = os.umask(umask)
    try:
        publish(entries, "one")
    finally:
        os.umask(before)
    modes = [stat.S_IMODE(path.stat().st_mode) for path in (entries / "one", entries / "one" / "file")]
    assert modes == [folder_mode, file_mode]


def test_what_a_killed_writer_left_goes_after_a_week_and_a_draft_at_work_stays(entries):
    publish(entries, "one")
    with draft(entries) as at_work, draft(entries) as old:
        (at_work / "file").write_text("half")
        abandoned = time() - ABANDONED_SECONDS - 60
        for path in (old, old.parent, at_work, at_work.parent, entries / "one"):
            os.utime(path, (abandoned, abandoned))
        publish(entries, "two")
        assert at_work.exists()  # its file is new
        assert not old.exists()
    assert sorted(path.name for path in entries.iterdir()) == ["one", "two"]
