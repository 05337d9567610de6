"""Images and checkpoints that are made to take all memory or never to end: looked at first, named, left unread."""

import io
import json
import os
import resource
import subprocess
import sys
import tarfile
import zipfile
from contextlib import nullcontext
from dataclasses import replace
from itertools import count
from pathlib import Path
from threading import get_ident

import numpy as np
import pytest
import torch
from helpers_images import pack, spec_of, whole_digest
from helpers_models import spec
from PIL import Image
from safetensors.torch import save_file

from stitchgrid.datasets import decoding, encoded, imagefolder, open_images
from stitchgrid.datasets.sources import Unreadable
from stitchgrid.errors import InputError, JobFileError
from stitchgrid.jobfile import parse_job
from stitchgrid.jobfile.tables import LimitsTable
from stitchgrid.json_files import MOST_BYTES
from stitchgrid.models.build import build_network
from stitchgrid.models.foreign_config import check_files
from stitchgrid.models.weights import load_adapter, load_checkpoint, load_weights
from stitchgrid.records import Limits

GB = 10**9
MANUAL = Path(imagefolder.__file__).parents[1] / "manual" / "security.md"


#: Imports all, then runs each line of code that comes in a child of its own, which may take so many bytes more.
PREPARED = """
import json, os, resource, sys, traceback
from pathlib import Path
from stitchgrid.datasets import open_images
from stitchgrid.errors import InputError
from stitchgrid.models.weights import load_checkpoint
from stitchgrid.records import DataSpec, Limits
import PIL.Image, numpy, torch, safetensors.torch
PIL.Image.init()
torch.ones(2) @ torch.ones(2)
for line in sys.stdin:
    num_bytes, code, arguments, *files = json.loads(line)
    child = os.fork()
    if not child:
        for number, file in enumerate(files, 1):
            os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT), number)
        sys.argv[1:], path, status = arguments, arguments[0], 0
        taken = int(Path("/proc/self/statm").read_text().split()[5]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_DATA, (taken + num_bytes, -1))
        try:
            exec(code)
        except InputError as problem:
            print(problem)
        except BaseException:
            traceback.print_exc()
            status = 1
        sys.stdout.flush()
        os._exit(status)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@pytest.fixture(scope="module")
def within(tmp_path_factory):
    """Return what runs code in a process that may take so many bytes more than it has, and returns its output."""
    folder = tmp_path_factory.mktemp("within")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1"}
    command, pipe = [sys.executable, "-c", PREPARED], subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, bufsize=1, env=environment) as prepared:
        calls = count()

        def run(num_bytes, code, *arguments):
            files = [folder / f"{next(calls)}.{name}" for name in ("out", "err")]
            asked = [num_bytes, code, list(map(str, arguments)), *map(str, files)]
            prepared.stdin.write(f"{json.dumps(asked)}\n")
            assert prepared.stdout.readline() == "0\n", files[1].read_text()
            return files[0].read_text()

        yield run
        prepared.stdin.close()


OPEN = 'print(open_images(DataSpec(dataset="imagefolder", root=path), cache=Path(sys.argv[2])).num_bad)'


# The table of a job ---------------------------------------------------------------------------------------------------

JOB = {
    "name": "tiny",
    "data": {"dataset": "digits"},
    "models": [{"name": "net", "architecture": "stitchgrid:tiny10", "weights": "random"}],
    "matchers": [{"kind": "cka"}],
}


@pytest.mark.parametrize("key", LimitsTable.model_fields)
def test_a_job_raises_a_limit_by_its_key(key, tmp_path):
    plain = parse_job(JOB, title="", base=tmp_path)
    raised = parse_job({**JOB, "limits": {key: 12_345}}, title="", base=tmp_path)
    for job, wanted in ((plain, Limits()), (raised, Limits(**{key: 12_345}))):
        assert job.data_spec().limits == wanted
        assert job.network_specs()[0].limits == wanted
        assert parse_job(job.to_dict(), title="") == job
    assert "limits" not in plain.to_dict(), "so that stored jobs stay what they are"


@pytest.mark.parametrize("limits", [{"pixel": 3}, {"pixels": 0}, {"pixels": "many"}, {"pixels": True}, 3])
def test_limits_that_cannot_be_meant_are_refused(limits, tmp_path):
    with pytest.raises(JobFileError, match="limits"):
        parse_job({**JOB, "limits": limits}, title="", base=tmp_path)


def test_the_manual_has_each_limit_with_its_default():
    text = MANUAL.read_text()
    for key, field in LimitsTable.model_fields.items():
        assert f"| `{key}` | {field.default:,} |" in text


def test_limits_change_no_address_and_no_image(root, cache):
    first = open_images(spec_of(root), cache=cache)
    second = open_images(spec_of(root, limits=Limits(pixels=20, members=100, text=3)), cache=cache)
    assert whole_digest(first) == whole_digest(second)


# Images ---------------------------------------------------------------------------------------------------------------


def save_bomb(path, side, mode="L"):
    """Write a PNG of one colour: a few kilobytes, however many pixels."""
    Image.new(mode, (side, side)).save(path, "PNG", compress_level=9)


@pytest.mark.parametrize("archive", ["", "images.tar", "images.zip"])
def test_an_image_of_too_many_pixels_is_unreadable_and_named(root, cache, tmp_path, archive):
    save_bomb(root / "train/cat/bomb.png", 100, "1")
    where = pack(root, tmp_path / archive) if archive else root
    message = (
        r"1 unreadable image: train/cat/bomb.png \(100 x 100 pixels, more than the 9,999 allowed; .* raise `pixels`"
    )
    with pytest.raises(InputError, match=message):
        open_images(spec_of(where, limits=Limits(pixels=9_999)), cache=cache)
    skipped = open_images(spec_of(where, limits=Limits(pixels=9_999), on_bad_image="skip"), cache=cache)
    raised = open_images(spec_of(where, limits=Limits(pixels=10_000), on_bad_image="skip"), cache=cache)
    assert [(one.num_bad, one.fit.num) for one in (skipped, raised)] == [(1, 18), (0, 19)]


def test_an_image_that_pillow_would_refuse_can_be_allowed(root, cache, monkeypatch, recwarn):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    found = open_images(spec_of(root, limits=Limits(pixels=20)), cache=cache)
    assert (found.num_bad, Image.MAX_IMAGE_PIXELS) == (0, 20)
    assert not [one for one in recwarn if "Decompression" in str(one.category)]


def test_six_images_of_177_megapixels_are_unreadable(root, cache, within):
    save_bomb(root / "train/cat/bomb0.png", 13_300, "1")
    for number in range(1, 6):
        (root / f"train/cat/bomb{number}.png").hardlink_to(root / "train/cat/bomb0.png")
    assert "6 unreadable images: train/cat/bomb0.png (13300 x 13300 pixels" in within(GB // 2, OPEN, root, cache)


@pytest.mark.slow
def test_several_images_of_as_many_pixels_as_are_allowed_take_the_memory_of_one(root, cache, within):
    save_bomb(root / "train/cat/large0.png", 9_999)
    for number in range(1, 6):
        (root / f"train/cat/large{number}.png").hardlink_to(root / "train/cat/large0.png")
    assert within(2 * GB, OPEN, root, cache) == "0\n"


def test_large_images_are_decoded_one_at_a_time_and_small_ones_by_other_threads(root, cache, monkeypatch):
    monkeypatch.setattr(decoding, "LARGE_PIXELS", 30)
    for number in range(6):
        save_bomb(root / f"train/cat/large{number}.png", 8)
    plain, threads = encoded.decode, {True: set(), False: set()}

    def decode(raw, *arguments):
        threads[decoding.is_large(raw)].add(get_ident())
        return plain(raw, *arguments)

    monkeypatch.setattr(encoded, "decode", decode)
    assert open_images(spec_of(root), cache=cache).num_bad == 0
    assert threads[True] == {get_ident()}
    assert get_ident() not in threads[False]


def test_large_images_keep_their_order_and_values(root, cache, monkeypatch):
    first = whole_digest(open_images(spec_of(root), cache=cache / "one"))
    monkeypatch.setattr(decoding, "LARGE_PIXELS", 1)
    assert whole_digest(open_images(spec_of(root), cache=cache / "two")) == first
    monkeypatch.setattr(encoded, "HELD_BYTES", 100)
    assert whole_digest(open_images(spec_of(root), cache=cache / "three")) == first


def progressive(num_scans, form="JPEG"):
    """Return a progressive JPEG of so many scans, or a TIFF around it, and garbage behind that looks like scans."""
    content = io.BytesIO()
    Image.new("L", (64, 64), 128).save(content, "JPEG", progressive=True)
    raw = content.getvalue()
    start = raw.rfind(b"\xff\xda")
    raw = raw[:-2] + raw[start:-2] * (num_scans - raw.count(b"\xff\xda")) + b"\xff\xd9"
    assert raw.count(b"\xff\xda") == num_scans
    if form == "JPEG":
        return raw + b"\xff\xda" * 1_000
    content = io.BytesIO()
    Image.new("L", (64, 64), 128).save(content, "TIFF", compression="jpeg")
    with Image.open(content) as image:
        (place,), (size,) = (image.tag_v2[tag] for tag in (273, 279))
    tiff = bytearray(content.getvalue())
    for tag, old, new in ((273, place, len(tiff)), (279, size, len(raw))):
        entry = next(
            at
            for at in range(len(tiff))
            if tiff[at : at + 2] == tag.to_bytes(2, "little")
            and tiff[at + 2 : at + 12].endswith(old.to_bytes(4, "little"))
        )
        tiff[entry + 2 : entry + 12] = b"\4\0\1\0\0\0" + new.to_bytes(4, "little")
    return bytes(tiff) + raw


@pytest.mark.parametrize("form", ["JPEG", "TIFF"])
def test_a_jpeg_of_very_many_scans_is_not_decoded(monkeypatch, form):
    found = decoding.decode(progressive(100, form), "a", 0)
    assert not isinstance(found, Unreadable) or form == "TIFF", found
    monkeypatch.setattr(decoding, "to_rgb", lambda *_: pytest.fail("it is decoded"))
    found = decoding.decode(progressive(101, form), "a", 0)
    assert found.reason == (
        "a JPEG of 101 scans, more than the 100 allowed; if it is sound, raise `scans` under [limits] in the job file"
    )
    with pytest.raises(pytest.fail.Exception):
        decoding.decode(progressive(101, form), "a", 0, limits=Limits(scans=101))


def test_bytes_that_look_like_scans_are_none(monkeypatch):
    content = io.BytesIO()
    Image.new("RGB", (64, 64)).save(content, "JPEG", exif=b"Exif\0\0" + b"\xff\xda" * 300)
    assert not isinstance(decoding.decode(content.getvalue(), "a", 0), Unreadable)
    pixels = np.tile(np.array([255, 218], np.uint8), (20, 20))
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, "BMP")
    assert not isinstance(decoding.decode(content.getvalue(), "a", 0), Unreadable)


def test_few_bytes_of_files_are_held_at_a_time(monkeypatch):
    monkeypatch.setattr(encoded, "MOST_DECODE_THREADS", 50)
    monkeypatch.setattr(encoded, "num_cpus", lambda: 50)
    monkeypatch.setattr(encoded, "HELD_BYTES", 100)
    taken, given, most = 0, 0, 0

    def items():
        nonlocal taken
        for _ in range(200):
            taken += 1
            yield 10

    for _ in encoded.in_threads(lambda item: item, items(), weigh=lambda item: item):
        most = max(most, taken - given)
        given += 1
    assert given == 200
    assert most <= 12


def add(tar, name, content=b"", **changes):
    info = tarfile.TarInfo(name)
    info.size = len(content)
    for key, value in changes.items():
        setattr(info, key, value)
    tar.addfile(info, io.BytesIO(content))


def sparse_member(name, size):
    """Return a member in GNU's old format of a file that is nearly all hole."""
    info = tarfile.TarInfo(name)
    info.type = tarfile.GNUTYPE_SPARSE
    head = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    head[386 : 386 + 24] = b"%011o\0%011o\0" % (size - 512, 512)
    head[483:495] = b"%011o\0" % size
    head[124:136] = b"%011o\0" % 512
    head[148:156] = b" " * 8
    head[148:156] = b"%06o\0 " % sum(head)
    return bytes(head) + bytes(512)


