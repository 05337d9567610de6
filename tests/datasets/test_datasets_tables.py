"""Lists, Parquet files, WebDataset and files of arrays give the images of a folder of the same files."""

import io
import json
import tarfile
import tracemalloc
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import safetensors.numpy
import torch
from helpers_images import CLASSES, pack, spec_of, whole_digest
from PIL import Image

from stitchgrid.datasets import open_images
from stitchgrid.datasets.lists import ListSource
from stitchgrid.datasets.parquet import ParquetSource
from stitchgrid.datasets.webdataset import WebDatasetSource
from stitchgrid.errors import InputError
from stitchgrid.records import DataSpec, Limits, canonical

SPLITS = ("train", "test")


def files_of(root: Path, split: str) -> list[Path]:
    """Return the files of a split in another order than the sorted one."""
    paths = sorted((root / split).rglob("*.png"))
    return [paths[k] for k in np.random.default_rng(3).permutation(len(paths))]


def opened(kind, where, cache, **changes):
    """Return the images, decoded, after a look at the same from the cache."""
    spec = DataSpec(dataset=kind, root=str(where), **changes)
    found = open_images(spec, cache=cache)
    assert whole_digest(open_images(spec, cache=cache)) == whole_digest(found)
    return found


# ---- lists


def write_list(root, form, labels="texts"):
    """Write the lists of a folder's splits; return `root` of the data set."""
    label = {"texts": lambda path: path.parent.name, "numbers": lambda path: str(CLASSES.index(path.parent.name))}[
        labels
    ]
    lines = {split: [(str(path.relative_to(root)), label(path)) for path in files_of(root, split)] for split in SPLITS}
    if form == "one file":
        rows = [f"{name},{label},{split}\n" for split, some in lines.items() for name, label in some]
        (root / "all.csv").write_text("filename,class,split\n" + "".join(rows))
        return root / "all.csv"
    for split, some in lines.items():
        mark = {"csv": ",", "headless": ",", "tsv": "\t", "txt": " "}[form]
        head = f"label{mark}path{mark}extra\n" if form in ("csv", "tsv") else ""
        rows = [mark.join((b, a, "x") if head else (a, b)) + "\n" for a, b in some]
        suffix = {"headless": "csv"}.get(form, form)
        (root / f"{split}.{suffix}").write_text(head + "".join(rows))
    return root


@pytest.mark.parametrize("form", ["csv", "headless", "tsv", "txt", "one file"])
@pytest.mark.parametrize("labels", ["texts", "numbers"])
def test_lists_give_the_images_of_the_folder(root, cache, form, labels):
    wanted = open_images(spec_of(root), cache=cache)
    found = opened("list", write_list(root, form, labels), cache)
    assert whole_digest(found) == whole_digest(wanted)
    assert found.class_names == (CLASSES if labels == "texts" else ("0", "1", "2"))
    assert found.origins[1].names()[0] == "test/cat/000.png"


def test_columns_and_the_folder_of_a_list_can_be_named(root, cache, tmp_path):
    wanted = whole_digest(open_images(spec_of(root), cache=cache))
    for split in SPLITS:
        rows = [f"{path.relative_to(root)},{path.parent.name}\n" for path in files_of(root, split)]
        (tmp_path / f"{split}.csv").write_text("where,what\n" + "".join(rows))
    keys = canonical({"images": "where", "labels": "what"})
    assert whole_digest(opened("list", tmp_path, cache, keys=keys, folder=str(root))) == wanted
    with pytest.raises(InputError, match=r"no column of images: columns where, what; .*keys = \{ images"):
        opened("list", tmp_path, cache, folder=str(root))
    with pytest.raises(InputError, match=r"no column 'wher', which `keys` names; .*'where'"):
        opened("list", tmp_path, cache, keys=canonical({"images": "wher"}))


