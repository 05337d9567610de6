"""A network is known by all of its author's code: the file or module that a job names, and what that imports."""

import copy
import importlib
import inspect
import os
import pickle
import subprocess
import sys
import sysconfig
import textwrap
import threading
from importlib.util import spec_from_file_location
from pathlib import Path

import pytest
import torch
from helpers_models import spec
from torchvision.models import squeezenet

from stitchgrid.errors import InputError
from stitchgrid.models.architecture import code_digest, find_code, holding
from stitchgrid.models.build import make_network
from stitchgrid.models.imports import imports_of
from stitchgrid.models.weights import state_digest
from stitchgrid.records import Preprocess, digest
from stitchgrid.resolve import network_id

NET = "from torch import nn\n\ndef make(width=WIDTH):\n    return nn.Linear(2, width)\n"


def write(folder, **files):
    """Write sources; `a__b` is a file b.py in a folder a."""
    for name, text in files.items():
        path = folder.joinpath(*name.split("__")).with_suffix(".py")
        if name.endswith("init"):
            path = path.with_name("__init__.py")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(text))


def width(architecture, folder):
    return make_network(spec(architecture, base=folder)).out_features


@pytest.fixture(autouse=True)
def fresh():
    """Leave no module of a test behind."""
    before = dict(sys.modules)
    yield
    for name in sys.modules.keys() - before.keys():
        if not name.startswith(("torch", "numpy", "timm", "stitchgrid")):
            del sys.modules[name]


IMPORTS = {  # how net.py gets its width -> the sources beside it, of which the last decides it
    "plain": ("from blocks import WIDTH", {"blocks": "WIDTH = 3"}),
    "as": ("import blocks as b; WIDTH = b.WIDTH", {"blocks": "WIDTH = 3"}),
    "two steps": ("from a import WIDTH", {"a": "from b import WIDTH", "b": "WIDTH = 3"}),
    "star": ("from blocks import *", {"blocks": "WIDTH = 3"}),
    "package": ("from pkg import WIDTH", {"pkg__init": "from .parts import WIDTH", "pkg__parts": "WIDTH = 3"}),
    "deep": ("from p.q.r.s import WIDTH", {"p__q__init": "", "p__q__r__init": "", "p__q__r__s": "WIDTH = 3"}),
    "code of a package on the way": (
        "import p.q; WIDTH = p.q.find()",
        {"p__q": "import p\ndef find():\n    return p.WIDTH", "p__init": "WIDTH = 3"},
    ),
    "from . import": (
        "from pkg.a import WIDTH",
        {"pkg__init": "", "pkg__a": "from . import b\nWIDTH = b.WIDTH", "pkg__b": "WIDTH = 3"},
    ),
    "from ..": (
        "from pkg.sub.a import WIDTH",
        {"pkg__init": "", "pkg__sub__init": "", "pkg__sub__a": "from ..b import WIDTH", "pkg__b": "WIDTH = 3"},
    ),
    "star over __all__": (
        "from pkg import *; WIDTH = part.WIDTH",
        {"pkg__init": "__all__ = ['part']", "pkg__part": "WIDTH = 3"},
    ),
    "in a function": (
        "def late():\n    from blocks import WIDTH\n    return WIDTH\nWIDTH = late()",
        {"blocks": "WIDTH = 3"},
    ),
    "import_module": (
        "import importlib; WIDTH = importlib.import_module('pkg.blocks').WIDTH",
        {"pkg__init": "", "pkg__blocks": "WIDTH = 3"},
    ),
    "relative import_module": (
        "from pkg.a import WIDTH",
        {
            "pkg__init": "",
            "pkg__a": "from importlib import import_module\nWIDTH = import_module('.b', __package__).WIDTH",
            "pkg__b": "WIDTH = 3",
        },
    ),
    "__import__": ("WIDTH = __import__('blocks').WIDTH", {"blocks": "WIDTH = 3"}),
    **{
        f"an importer of another name: {source}": (f"{source}.WIDTH", {"blocks": "WIDTH = 3"})
        for source in (
            "from importlib import import_module as load; WIDTH = load('blocks')",
            "import importlib; f = importlib.import_module; g = f; WIDTH = g('blocks')",
            "import importlib; WIDTH = getattr(importlib, 'import_module')('blocks')",
            "one, load = 1, __import__; WIDTH = load('blocks')",
            "WIDTH = (lambda load=__import__: load('blocks'))()",
            "from functools import partial; load = partial(__import__); WIDTH = load('blocks')",
        )
    },
    **{
        f"a guard of its own: {source!r}": (
            f"{source}\nif TYPE_CHECKING:\n    from blocks import WIDTH",
            {"blocks": "WIDTH = 3"},
        )
        for source in (
            "TYPE_CHECKING = True",
            "from typing import TYPE_CHECKING\nTYPE_CHECKING = True",
            "for TYPE_CHECKING in (True,): pass",
        )
    },
    "a star that brings a guard": (
        "from typing import TYPE_CHECKING\nfrom guard import *\nif TYPE_CHECKING:\n    from blocks import WIDTH",
        {"guard": "TYPE_CHECKING = True", "blocks": "WIDTH = 3"},
    ),
    "a circle": (
        "import a; WIDTH = a.find()",
        {"a": "import net\ndef find():\n    import b; return b.WIDTH", "b": "WIDTH = 3"},
    ),
    "where an import may fail": (
        "try:\n    from fast import WIDTH\nexcept ImportError:\n    from slow import WIDTH",
        {"slow": "WIDTH = 3"},
    ),
}