@pytest.mark.parametrize("size", [7 * GB, 400_000_000])
def test_a_sparse_member_is_not_read(root, cache, tmp_path, size, within):
    plain = pack(root, tmp_path / "plain.tar")
    with tarfile.open(plain) as tar:
        end = max(member.offset_data + 512 * -(-member.size // 512) for member in tar)
    hostile = tmp_path / "sparse.tar"
    hostile.write_bytes(plain.read_bytes()[:end] + sparse_member("train/cat/sparse.png", size) + bytes(10_240))
    with tarfile.open(hostile) as tar:
        assert tar.getmember("train/cat/sparse.png").size == size
    said = within(GB // 2, OPEN, hostile, cache)
    assert "1 unreadable image: train/cat/sparse.png (larger than 256 MB; if it is sound, raise `file_bytes`" in said


def old_map(num):
    """Return a sparse file in GNU's old format, whose map is said to go on, and does so in this number of blocks."""
    member = bytearray(sparse_member("train/cat/sparse.png", 1_000)[:512])
    member[482] = 1
    member[148:156] = b" " * 8
    member[148:156] = b"%06o\0 " % sum(member)
    block = b"%011o\0%011o\0" % (1, 1) * 21 + b"\1" + bytes(7)
    return bytes(member) + block * num


def new_map(num):
    """Return a sparse file in PAX's format 1.0, whose map has so many entries."""
    info = tarfile.TarInfo("sparse")
    names = {"major": "1", "minor": "0", "realsize": "1000", "name": "train/cat/sparse.png"}
    info.pax_headers = {f"GNU.sparse.{name}": value for name, value in names.items()}
    content = b"%d\n" % num + b"0\n" * 2 * num
    info.size = len(content)
    return info.tobuf(tarfile.PAX_FORMAT) + content + bytes(-len(content) % 512)


@pytest.mark.parametrize(
    "member", [old_map(3_000), old_map(0), new_map(300_000)], ids=["old, long", "old, cut", "1.0, long"]
)
def test_the_map_of_a_sparse_member_is_short_and_complete(root, cache, tmp_path, member):
    pack(root, tmp_path / "a.tar")
    whole = (tmp_path / "a.tar").read_bytes().rstrip(b"\0")
    (tmp_path / "a.tar").write_bytes(whole + bytes(-len(whole) % 512) + member)
    with pytest.raises(InputError, match=r"ReadError: the map of a sparse file is too long, or not complete"):
        open_images(spec_of(tmp_path / "a.tar"), cache=cache)


def test_few_attributes_hold_for_all_members(root, cache, tmp_path):
    """Python's module copies them for each member, so that many of them would take hours."""
    for num, is_taken in ((1_000, True), (1_001, False)):
        shared = {f"key{place}": "value" for place in range(num)}
        with tarfile.open(tmp_path / "a.tar", "w", format=tarfile.PAX_FORMAT, pax_headers=shared) as tar:
            tar.add(root, ".")
        with (
            nullcontext() if is_taken else pytest.raises(InputError, match="ReadError: 1001 attributes of all members")
        ):
            open_images(spec_of(tmp_path / "a.tar"), cache=cache)


@pytest.mark.parametrize("kind", [tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE, tarfile.XGLTYPE])
def test_a_header_of_gigabytes_is_not_read(root, cache, tmp_path, kind, within):
    hostile = tmp_path / "headers.tar"
    with tarfile.open(hostile, "w") as tar:
        add(tar, "train/cat/a.png", b"1")
        info = tarfile.TarInfo("long")
        info.type, info.size = kind, GB
        tar.fileobj.write(info.tobuf())
    with hostile.open("ab") as file:
        file.truncate(hostile.stat().st_size + 2 * GB)
    said = within(GB // 2, OPEN, hostile, cache)
    assert "as a tar archive (ReadError: a header of 1000000000 bytes)" in said


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME])
def test_a_long_header_of_the_first_member_is_not_read(cache, tmp_path, monkeypatch, kind):
    info = tarfile.TarInfo("long")
    info.type, info.size = kind, 2_000_000
    (tmp_path / "a.tar").write_bytes(info.tobuf(tarfile.USTAR_FORMAT) + bytes(2_000_896))
    for method in ("_proc_pax", "_proc_gnulong"):
        monkeypatch.setattr(tarfile.TarInfo, method, lambda *_: pytest.fail("it is read"))
    with pytest.raises(InputError, match=r"as a tar archive \(ReadError: a header of 2000000 bytes\)"):
        open_images(spec_of(tmp_path / "a.tar"), cache=cache)


def test_headers_that_announce_headers_without_end_are_refused_in_words(cache, tmp_path):
    hostile = tmp_path / "chain.tar"
    info = tarfile.TarInfo("next")
    info.type, info.size = tarfile.GNUTYPE_LONGNAME, 2
    hostile.write_bytes((info.tobuf() + b"a\0".ljust(512, b"\0")) * 5_000 + bytes(10_240))
    with pytest.raises(InputError, match="as a tar archive"):
        open_images(spec_of(hostile), cache=cache)


@pytest.mark.parametrize("suffix", [".tar.gz", ".tar.xz"])
def test_an_archive_that_unpacks_without_end_is_given_up(root, cache, tmp_path, monkeypatch, suffix):
    monkeypatch.setattr("stitchgrid.datasets.archives.HARMLESS_BYTES", 1_000_000)
    archive = tmp_path / f"bomb{suffix}"
    with tarfile.open(archive, f"w:{suffix[-2:]}") as tar:
        for number in range(4):
            add(tar, f"train/cat/{number}.bin", bytes(1_000_000))
        add(tar, "train/cat/a.png", b"1")
    with pytest.raises(InputError, match=r"bomb.* unpacks to .* more than 20 times its size.*`unpacking` under"):
        open_images(spec_of(archive), cache=cache)
    with pytest.raises(InputError, match="no split 'test'"):
        open_images(spec_of(archive, limits=Limits(unpacking=100_000)), cache=cache)


@pytest.mark.parametrize("archive", ["", "images.tar", "images.zip"])
def test_more_members_than_are_allowed_are_refused(root, cache, tmp_path, archive):
    where = pack(root, tmp_path / archive) if archive else root
    with pytest.raises(InputError, match="holds more than 20 files and folders; if it is sound, raise `members` under"):
        open_images(spec_of(where, limits=Limits(members=20)), cache=cache)


def test_the_name_of_a_class_is_no_longer_than_is_allowed(root, cache):
    (root / "train/cat").rename(root / f"train/{'c' * 200}")
    with pytest.raises(
        InputError, match=r"name of a class has 200 characters, more than the 100 allowed: .*raise `text`"
    ):
        open_images(spec_of(root, limits=Limits(text=100)), cache=cache)


def make_pipe(path):
    os.mkfifo(path)


def link_to(target):
    return lambda path: path.symlink_to(target)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (make_pipe, "not a regular file"),
        (link_to("/dev/zero"), "not a regular file"),
        (link_to("/dev/tty"), "not a regular file|cannot be read"),
        (link_to("/nowhere/at/all"), "cannot be read, or is a link"),
        (link_to("loop.png"), "cannot be read, or is a link"),
        (link_to("/proc/self/mem"), "cannot be read, or is a link"),
    ],
)
def test_what_is_no_regular_file_is_unreadable_and_nothing_hangs(root, cache, make, reason):
    make(root / "train/cat/loop.png")
    with pytest.raises(InputError, match=rf"1 unreadable image: train/cat/loop.png \(({reason})"):
        open_images(spec_of(root), cache=cache)


