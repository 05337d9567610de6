"""Rows of .npy files are read from the file, not memory-mapped: another process may shorten it at any moment."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays_of

from stitchgrid.datasets.array_files import open_arrays
from stitchgrid.errors import InputError

KINDS = st.sampled_from(["<f4", ">f4", "<f8", "<f2", "|u1", "<u2", ">i4", "?", "<U3", "|S2"])


@given(data=st.data(), kind=KINDS, is_fortran=st.booleans())
def test_rows_and_arrays_are_what_numpy_reads(tmp_path_factory, data, kind, is_fortran):
    values = data.draw(arrays_of.arrays(kind, arrays_of.array_shapes(min_dims=1, max_dims=4, max_side=5)))
    rows = data.draw(st.lists(st.integers(0, len(values) - 1), max_size=6))
    path = tmp_path_factory.mktemp("npy") / "x.npy"
    np.save(path, np.asfortranarray(values) if is_fortran else values)
    file = open_arrays(path)
    assert file.header("x") == (values.shape, str(values.dtype))
    np.testing.assert_array_equal(file.read("x"), values)
    np.testing.assert_array_equal(file.rows("x")(np.array(rows, dtype=np.int64)), values[rows])


def test_a_file_that_is_shortened_while_it_is_read_is_an_error_and_no_signal(tmp_path):
    path = tmp_path / "x.npy"
    np.save(path, np.zeros((64, 4096)))
    file = open_arrays(path)
    take = file.rows("x")
    assert take([63]).shape == (1, 4096)
    with path.open("r+b") as cut:
        cut.truncate(4096 * 8)
    for read in (lambda: take([63]), lambda: file.read("x"), lambda: file.header("x")):
        with pytest.raises(InputError, match=r"x\.npy as an \.npy \(ValueError: it holds fewer bytes than"):
            read()


def test_rows_that_are_gone_while_they_are_read_are_an_error(tmp_path, monkeypatch):
    path = tmp_path / "x.npy"
    np.save(path, np.zeros((64, 4096)))
    take = open_arrays(path).rows("x")
    read = np.fromfile

    def cut_first(file, dtype, num):
        with path.open("r+b") as cut:
            cut.truncate(4096)
        return read(file, dtype, num)

    monkeypatch.setattr(np, "fromfile", cut_first)
    with pytest.raises(InputError, match=r"ValueError: it became shorter while it was read"):
        take([63])


@pytest.mark.parametrize("shape", [(10**12,), (10**6, 10**6, 10**6), (2**62, 4)])
def test_a_header_that_promises_more_than_the_file_has_takes_no_memory(tmp_path, shape):
    path = tmp_path / "x.npy"
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "<f8", "fortran_order": False, "shape": shape})
    with pytest.raises(InputError, match="it holds fewer bytes than its shape"):
        open_arrays(path).read("x")