@pytest.mark.parametrize("name", ["../secret.png", "/etc/secret.png", "a/../../secret.png", "", "a\0.png"])
def test_paths_of_a_list_stay_below_its_folder(tmp_path, cache, name):
    (tmp_path / "lists").mkdir()
    Image.new("RGB", (4, 4)).save(tmp_path / "secret.png")
    for split in SPLITS:
        (tmp_path / "lists" / f"{split}.csv").write_text(f"path,label\n{name},0\n")
    with pytest.raises(InputError, match=r"line 2: '.*' lies outside of .*lists; paths stay|cannot read .* as a list"):
        opened("list", tmp_path / "lists", cache)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("path,label\n1.png,\n", "line 2: '1.png' has no label"),
        ("path,label\n1.png\n", "line 2: 1 columns, and column 2 is needed"),
        ("path\n1.png\n", "no column of labels: columns path"),
        ("", "no column of images|lists no image"),
        ("path,label\n", "lists no image"),
        ('path,label\n"1.png,0\n', "cannot read .* as a list in UTF-8"),
        ("path,label\n1.png,0\n", r"1\.png \(cannot be read, or is a link\)"),
    ],
)  # fmt: skip
def test_lists_that_are_none_are_refused(tmp_path, cache, text, message):
    for split in SPLITS:
        (tmp_path / f"{split}.csv").write_text(text)
    with pytest.raises(InputError, match=message):
        opened("list", tmp_path, cache)


def test_lists_are_limited_and_looked_for(root, cache, tmp_path):
    where = write_list(root, "csv")
    with pytest.raises(InputError, match="lists more than 5 images; if it is sound, raise `members`"):
        opened("list", where, cache, limits=Limits(members=5))
    with pytest.raises(InputError, match=r"has no list of split 'val'; .*known: test, train"):
        opened("list", where, cache, eval_split="val")
    with pytest.raises(InputError, match=r"no list or folder .*nowhere"):
        opened("list", tmp_path / "nowhere", cache)
    with pytest.raises(InputError, match="does not say of which split its images are"):
        opened("list", where / "train.csv", cache)


def test_empty_lines_of_a_list_name_no_image(tmp_path):
    (tmp_path / "train.txt").write_text("\n1.png 3\n\n  \n2.png 4\n\n")
    assert [(row.name, row.label) for row in ListSource(tmp_path, ["train"]).rows("train")] == [
        ("1.png", 3),
        ("2.png", 4),
    ]


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".txt"])
@pytest.mark.parametrize("text", ["\n" * 3_000_000, "," * 3_000_000, "\t" * 3_000_000, "a.png" * 600_000])
def test_a_list_takes_little_more_memory_than_its_images_would(tmp_path, suffix, text):
    (tmp_path / f"train{suffix}").write_text(f"1.png{',' if suffix == '.csv' else chr(9)}3\n{text}")
    source = ListSource(tmp_path, ["train"], limits=Limits(members=100_000))
    tracemalloc.start()
    with pytest.raises(InputError, match=r"lists more than 100,000|columns, and|characters|cannot read"):
        source.rows("train")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 30e6


# ---- Parquet


def write_parquet(root, where, *, form="hub", num_files=1):
    where.mkdir()
    for split in SPLITS:
        paths = files_of(root, split)
        for number, some in enumerate(np.array_split(np.arange(len(paths)), num_files)):
            chosen = [paths[k] for k in some]
            raw = [path.read_bytes() for path in chosen]
            labels = [CLASSES.index(path.parent.name) for path in chosen]
            image = [{"bytes": one, "path": path.name} for one, path in zip(raw, chosen, strict=True)]
            columns = {"image": image, "label": labels}
            if form == "bytes":
                columns = {"scan": raw, "label": [CLASSES[label] for label in labels]}
            table = pa.table(columns)
            if form == "hub":
                names = {"label": {"names": list(CLASSES), "_type": "ClassLabel"}, "image": {"_type": "Image"}}
                table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": names}})})
            folder = where / "data" if form == "hub" else where / split if num_files > 1 else where
            folder.mkdir(exist_ok=True)
            name = f"{split}-{number:05}-of-{num_files:05}.parquet" if form == "hub" else f"{split}.parquet"
            name = f"{number:04}.parquet" if form != "hub" and num_files > 1 else name
            pq.write_table(table, folder / name, row_group_size=4)
    return where