def test_a_file_that_is_longer_than_it_says_is_read_no_further(root, cache):
    (root / "train/cat/kcore.png").symlink_to("/proc/self/pagemap")  # no size is told of it
    with pytest.raises(InputError, match=r"train/cat/kcore.png \(larger than 1 MB"):
        open_images(spec_of(root, limits=Limits(file_bytes=1_000_000)), cache=cache)


def test_loops_of_folders_end(root, cache):
    plain = whole_digest(open_images(spec_of(root), cache=cache))
    (root / "train/cat/up").symlink_to("..")
    (root / "train/cat/self").symlink_to("self")
    (root / "train/self").symlink_to("self")
    (root / "self").symlink_to("self")
    (root / "train/dog/root").symlink_to(root)
    found = open_images(spec_of(root), cache=cache)
    assert found.eval.digest(12) == plain[1]
    assert found.fit.num >= 18


def test_folders_that_lead_to_each_other_in_very_many_ways_are_given_up(root, cache):
    knot = root / "train/cat"
    for one in range(12):
        (knot / f"d{one}").mkdir()
        for other in range(12):
            (knot / f"d{one}" / f"to{other}").symlink_to(f"../d{other}")
    with pytest.raises(InputError, match="holds more than 5,000 files and folders"):
        open_images(spec_of(root, limits=Limits(members=5_000)), cache=cache)