@pytest.mark.parametrize("how", IMPORTS)
def test_an_edit_of_what_a_file_imports_is_another_network_at_once(tmp_path, how):
    line, files = IMPORTS[how]
    write(tmp_path, net=line + "\n" + NET, **files)
    network, last = spec("net.py:make", base=tmp_path), list(files)[-1]
    first = code_digest(network)
    assert width("net.py:make", tmp_path) == 3
    write(tmp_path, **{last: files[last].replace("3", "4")})  # of equal length, in the same second
    assert code_digest(network) != first
    assert width("net.py:make", tmp_path) == 4
    write(tmp_path, **files)
    assert code_digest(network) == first
    assert width("net.py:make", tmp_path) == 3


def test_a_module_that_is_added_is_seen_even_if_the_folder_s_time_stays(tmp_path):
    write(tmp_path, net="try:\n    from blocks import WIDTH\nexcept ImportError:\n    WIDTH = 2\n" + NET)
    status = tmp_path.stat()
    assert width("net.py:make", tmp_path) == 2
    write(tmp_path, blocks="WIDTH = 3")
    os.utime(tmp_path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert width("net.py:make", tmp_path) == 3


def test_an_edit_that_keeps_size_and_time_is_seen(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    write(tmp_path, net="from blocks import WIDTH\n" + NET, blocks="WIDTH = 3")
    assert width("net.py:make", tmp_path) == 3
    status = (tmp_path / "blocks.py").stat()
    write(tmp_path, blocks="WIDTH = 5")
    os.utime(tmp_path / "blocks.py", ns=(status.st_atime_ns, status.st_mtime_ns))
    assert width("net.py:make", tmp_path) == 5
    assert not list(tmp_path.rglob("*.pyc"))


@pytest.mark.parametrize("init", ["", '"""Doc."""', "# nothing"])
def test_code_that_imports_nothing_of_its_own_keeps_the_address_it_had(tmp_path, monkeypatch, init):
    source = "import math, torch.nn.functional as F\nfrom PIL import Image\nWIDTH = 3\n" + NET
    main = "if __name__ == '__main__':\n    import blocks\n"
    typed = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from blocks import X\n"
    write(
        tmp_path,
        net=source,
        main=source + main,
        typed=typed + source,
        blocks="X = 1",
        pkg_t__init=init,
        pkg_t__net=source,
    )
    monkeypatch.syspath_prepend(tmp_path)
    for name, text in (("net", source), ("main", source + main), ("typed", typed + source)):
        assert code_digest(spec(f"{name}.py:make", base=tmp_path)) == digest("make", text.encode())
    assert code_digest(spec("pkg_t.net:make")) == digest("make", source.encode())
    installed = Path(squeezenet.__file__).read_bytes()
    assert code_digest(spec("torchvision.models.squeezenet:squeezenet1_1")) == digest("squeezenet1_1", installed)


def test_the_address_is_made_of_names_and_contents_and_not_of_places(tmp_path):
    for home in ("one", "two/three"):
        write(tmp_path / home, net="from blocks import WIDTH\n" + NET, blocks="WIDTH = 3")
    one, two = (code_digest(spec("net.py:make", base=tmp_path / home)) for home in ("one", "two/three"))
    net, blocks = ((tmp_path / "one" / name).read_bytes() for name in ("net.py", "blocks.py"))
    assert one == two == digest("make", net, "blocks", blocks)


def test_nothing_is_run_to_find_the_code(tmp_path, monkeypatch):
    write(tmp_path, net="from pkg_t import x\nraise SystemExit", pkg_t__init="raise SystemExit", pkg_t__x="")
    monkeypatch.syspath_prepend(tmp_path)
    assert set(find_code(spec("net.py:make", base=tmp_path)).modules) == {"net", "pkg_t", "pkg_t.x"}
    assert find_code(spec("pkg_t.x:make")).files.keys() == {"pkg_t", "pkg_t.x"}


@pytest.mark.parametrize("word", ["pkg_t.nets:make", "pkg_t:make"])
def test_a_module_is_known_by_its_package_s_code_and_what_it_imports(tmp_path, monkeypatch, word):
    write(
        tmp_path,
        pkg_t__init="from .nets import make",
        pkg_t__nets="from .parts import WIDTH\n" + NET,
        pkg_t__parts="WIDTH = 3",
    )
    monkeypatch.syspath_prepend(tmp_path)
    first = code_digest(spec(word))
    assert width(word, ".") == 3
    write(tmp_path, pkg_t__parts="WIDTH = 4")
    assert code_digest(spec(word)) != first
    assert width(word, ".") == 4


def test_networks_of_two_folders_have_each_its_own_helpers(tmp_path):
    late = (
        "\nclass Net(nn.Linear):\n    def forward(self, x):\n        from blocks import WIDTH\n        return WIDTH\n"
    )
    made = "def late():\n    return Net(2, 2)\n"
    for home, size in (("a", 3), ("b", 4)):
        write(tmp_path / home, net="from blocks import WIDTH\n" + NET + late + made, blocks=f"WIDTH = {size}")
    assert [width(f"{home}/net.py:make", tmp_path) for home in ("a", "b", "a")] == [3, 4, 3]
    nets = [make_network(spec(f"{home}/net.py:late", base=tmp_path)) for home in ("a", "b")]
    assert [net(torch.zeros(1)) for net in nets] == [3, 4]  # imported when the network runs, and not before


def test_a_name_that_is_of_two_networks_is_refused_where_it_is_not_clear_which_is_meant(tmp_path):
    source = "import importlib\nimport two_\nfrom torch import nn\nclass Net(nn.Linear):\n    def forward(self, x):\n"
    source += "        return importlib.import_module('two' + '_').WIDTH\ndef make():\n    return Net(2, 2)\n"
    for home, size in (("a", 3), ("b", 4)):
        write(tmp_path / home, net=source, two_=f"WIDTH = {size}")
    first = make_network(spec("a/net.py:make", base=tmp_path))
    assert first(None) == 3
    second = make_network(spec("b/net.py:make", base=tmp_path))
    with pytest.raises(ImportError, match=r"different modules 'two_' \(.*a/two_.py, .*b/two_.py\)"):
        second(None)
    del first
    assert second(None) == 4


def test_two_networks_share_modules_that_are_equal(tmp_path):
    write(
        tmp_path,
        one="from parts import Net\ndef make():\n    return Net(2, 3)\n",
        two="from parts import Net\nimport more\ndef make():\n    return Net(2, 3)\n",
        parts="from torch import nn\nclass Net(nn.Linear):\n    pass\n",
        more="",
    )
    one, two = (make_network(spec(f"{name}.py:make", base=tmp_path)) for name in ("one", "two"))
    assert type(one) is type(two)  # so that what a module registers for the process is registered once


def test_a_package_that_registers_an_operator_serves_two_networks(tmp_path):
    op = "import torch\nops = torch.library.Library('sg_test_ops', 'DEF')\nops.define('twice(Tensor x) -> Tensor')\n"
    write(
        tmp_path,
        pkg__init="",
        pkg__ops=op,
        pkg__a="from . import ops\nWIDTH = 3\n" + NET,
        pkg__b="from . import ops\nWIDTH = 4\n" + NET,
    )
    write(tmp_path, a="from pkg.a import make", b="from pkg.b import make")
    assert [width(f"{name}.py:make", tmp_path) for name in "ab"] == [3, 4]


def test_modules_are_real_ones(tmp_path):
    source = """
        from dataclasses import dataclass
        from torch import nn
        from real_parts import Block

        @dataclass
        class Config:
            width: "int" = 3

        class Net(nn.Sequential):
            pass

        def make():
            return Net(Block(2, Config().width))
    """
    write(tmp_path, net=source, real_parts="from torch import nn\nclass Block(nn.Linear):\n    '''A block.'''\n")
    net = make_network(spec("net.py:make", base=tmp_path))
    assert (type(net).__module__, type(net[0]).__module__) == ("net", "real_parts")
    assert sys.modules["real_parts"].__file__ == str(tmp_path / "real_parts.py")
    assert pickle.loads(pickle.dumps(net)).state_dict().keys() == net.state_dict().keys()
    assert type(copy.deepcopy(net)) is type(net)
    (tmp_path / "real_parts.py").write_text("# changed\n" * 20)
    assert inspect.getsource(type(net[0])) == "class Block(nn.Linear):\n    '''A block.'''\n"


def test_a_module_of_the_process_is_put_back(tmp_path, monkeypatch):
    write(tmp_path / "theirs", blocks="WIDTH = 9")
    write(tmp_path, net="from blocks import WIDTH\n" + NET, blocks="WIDTH = 3")
    monkeypatch.syspath_prepend(tmp_path / "theirs")
    theirs = importlib.import_module("blocks")
    try:
        assert width("net.py:make", tmp_path) == 3
        assert sys.modules["blocks"] is theirs
    finally:
        del sys.modules["blocks"]


def test_what_lies_in_sys_path_is_found_too_and_what_lies_beside_comes_first(tmp_path, monkeypatch):
    write(tmp_path / "path", blocks="WIDTH = 9", others="DEPTH = 2")
    write(tmp_path, net="from blocks import WIDTH\nfrom others import DEPTH\n" + NET, blocks="WIDTH = 3")
    monkeypatch.syspath_prepend(tmp_path / "path")
    assert width("net.py:make", tmp_path) == 3
    assert find_code(spec("net.py:make", base=tmp_path)).files.keys() == {"the file itself", "blocks", "others"}


def test_a_file_that_imports_relatively_is_part_of_the_packages_around_it(tmp_path):
    write(
        tmp_path,
        models__init="SIZE = 3",
        models__net="from .blocks import WIDTH\n" + NET,
        models__blocks="from . import SIZE as WIDTH",
    )
    assert width("models/net.py:make", tmp_path) == 3
    write(tmp_path, lib__net="from .blocks import WIDTH\n" + NET, lib__blocks="WIDTH = 4")  # a namespace package
    assert width("lib/net.py:make", tmp_path) == 4


def test_what_lies_beside_the_job_is_found_from_a_file_in_a_folder(tmp_path):
    write(
        tmp_path,
        models__net="from models.blocks import WIDTH\nimport shared\n" + NET,
        models__blocks="WIDTH = 3",
        shared="",
    )
    assert width("models/net.py:make", tmp_path) == 3


def test_a_name_that_is_computed_is_loaded_and_not_part_of_the_address(tmp_path):
    write(
        tmp_path,
        net="import importlib\nWIDTH = importlib.import_module('bl' + 'ocks').WIDTH\n" + NET,
        blocks="WIDTH = 3",
    )
    assert set(find_code(spec("net.py:make", base=tmp_path)).modules) == {"net"}
    assert width("net.py:make", tmp_path) == 3


def test_a_path_that_a_file_adds_for_itself_serves_it_alone_and_changes_no_address(tmp_path):
    write(tmp_path / "lib", hidden_t="WIDTH = 3", later_t="")
    source = (
        "import sys, os\nsys.path.append(os.path.join(os.path.dirname(__file__), 'lib'))\nfrom hidden_t import WIDTH\n"
    )
    write(tmp_path, net=source + NET.replace("    return", "    import later_t\n    return"))
    before, path = code_digest(spec("net.py:make", base=tmp_path)), list(sys.path)
    assert width("net.py:make", tmp_path) == 3
    assert width("net.py:make", tmp_path) == 3
    assert sys.path == path
    assert code_digest(spec("net.py:make", base=tmp_path)) == before


def test_files_that_are_called_like_modules_of_python_or_installed_ones_do_not_hide_them(tmp_path):
    write(
        tmp_path,
        click="import click, random\nWIDTH = len(click.Command.__name__) - 2 + random.randint(0, 0)\n" + NET,
        random="WIDTH = 1",
    )
    assert width("click.py:make", tmp_path) == 5
    write(tmp_path, torch="WIDTH = 3\n" + NET)
    assert width("torch.py:make", tmp_path) == 3
    write(tmp_path, **{"my-net": "WIDTH = 4\n" + NET})
    assert width("my-net.py:make", tmp_path) == 4


def test_networks_run_the_code_that_was_looked_at_whatever_becomes_of_the_files(tmp_path):
    write(tmp_path, net="from blocks import WIDTH\n" + NET, blocks="WIDTH = 3")
    network = spec("net.py:make", base=tmp_path)
    with holding(network):
        write(tmp_path, blocks="WIDTH = 4")
        assert width("net.py:make", tmp_path) == 3
    assert width("net.py:make", tmp_path) == 4


class Mapped:
    """A finder such as those of editable installs, which name a folder that is not in sys.path."""

    def __init__(self, folder):
        self.folder = folder

    def find_spec(self, name, path=None, target=None):
        return spec_from_file_location(name, self.folder / "__init__.py") if name == "editable_t" else None


def test_an_editable_install_is_the_user_s_own(tmp_path, monkeypatch):
    write(tmp_path / "src", init="", parts="WIDTH = 3")
    write(tmp_path, net="from editable_t.parts import WIDTH\n" + NET)
    monkeypatch.setattr(sys, "meta_path", [*sys.meta_path, Mapped(tmp_path / "src")])
    assert find_code(spec("net.py:make", base=tmp_path)).files.keys() == {"the file itself", "editable_t.parts"}
    assert width("net.py:make", tmp_path) == 3
    write(tmp_path / "src", parts="WIDTH = 4")
    assert width("net.py:make", tmp_path) == 4


def test_a_namespace_package_of_two_folders_is_found(tmp_path, monkeypatch):
    write(tmp_path / "one", spaced_t__a="from .b import WIDTH")
    write(tmp_path / "two", spaced_t__b="WIDTH = 3")
    write(tmp_path, net="from spaced_t.a import WIDTH\n" + NET)
    for name in ("one", "two"):
        monkeypatch.syspath_prepend(tmp_path / name)
    assert width("net.py:make", tmp_path) == 3
    write(tmp_path / "two", spaced_t__b="WIDTH = 4")
    assert width("net.py:make", tmp_path) == 4


def test_another_thread_imports_while_own_code_is_imported(tmp_path, monkeypatch):
    """The lock of own code and Python's lock of a module must not wait for each other."""
    slow = "import time, threading\nthreading.thread_t.start()\ntime.sleep(0.2)\nimport installed_t\nWIDTH = 3\n"
    write(tmp_path / "site-packages", installed_t="import time\ntime.sleep(0.5)\nimport another_t", another_t="")
    write(tmp_path, net=slow + NET)
    monkeypatch.syspath_prepend(tmp_path / "site-packages")
    thread = threading.Thread(target=importlib.import_module, args=("installed_t",), daemon=True)
    monkeypatch.setattr(threading, "thread_t", thread, raising=False)
    done = threading.Thread(target=width, args=("net.py:make", tmp_path), daemon=True)
    done.start()
    done.join(timeout=20)
    assert not done.is_alive()


def test_a_network_of_own_code_can_be_compiled(tmp_path):
    source = (
        "import torch\nfrom torch import nn\nfrom blocks import act\nclass Net(nn.Linear):\n    def forward(self, x):\n"
    )
    source += "        for _ in range(len('ab')):\n            x = act(super().forward(x))\n        return x\n"
    write(
        tmp_path,
        net=source + "def make():\n    return Net(2, 2)\n",
        blocks="import torch\ndef act(x): return max(1, 2) * x",
    )
    net, x = make_network(spec("net.py:make", base=tmp_path)).eval(), torch.ones(1, 2)
    assert torch.allclose(torch.compile(net, backend="eager", fullgraph=True)(x), net(x))


EXTENSION = """
#include <Python.h>
static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "fast_t", NULL, -1, NULL};
PyMODINIT_FUNC PyInit_fast_t(void) {
    PyObject *m = PyModule_Create(&module);
    PyModule_AddIntConstant(m, "WIDTH", 3);
    return m;
}
"""


def test_a_compiled_module_is_part_of_the_code(tmp_path):
    (tmp_path / "fast_t.c").write_text(EXTENSION)
    library = tmp_path / ("fast_t" + sysconfig.get_config_var("EXT_SUFFIX"))
    include = sysconfig.get_path("include")
    subprocess.run(["cc", "-shared", "-fPIC", f"-I{include}", "-o", library, tmp_path / "fast_t.c"], check=True)
    write(tmp_path, net="from fast_t import WIDTH\n" + NET)
    before = code_digest(spec("net.py:make", base=tmp_path))
    assert width("net.py:make", tmp_path) == width("net.py:make", tmp_path) == 3
    changed = library.read_bytes() + b"\0"
    library.unlink()  # writing into a library that is loaded would end this process
    library.write_bytes(changed)
    assert code_digest(spec("net.py:make", base=tmp_path)) != before
    with pytest.raises(InputError, match=r"fast_t.*has changed since this process loaded it; start a new process"):
        width("net.py:make", tmp_path)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"blocks": "x = (\n"}, r"net.py does not run: SyntaxError: .*\(blocks.py, line 1\)"),
        ({"blocks": "\n1 / 0\n"}, r"net.py does not run: ZeroDivisionError: division by zero \(blocks.py, line 2\)"),
        ({"blocks": "raise SystemExit(3)"}, r"net.py does not run: SystemExit: 3 \(blocks.py, line 1\)"),
        ({}, r"net.py does not run: ModuleNotFoundError: No module named 'blocks' \(net.py, line 1\).*PYTHONPATH"),
    ],
)
def test_code_that_does_not_run_says_where(tmp_path, files, message):
    write(tmp_path, net="import blocks\nWIDTH = 3\n" + NET, **files)
    with pytest.raises(InputError, match=message) as caught:
        make_network(spec("net.py:make", base=tmp_path))
    assert "\n" not in str(caught.value)
    write(tmp_path, blocks="")
    assert width("net.py:make", tmp_path) == 3  # repaired, and tried again