def contents(split):
    """Return the images of a split with their labels, in no order."""
    return {(image.numpy().tobytes(), int(k)) for image, k in zip(split.batch(0, split.num), split.labels, strict=True)}


@pytest.mark.parametrize(("form", "num_files"), [("hub", 1), ("hub", 3), ("bytes", 1), ("bytes", 2)])
def test_parquet_gives_the_images_of_the_folder(root, cache, tmp_path, form, num_files):
    wanted = open_images(spec_of(root), cache=cache)
    found = opened("parquet", write_parquet(root, tmp_path / "hub", form=form, num_files=num_files), cache)
    assert found.class_names == CLASSES
    if form == "hub":  # names of files tell the order
        assert whole_digest(found) == whole_digest(wanted)
    for one, other in ((found.fit, wanted.fit), (found.eval, wanted.eval)):
        both = (
            {(p.numpy().tobytes(), int(n)) for p, n in zip(s.batch(0, s.num), s.labels, strict=True)}
            for s in (one, other)
        )
        assert len({frozenset(some) for some in both}) == 1


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"image": [b"x"]}, r"no column of labels; it has image; a folder holds SPLIT\.parquet"),
        ({"image": ["x"], "label": [0]}, r"images are bytes of files, or \{bytes, path\}, got string"),
        ({"label": [0]}, "no column of images; it has label"),
        ({"image": [b"x"], "label": [None]}, "a label is a whole number or a text, got None"),
        ({"image": [b"x"], "label": [-1]}, "labels start at 0, got -1"),
        ({"image": [{"bytes": None, "path": "/etc/passwd"}], "label": [0]}, "images that lie elsewhere are not looked"),
        ({"image": [b"x"], "label": [0]}, r"test\[0\] \(not an image\)"),
    ],
)  # fmt: skip
def test_parquet_files_of_something_else_are_refused(tmp_path, cache, columns, message):
    if columns.get("image") == [{"bytes": None, "path": "/etc/passwd"}]:
        kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
        columns = {"image": pa.array(columns["image"], kind), "label": columns["label"]}
    for split in SPLITS:
        pq.write_table(pa.table(columns), tmp_path / f"{split}.parquet")
    with pytest.raises(InputError, match=message):
        opened("parquet", tmp_path, cache)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ([("image", [b"x"]), ("label", [1]), ("label", [2])], r"has more than one column 'label'"),
        ([("image", [b"x"]), ("image", [b"y"]), ("label", [1])], r"has more than one column 'image'"),
        ([("image", [b"x"]), ("label", [[1]])], r"label: a label or a split is .*, got list<element: int64>"),
        ([("image", [b"x"]), ("label", [{"a": 1}])], r"label: a label or a split is .*, got struct<a: int64>"),
        ([("image", [{"bytes": b"x", "path": 3}]), ("label", [1])], r"images: test\[0\] \(not an image\)"),
        (
            [("image", [{"bytes": b"x", "path": ["a"]}]), ("label", [1])],
            r"images: test\[0\] \(not an image\)",
        ),
    ],
)
def test_parquet_columns_of_odd_names_and_types_are_told(tmp_path, cache, columns, message):
    for split in ("train", "test"):
        values = [pa.array(column) for _, column in columns]
        pq.write_table(pa.table(values, names=[name for name, _ in columns]), tmp_path / f"{split}.parquet")
    with pytest.raises(InputError, match=message):
        opened("parquet", tmp_path, cache)


