"""What commands do not load: it takes longer than what they do."""

import subprocess
import sys

import pytest
import torch
from click.testing import CliRunner
from helpers_flow import TINY_JOB
from torchvision.ops import roi_align
from torchvision.transforms import v2

from stitchgrid import vision
from stitchgrid.cli import cli
from stitchgrid.store import Store

HEAVY = ("torch._dynamo", "sklearn", "scipy.stats", "scipy.optimize", "ray", "matplotlib", "sympy")


def test_a_launch_loads_neither_compiler_nor_statistics(tmp_path):
    """Of cka on digits: images, networks, their cuts and operations, the values, and what is said of them.

    Twice: the second finds all that the first has computed. What computes is loaded before.
    """
    job, store = tmp_path / "job.toml", tmp_path / "grid"
    job.write_text(TINY_JOB)
    how = ["launch", str(job), "--store", str(store)]
    code = f"""
import contextlib, io, sys
def tell(): print(*[name for name in {HEAVY!r} if name in sys.modules], flush=True)
import stitchgrid.driver, stitchgrid.worker, stitchgrid.api.comparison
tell()
from stitchgrid.cli import cli
for _ in range(2):
    with contextlib.redirect_stdout(io.StringIO()):
        cli({how!r}, standalone_mode=False)
    tell()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "\n" * 3
    assert len(list((store / "parts/v1").iterdir())) == 1


def test_what_torchvision_asks_the_compiler_is_still_answered():
    boxes, maps = torch.tensor([[0.0, 1.0, 1.0, 6.0, 6.0]]), torch.rand(1, 2, 8, 8)
    here = roi_align(maps, boxes, output_size=3)
    code = (
        "import torch, sys; from stitchgrid import vision; from torchvision.ops import roi_align\n"
        "assert 'torch._dynamo' not in sys.modules\n"
        f"maps = torch.tensor({maps.tolist()}); boxes = torch.tensor({boxes.tolist()})\n"
        "with torch.no_grad(): print(roi_align(maps, boxes, output_size=3).tolist())\n"
        "from torch._dynamo.utils import is_compile_supported, counters\n"
        "print(torch.compile(lambda x: x + 1, backend='eager')(torch.zeros(1)).item())"
    )
    lines = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split("\n")
    assert torch.equal(torch.tensor(eval(lines[0])), here)
    assert lines[1] == "1.0"


@pytest.mark.parametrize("mode", list(vision.InterpolationMode)[:3])
@pytest.mark.parametrize("size", [[224, 224], [8, 8], [31, 50], [20]])
def test_images_are_resized_as_by_the_newer_transforms(mode, size):
    images = torch.rand(2, 3, 40, 33, generator=torch.Generator().manual_seed(0))
    assert torch.equal(
        vision.resize(images, size, interpolation=mode, antialias=True),
        v2.functional.resize(images, size, interpolation=mode, antialias=True),
    )
    assert torch.equal(vision.center_crop(images, size), v2.functional.center_crop(images, size))


@pytest.mark.parametrize(("command", "module"), [("launch", "run"), ("plan", "run"), ("bench", "bench")])
def test_work_says_that_it_has_begun_before_anything_heavy_is_loaded(command, module, tmp_path):
    """What is said first comes before torch is there; the images of the job are not."""
    (tmp_path / "job.toml").write_text(TINY_JOB.replace('"digits"', '"imagefolder"\nroot = "nowhere"'))
    what = str(tmp_path / "job.toml")
    code = (
        "import sys, stitchgrid.cli\n"
        f"module = sys.modules['stitchgrid.cli.{module}']\n"
        "begin = module.say_begin\n"
        "def told(what):\n"
        "    begin(what); print([m for m in ('torch', 'duckdb', 'pyarrow') if m in sys.modules])\n"
        "    raise SystemExit\n"
        "module.say_begin = told\n"
        "from stitchgrid.cli import cli\n"
        f"cli({[command, what, '--store', str(tmp_path / 'grid')]!r}, standalone_mode=False)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.splitlines()[0] == "[]"
    assert done.stderr.startswith("s: reading images and networks\n")


def test_a_sweep_that_is_not_there_is_said_before_anything_heavy_is_loaded(tmp_path):
    code = (
        "import sys; from click.testing import CliRunner; from stitchgrid.cli import cli\n"
        "from stitchgrid.store import Store\n"
        "def resume():\n"
        f"    done = CliRunner().invoke(cli, ['resume', 'jobb', '--store', {str(tmp_path / 'grid')!r}])\n"
        "    print('torch' in sys.modules, done.exit_code, done.output.strip())\n"
        f"resume(); Store.open({str(tmp_path / 'grid')!r}, create=True).write_job('job', {{}}); resume()"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.splitlines()
    assert [line[: len("False 1 Error: no store")] for line in said] == [
        "False 1 Error: no store",
        "False 1 Error: no sweep",
    ]
    assert "did you mean 'job'" in said[1]


@pytest.mark.parametrize("has_begun", [False, True])
def test_an_interrupt_says_whether_anything_is_kept(tmp_path, monkeypatch, has_begun):
    def interrupted(job, store, *_, **__):
        if has_begun:
            Store.open(store, create=True).write_job(job.name, {})
        raise KeyboardInterrupt

    monkeypatch.setattr("stitchgrid.api.launches.run_job", interrupted)
    (tmp_path / "job.toml").write_text(TINY_JOB)
    done = CliRunner().invoke(cli, ["launch", str(tmp_path / "job.toml"), "--store", str(tmp_path / "grid")])
    assert done.exit_code == 130
    again = "nothing was kept, as the sweep had not begun. Start again with the same command."
    assert ("what is finished is kept. Go on with: stitchgrid resume" if has_begun else again) in done.output


def test_images_that_are_not_there_are_said_before_anything_heavy_is_loaded(tmp_path):
    code = (
        "import sys; from click.testing import CliRunner; from stitchgrid.cli import cli\n"
        f"done = CliRunner().invoke(cli, ['init', {str(tmp_path / 'job.toml')!r}, '--source', 'torchvision:resnet18', "
        "'--target', 'torchvision:resnet34', '--images', 'nowhere', '--yes'])\n"
        "print('torch' in sys.modules, done.exit_code, done.output)"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert said.startswith("False 2 ")
    assert "no images 'nowhere': there is no such folder or file, and no data set of that name" in said
    assert not (tmp_path / "job.toml").exists()