def test_an_interrupt_is_passed_on(tmp_path):
    write(tmp_path, net="raise KeyboardInterrupt", later="def make():\n    raise KeyboardInterrupt")
    for word in ("net.py:make", "later.py:make"):
        with pytest.raises(KeyboardInterrupt):
            make_network(spec(word, base=tmp_path))


def test_an_import_outside_of_its_package_is_no_import():
    assert imports_of(b"from ... import x\nfrom .y import z", "pkg") == imports_of(b"from pkg.y import z", "")


PINNED = '''"""Own."""
import math
from torch import nn


def make(width=6):
    return nn.Sequential(nn.Flatten(), nn.Linear(192, width), nn.ReLU(), nn.Linear(width, 10))
'''


@pytest.mark.parametrize(
    ("architecture", "code", "weights", "address"),
    [
        (
            "nets.py:make",
            "bbe273fc6434072a5f74e28ad2df9c88",
            "cd8b041341a7c10d706e8d72ab21e691",
            "c76d336d749f4d5cc6aae8ea66737af3",
        ),
        (
            "stitchgrid:tiny10",
            "97ccd556860ef60d31b4124ca39776bc",
            "0eceb28611803d76f4489ad1b9bc8e23",
            "fee34661946039552f154724e9f95505",
        ),
    ],
)
def test_addresses_are_those_of_version_0_1_0(tmp_path, architecture, code, weights, address):
    (tmp_path / "nets.py").write_text(PINNED)
    network = spec(architecture, base=tmp_path)
    assert code_digest(network) == code
    assert state_digest(make_network(network)) == weights
    assert network_id(network, Preprocess(), "0" * 32) == address