def write_repeated(path, num, label=None, image=None, is_struct=False):
    """Write a file of one image and one label for all rows, each of them in a dictionary."""

    def column(value, kind):
        return pa.DictionaryArray.from_arrays(pa.array([0] * num, pa.int32()), pa.array([value], kind))

    content = io.BytesIO()
    Image.new("L", (8, 8)).save(content, "PNG")
    columns = {"image": column(content.getvalue() + (image or b""), pa.binary()), "label": column(label or "x", None)}
    if is_struct:
        images = columns["image"].cast(pa.binary())
        columns["image"] = pa.StructArray.from_arrays(
            [images, column("a.png", None).cast(pa.string())], ["bytes", "path"]
        )
    how = {"use_dictionary": True, "dictionary_pagesize_limit": 2**30, "store_schema": False}
    pq.write_table(pa.table(columns), path, compression="zstd", write_statistics=False, **how)
    return path


def test_a_label_of_all_rows_is_in_memory_once(tmp_path):
    path = write_repeated(tmp_path / "train.parquet", 100, label="x" * 3_000)
    rows = ParquetSource(path, ["train"]).rows("train")
    assert len(rows) == 100
    assert len({id(row.label) for row in rows}) == 1
    write_repeated(path, 100, label="x" * 5_000)
    with pytest.raises(InputError, match=r"train\.parquet, label: a text of 5,000 bytes, more than the 4,095 allowed"):
        ParquetSource(path, ["train"]).rows("train")


@pytest.mark.parametrize("is_struct", [False, True])
def test_an_image_of_all_rows_is_in_memory_a_few_times(tmp_path, is_struct):
    size = 3_000_000
    path = write_repeated(tmp_path / "train.parquet", 64, image=bytes(size), is_struct=is_struct)
    source = ParquetSource(path, ["train"])
    before = pa.total_allocated_bytes()
    wanted = [(("train", k), row) for k, row in enumerate(source.rows("train"))]
    for _, _, raw in source.contents(wanted):
        assert len(raw) > size
        assert pa.total_allocated_bytes() - before < 12 * size


def test_parquet_is_limited_and_looked_for(root, cache, tmp_path):
    where = write_parquet(root, tmp_path / "hub")
    with pytest.raises(InputError, match=r"lists more than 5 images; .*raise `members`"):
        opened("parquet", where, cache, limits=Limits(members=5))
    with pytest.raises(InputError, match=r"larger than 1e-05 MB; .*raise `file_bytes`"):
        opened("parquet", where, cache, limits=Limits(file_bytes=10))
    with pytest.raises(InputError, match=r"has no Parquet of split 'val'; .*known: test, train"):
        opened("parquet", where, cache, eval_split="val")
    (tmp_path / "test.parquet").write_bytes(b"PAR1 no footer")
    with pytest.raises(InputError, match=r"cannot read .*test\.parquet as Parquet"):
        opened("parquet", tmp_path / "test.parquet", cache, fit_split="test", eval_samples=1)


# ---- WebDataset


def write_tars(root, where, *, form="cls", num_files=1, suffix=".tar"):
    where.mkdir()
    for split in SPLITS:
        paths = files_of(root, split)
        for number, some in enumerate(np.array_split(np.arange(len(paths)), num_files)):
            name = f"{split}{suffix}" if num_files == 1 else f"{split}-{number:06}{suffix}"
            with tarfile.open(where / name, "w:gz" if suffix == ".tar.gz" else "w") as tar:
                for path in (paths[k] for k in some):
                    label, key = CLASSES.index(path.parent.name), f"{path.parent.name}/{path.stem}"
                    told = {"cls": str(label), "text": path.parent.name, "json": json.dumps({"label": label, "id": 7})}[
                        form
                    ]
                    for end, raw in (("png", path.read_bytes()), ("json" if form == "json" else "cls", told.encode())):
                        member = tarfile.TarInfo(f"{key}.{end}")
                        member.size = len(raw)
                        tar.addfile(member, io.BytesIO(raw))
    return where