def test_folders_that_lie_very_deep_are_refused(root, cache):
    (root / "train/cat" / "/".join("d" * 300)).mkdir(parents=True)
    with pytest.raises(InputError, match="has more than 200 levels of folders"):
        open_images(spec_of(root), cache=cache)


def test_arrays_that_unpack_to_far_more_than_they_are_are_not_read(cache, tmp_path, within):
    with zipfile.ZipFile(tmp_path / "train.npz", "w", zipfile.ZIP_DEFLATED, compresslevel=1) as bomb:
        with bomb.open("images.npy", "w", force_zip64=True) as file:
            shape = {"descr": "|u1", "fortran_order": False, "shape": (1_200, 1_000, 1_000)}
            np.lib.format.write_array_header_1_0(file, shape)
            for _ in range(1_200):
                file.write(bytes(1_000_000))
        with bomb.open("labels.npy", "w") as file:
            np.lib.format.write_array(file, np.zeros(1_200, np.int64))
    (tmp_path / "test.npz").hardlink_to(tmp_path / "train.npz")
    code = 'open_images(DataSpec(dataset="arrays", root=path), cache=Path(sys.argv[2]))'
    said = within(GB // 2, code, tmp_path, cache)
    assert "MB that unpacks to 1,200 MB, more than 20 times its size; if it is sound, raise `unpacking`" in said


def test_a_pipe_in_place_of_arrays_is_no_array_and_nothing_hangs(cache, tmp_path):
    for split in ("train", "test"):
        os.mkfifo(tmp_path / f"{split}.npz")
    with pytest.raises(InputError, match=r"has no (train|test)\.npz"):
        open_images(spec_of(tmp_path, dataset="arrays"), cache=cache)


def test_a_pipe_is_no_checkpoint_and_nothing_hangs(tmp_path):
    os.mkfifo(tmp_path / "w.pt")
    with pytest.raises(InputError, match="there is no checkpoint"):
        load_checkpoint(tmp_path / "w.pt")


ENDLESS = {
    "pipe": (make_pipe, "not a regular file, but a pipe"),
    "device": (link_to("/dev/zero"), "not a regular file, but a pipe"),
    "large": (lambda path: path.write_bytes(b"{" + b" " * MOST_BYTES), f"more than {MOST_BYTES:,} bytes"),
    "deep": (lambda path: path.write_text("[" * 200_000), "recursion limit exceeded"),
}


@pytest.mark.parametrize("what", ENDLESS)
@pytest.mark.parametrize("name", ["model.safetensors.index.json", "preprocessor_config.json", "adapter_config.json"])
def test_json_beside_weights_that_never_ends_is_refused_and_nothing_hangs(tmp_path, what, name):
    make, reason = ENDLESS[what]
    make(tmp_path / name)
    save_file({"x": torch.zeros(1)}, tmp_path / "adapter_model.safetensors")
    with pytest.raises(InputError, match=rf"{name} cannot be read as .*{reason}"):
        check_files(tmp_path)
    if name == "model.safetensors.index.json":
        with pytest.raises(InputError, match=rf"{name} cannot be read as an index of safetensors .*{reason}"):
            load_checkpoint(tmp_path)
    if name == "adapter_config.json":
        with pytest.raises(InputError, match=rf"{name} cannot be read as .*{reason}"):
            load_adapter(torch.nn.Linear(1, 1), tmp_path)


def test_weights_that_are_a_pipe_are_refused_before_a_library_opens_them(tmp_path):
    make_pipe(tmp_path / "model.safetensors")
    with pytest.raises(InputError, match=r"model.safetensors is no regular file"):
        check_files(tmp_path)


# Checkpoints ----------------------------------------------------------------------------------------------------------


def nested(depth):
    outer = inner = {}
    for _ in range(depth):
        inner["model"] = inner = {}
    inner["model"] = {"weight": torch.zeros(2)}
    return outer


def cycle():
    circle = {"epoch": 3, "list": []}
    circle["model"] = circle
    circle["list"].append(circle["list"])
    return {"model": {"state_dict": circle}}


@pytest.mark.parametrize("make", [lambda: nested(300), cycle, lambda: [[[[]]]], lambda: {"model": [{"a": []}] * 1_000}])
def test_checkpoints_nested_in_any_way_are_refused_in_words(tmp_path, make):
    torch.save(make(), tmp_path / "w.pt")
    with pytest.raises(InputError, match=r"w.pt"):
        load_weights(torch.nn.Linear(2, 2), tmp_path / "w.pt")


def test_a_pickle_nested_deeper_than_pythons_stack_is_refused_in_words(tmp_path):
    torch.save({"a": torch.zeros(2)}, tmp_path / "plain.pt")
    deep = b"\x80\x02" + b"}X\x01\x00\x00\x00m" * 100_000 + b"}" + b"s" * 100_000 + b"."
    with zipfile.ZipFile(tmp_path / "plain.pt") as plain, zipfile.ZipFile(tmp_path / "deep.pt", "w") as hostile:
        for entry in plain.infolist():
            hostile.writestr(entry.filename, deep if entry.filename.endswith("data.pkl") else plain.read(entry))
    with pytest.raises(InputError, match=r"deep.pt"):
        load_weights(torch.nn.Linear(2, 2), tmp_path / "deep.pt")


def zip_bomb(path, num_bytes):
    torch.save({"weight": torch.zeros(1_000)}, path.with_suffix(".plain"))
    with (
        zipfile.ZipFile(path.with_suffix(".plain")) as plain,
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as bomb,
    ):
        for entry in plain.infolist():
            bomb.writestr(entry.filename, plain.read(entry))
        with bomb.open("archive/data/9", "w", force_zip64=True) as file:
            for _ in range(num_bytes // 10**6):
                file.write(bytes(10**6))


def test_a_zip_bomb_is_refused_before_anything_is_unpacked(tmp_path, within):
    zip_bomb(tmp_path / "bomb.pt", 2 * GB)
    said = within(GB // 5, "load_checkpoint(path)", tmp_path / "bomb.pt")
    assert "MB that unpacks to 2,000 MB, more than 20 times its size; if it is sound, raise `unpacking`" in said


@pytest.mark.parametrize("ending", [b"", b"x" * 70_000])
def test_an_archive_whose_directory_is_hidden_is_damaged_and_not_read(tmp_path, monkeypatch, ending):
    calls = []
    monkeypatch.setattr(torch, "load", lambda *args, **_: calls.append(args))
    zip_bomb(tmp_path / "bomb.pt", 10**6)
    content = (tmp_path / "bomb.pt").read_bytes()
    (tmp_path / "bomb.pt").write_bytes(content[:-22] + b"PK\x05\x07" + content[-18:] + ending)
    with pytest.raises(InputError, match="damaged, truncated or no checkpoint"):
        load_checkpoint(tmp_path / "bomb.pt")
    assert not calls


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_checkpoints_of_too_many_tensors_or_bytes_are_refused_unread(tmp_path, monkeypatch, suffix):
    path = tmp_path / f"w{suffix}"
    state = {f"t{number}": torch.zeros(3) for number in range(50)}
    (save_file if suffix == ".safetensors" else torch.save)(state, path)
    assert len(load_checkpoint(path, Limits(tensors=60))) == 50
    monkeypatch.setattr(torch, "load", None)
    monkeypatch.setattr("safetensors.torch.load_file", None)
    with pytest.raises(InputError, match=r"holds 5\d tensors, more than the 49 allowed; .* raise `tensors`"):
        load_checkpoint(path, Limits(tensors=49))
    with pytest.raises(InputError, match=r"more than the 300 allowed of a checkpoint; .* raise `checkpoint_bytes`"):
        load_checkpoint(path, Limits(checkpoint_bytes=300))


def test_the_limits_of_a_job_hold_for_its_checkpoints(tmp_path):
    torch.save({"0.weight": torch.zeros(2, 2)}, tmp_path / "w.pt")
    source = "from torch import nn\ndef make(): return nn.Sequential(nn.Linear(2, 2, bias=False))"
    (tmp_path / "net.py").write_text(source)
    network = spec("net.py:make", base=tmp_path, weights="w.pt")
    build_network(network)
    with pytest.raises(InputError, match="more than the 100 allowed of a checkpoint"):
        build_network(replace(network, limits=Limits(checkpoint_bytes=100)))


def test_a_process_of_these_tests_may_take_no_more_than_it_says(within):
    with pytest.raises(AssertionError, match="MemoryError"):
        within(10**8, "bytearray(2 * 10**8)", "")
    assert resource.getrlimit(resource.RLIMIT_DATA)[0] != 10**8