@pytest.mark.parametrize(
    ("form", "num_files", "suffix"),
    [("cls", 1, ".tar"), ("cls", 3, ".tar"), ("json", 2, ".tar"), ("text", 1, ".tar.gz")],
)
def test_webdataset_gives_the_images_of_the_folder(root, cache, tmp_path, form, num_files, suffix):
    wanted = open_images(spec_of(root), cache=cache)
    found = opened("webdataset", write_tars(root, tmp_path / "w", form=form, num_files=num_files, suffix=suffix), cache)
    assert whole_digest(found) == whole_digest(wanted)
    assert found.class_names == (CLASSES if form == "text" else ("0", "1", "2"))
    assert found.origins[0].names()[0] == "cat/000"


def write_tar(path, members):
    with tarfile.open(path, "w") as tar:
        for name, raw in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(raw)
            tar.addfile(member, io.BytesIO(raw))


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"a.png": b"x"}, r"sample 'a' has no label; a folder holds SPLIT\.tar"),
        ({"a.txt": b"x"}, "holds no image"),
        ({"a.png": b"x", "a.json": b"{"}, r"a\.json cannot be read as a label \(JSONDecodeError"),
        ({"a.png": b"x", "a.json": b'{"other": 1}'}, "sample 'a' has no label"),
        ({"a.png": b"x", "a.cls": b"0" * 2_000_000}, "a label of 2,000,000 bytes; it is a number or a text"),
        ({"a.png": b"x", "a.cls": b"0"}, r"a \(not an image\)"),
    ],
)  # fmt: skip
def test_tars_of_something_else_are_refused(tmp_path, cache, members, message):
    for split in SPLITS:
        write_tar(tmp_path / f"{split}.tar", members)
    with pytest.raises(InputError, match=message):
        opened("webdataset", tmp_path, cache)


def write_doubled(where, names):
    """Write tars whose members may share a name; the first is an image of one colour, each label is its number."""
    for split in SPLITS:
        with tarfile.open(where / f"{split}.tar", "w") as tar:
            for number, name in enumerate(names):
                raw = io.BytesIO()
                if name.endswith((".png", ".jpg")):
                    Image.new("RGB", (4, 4), (10 * number,) * 3).save(raw, "PNG" if name.endswith("png") else "JPEG")
                else:
                    raw.write(str(number % 2).encode())
                member = tarfile.TarInfo(name)
                member.size = raw.tell()
                raw.seek(0)
                tar.addfile(member, raw)


@pytest.mark.parametrize(
    ("names", "members"),
    [
        (
            ("0.png", "0.cls", "0.png", "0.cls"),
            "png and png",
        ),  # shards that were joined: image of one, label of another
        (("0.png", "0.cls", "0.cls"), "cls and cls"),
        (("0.png", "0.jpg", "0.cls"), "png and jpg"),
        (("0.depth.png", "0.seg.png", "0.cls"), r"depth\.png and seg\.png"),
    ],
)
def test_samples_of_which_two_members_could_be_meant_are_refused(tmp_path, cache, names, members):
    write_doubled(tmp_path, names)
    with pytest.raises(InputError, match=rf"sample '0' has more than one member that could be meant \({members}\)"):
        opened("webdataset", tmp_path, cache)


def test_an_image_comes_before_one_of_a_longer_suffix(tmp_path, cache):
    """As of 0.depth.png and 0.png, whatever their order; of labels that are not asked for there may be several."""
    write_doubled(tmp_path, ("0.depth.png", "0.seg.png", "0.cls", "0.txt", "0.txt", "0.png", "1.txt", "1.txt"))
    found = opened("webdataset", tmp_path, cache)
    assert found.eval.batch(0, 1).unique().tolist() == [50]


def test_a_json_with_a_key_twice_gives_no_label(tmp_path, cache):
    for split in SPLITS:
        write_tar(tmp_path / f"{split}.tar", {"a.png": b"x", "a.json": b'{"label": 0, "label": 1}'})
    with pytest.raises(InputError, match=r"a\.json cannot be read as a label \(ValueError: it has a key twice\)"):
        opened("webdataset", tmp_path, cache)


def test_labels_of_more_than_64_bits_are_refused(tmp_path, cache):
    for split in SPLITS:
        write_tar(tmp_path / f"{split}.tar", {"a.png": b"x", "a.json": b'{"label": 1' + b"0" * 70 + b"}"})
    with pytest.raises(InputError, match=r"label 10,000,[0,]* at position 0 is more than 1,000,000 classes"):
        opened("webdataset", tmp_path, cache)


def test_long_texts_that_might_be_labels_are_not_kept(tmp_path):
    with tarfile.open(tmp_path / "train.tgz", "w:gz") as tar:
        for number in range(200):
            for end in ("png", "txt"):
                member = tarfile.TarInfo(f"{number}.{end}")
                member.size = 1_000_000 if end == "txt" else 0
                tar.addfile(member, io.BytesIO(b"a" * member.size))
    source = WebDatasetSource(tmp_path, ["train"])
    tracemalloc.start()
    rows = source.rows("train")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (len(rows), {len(row.label) for row in rows}) == (200, {1_001})
    assert peak < 60e6


def test_links_in_a_tar_reach_no_file(tmp_path, cache):
    Image.new("RGB", (4, 4)).save(tmp_path / "secret.png")
    for split in SPLITS:
        with tarfile.open(tmp_path / f"{split}.tar", "w") as tar:
            link = tarfile.TarInfo("a.png")
            link.type, link.linkname = tarfile.SYMTYPE, str(tmp_path / "secret.png")
            tar.addfile(link)
            label = tarfile.TarInfo("a.cls")
            label.size = 1
            tar.addfile(label, io.BytesIO(b"0"))
    with pytest.raises(InputError, match=r"a \(cannot be read, or is a link\)"):
        opened("webdataset", tmp_path, cache)


# ---- arrays of other kinds


@pytest.mark.parametrize("form", ["npy", "npy files", "pt", "tuple", "safetensors", "x_train", "keys"])
def test_arrays_of_every_kind_give_the_images_of_the_folder(root, cache, tmp_path, form):
    wanted = whole_digest(open_images(spec_of(root), cache=cache))
    where, keys, named = tmp_path / "arrays", {}, {}
    where.mkdir()
    for split in SPLITS:
        paths = sorted((root / split).rglob("*.png"))
        images = np.stack([np.array(Image.open(path)) for path in paths])
        labels = np.array([CLASSES.index(path.parent.name) for path in paths])
        if form == "npy":
            (where / split).mkdir()
            np.save(where / split / "images.npy", images)
            np.save(where / split / "labels.npy", labels)
        elif form == "npy files":
            np.save(where / f"{split}_images.npy", images)
            np.save(where / f"{split}_labels.npy", labels)
        elif form in ("pt", "tuple"):
            pair = torch.from_numpy(images).permute(0, 3, 1, 2).contiguous(), torch.from_numpy(labels)
            torch.save(
                pair if form == "tuple" else dict(zip(("data", "targets"), pair, strict=True)), where / f"{split}.pt"
            )
        elif form == "safetensors":
            safetensors.numpy.save_file({"images": images, "labels": labels}, where / f"{split}.safetensors")
        else:
            names = (f"x_{split}", f"y_{split}") if form == "x_train" else (f"{split}-scans", f"{split}-kinds")
            named |= dict(zip(names, (images, labels), strict=True))
    if named:
        where = tmp_path / "all.npz"
        np.savez(where, **named)
    if form == "keys":
        keys = {"images": "{split}-scans", "labels": "{split}-kinds"}
    assert whole_digest(opened("arrays", where, cache, keys=canonical(keys))) == wanted


def test_arrays_whose_names_say_too_little_are_asked_for(tmp_path, cache):
    for split in SPLITS:
        np.savez(
            tmp_path / f"{split}.npz", x=np.zeros((3, 4, 4), np.uint8), data=np.zeros((3, 4, 4), np.uint8), y=[0, 1, 2]
        )
    with pytest.raises(
        InputError, match=r"x and data may both be the images of split 'test'; choose one, such as keys = \{ images"
    ):
        opened("arrays", tmp_path, cache)


class Evil:
    def __reduce__(self):
        return print, ("run",)


def test_pickles_are_not_run(tmp_path, cache, capsys):
    for split in SPLITS:
        torch.save({"images": Evil(), "labels": torch.zeros(3)}, tmp_path / f"{split}.pt")
    with pytest.raises(InputError, match="reading it could run code, so it is not read"):
        opened("arrays", tmp_path, cache)
    for split in SPLITS:
        torch.save({"images": torch.zeros(3, 4, 4), "note": "x"}, tmp_path / f"{split}.pt")
    with pytest.raises(InputError, match=r"holds dict; wanted tensors by name"):
        opened("arrays", tmp_path, cache)
    for split in SPLITS:
        (tmp_path / f"{split}.pt").write_bytes(b"PK\x03\x04 cut")
    with pytest.raises(InputError, match=r"test.pt is damaged"):
        opened("arrays", tmp_path, cache)
    assert "run" not in capsys.readouterr().out


# ---- without labels


OWN = """
import numpy as np
from pathlib import Path
from PIL import Image

def images(split, root):
    return [np.array(Image.open(path)) for path in sorted(Path(root, split).rglob("*.png"))]
"""


def test_images_without_labels_are_the_same_from_everywhere(root, cache, tmp_path):
    none = {"labels": "none"}
    wanted = open_images(spec_of(root, **none), cache=cache)
    assert (wanted.class_names, wanted.num_classes) == ((), 0)
    assert not wanted.eval.labels.any()
    assert whole_digest(wanted) != whole_digest(open_images(spec_of(root), cache=cache))
    flat = tmp_path / "flat"
    for split in SPLITS:
        (flat / split).mkdir(parents=True)
        for number, path in enumerate(sorted((root / split).rglob("*.png"))):
            (flat / split / f"{number:03}.png").write_bytes(path.read_bytes())
    (tmp_path / "own.py").write_text(OWN)
    lists = tmp_path / "lists"
    lists.mkdir()
    for split in SPLITS:
        (lists / f"{split}.txt").write_text("".join(f"{path}\n" for path in files_of(flat, split)))
    hub = tmp_path / "hub"
    hub.mkdir()
    arrays = {}
    for split in SPLITS:
        paths = sorted((flat / split).iterdir())
        pq.write_table(pa.table({"image": [path.read_bytes() for path in paths]}), hub / f"{split}.parquet")
        write_tar(hub / f"{split}.tar", {path.name: path.read_bytes() for path in paths})
        arrays[f"{split}_images"] = np.stack([np.array(Image.open(path)) for path in paths])
    np.savez(tmp_path / "a.npz", **arrays)
    found = {
        "flat": open_images(spec_of(flat, **none), cache=cache),
        "zip": open_images(spec_of(pack(flat, tmp_path / "flat.zip"), **none), cache=cache),
        "tar": open_images(spec_of(pack(root, tmp_path / "root.tar"), **none), cache=cache),
        "own": open_images(spec_of(root, dataset=f"{tmp_path / 'own.py'}:images", **none), cache=cache),
        "list": opened("list", lists, cache, folder=str(tmp_path), **none),
        "parquet": opened("parquet", hub, cache, **none),
        "webdataset": opened("webdataset", hub, cache, **none),
        "arrays": opened("arrays", tmp_path / "a.npz", cache, **none),
    }
    assert {name: whole_digest(one) == whole_digest(wanted) for name, one in found.items()} == dict.fromkeys(
        found, True
    )
    assert open_images(DataSpec(dataset="digits", eval_samples=5, **none), cache=cache).class_names == ()
