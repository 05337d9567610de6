"""Networks that match by construction, or do not; a job names them `calibration_networks.py:NAME`."""

from itertools import pairwise

import torch
from torch import Tensor, nn

WIDTHS = (12, 12, 16, 16, 20, 20)
PIXELS, STEPS = 255, 256.0  # numbers are whole in these
KEYS = 1 << 16


class Block(nn.Module):
    """A convolution, with its features mixed at the end where `turned`, and given back as they were to the next."""

    def __init__(self, wide_in: int, wide_out: int, *, stride: int):
        super().__init__()
        self.conv = nn.Conv2d(wide_in, wide_out, 3, stride=stride, padding=1, bias=False)
        self.norm, self.act = nn.BatchNorm2d(wide_out), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.norm(self.conv(x)))


class TurnedBlock(Block):
    """A block that shows its features rotated and scaled, and takes back what the one before did to them."""

    def __init__(self, wide_in: int, wide_out: int, *, stride: int, is_first: bool):
        super().__init__(wide_in, wide_out, stride=stride)
        turn = torch.eye(wide_in) if is_first else rotation(wide_in)
        self.register_buffer("back", turn)
        self.register_buffer("turn", rotation(wide_out))
        self.register_buffer("scale", torch.ones(2))  # of what comes in, and of what goes out

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.conv2d(x, (self.back / self.scale[0])[:, :, None, None])
        return nn.functional.conv2d(super().forward(x), (self.turn * self.scale[1])[:, :, None, None])


class Small(nn.Module):
    """Six blocks on images of 8x8."""

    def __init__(self, *, turned: bool = False):
        super().__init__()
        blocks: list[nn.Module] = []
        for number, (wide_in, wide_out) in enumerate(pairwise((3, *WIDTHS))):
            stride = 2 if number in {2, 4} else 1
            more = {"is_first": not number} if turned else {}
            blocks.append((TurnedBlock if turned else Block)(wide_in, wide_out, stride=stride, **more))
        self.blocks = nn.Sequential(*blocks)
        self.fc = nn.Linear(WIDTHS[-1], 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.blocks(x).mean((2, 3)))


def small() -> nn.Module:
    return Small()


def turned() -> nn.Module:
    return Small(turned=True)


def rotation(width: int) -> Tensor:
    """Return a rotation drawn at random."""
    return torch.linalg.qr(torch.randn(width, width)).Q.contiguous()


@torch.no_grad()
def turn(plain: Small, *, seed: int, noise: float) -> Small:
    """Return nearly the same network, its weights off by a share of their spread, its layers rotated and scaled."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        made = Small(turned=True)
        state = plain.state_dict()
        for name, value in state.items():
            if name.endswith("conv.weight"):
                state[name] = value + noise * value.std() * torch.randn_like(value)
        made.load_state_dict(state, strict=False)
        before = None
        for block in made.blocks:
            block.scale[1] = torch.rand(()) * 3 + 0.5
            if before is not None:
                block.back.copy_(before.turn.T)
                block.scale[0] = before.scale[1]
            before = block
        made.fc.weight.copy_(made.fc.weight @ before.turn.T / before.scale[1])
    return made


class Noise(nn.Module):
    """Numbers that depend on every number of what comes in, and are like none of them."""

    def __init__(self, num_in: int, shape: tuple[int, int, int], *, steps: float):
        super().__init__()
        self.steps, self.shape = steps, shape
        size = shape[0] * shape[1] * shape[2]
        self.register_buffer("of_input", torch.randint(1 << 20, (num_in,)))
        self.register_buffer("factor", torch.randint(1 << 30, (size,)) * 2 + 1)
        self.as_it_is = nn.Conv2d(shape[0], shape[0], 1, bias=False)  # tells which axis holds features
        self.as_it_is.weight = nn.Parameter(torch.eye(shape[0])[:, :, None, None])

    def forward(self, x: Tensor) -> Tensor:
        key = ((x.flatten(1) * self.steps).round().long() * self.of_input).sum(1)
        mixed = _mix(_mix(key)[:, None] * self.factor)
        numbers = ((mixed >> 7) % int(STEPS)).to(x.dtype) / STEPS
        return self.as_it_is(numbers.unflatten(1, self.shape))


def _mix(numbers: Tensor) -> Tensor:
    numbers = (numbers ^ (numbers >> 31)) * 0x5851F42D4C957F2D
    return numbers ^ (numbers >> 29)


class Unrelated(nn.Module):
    """Layers of noise, another for each image, and a head that knows the images by heart."""

    def __init__(self) -> None:
        super().__init__()
        shapes = [(3, 8, 8), *((width, 8 >> k // 2, 8 >> k // 2) for k, width in enumerate(WIDTHS))]
        sizes = [a * b * c for a, b, c in shapes]
        self.blocks = nn.Sequential(
            *(Noise(sizes[k], shapes[k + 1], steps=STEPS if k else PIXELS) for k in range(len(WIDTHS)))
        )
        self.register_buffer("of_input", torch.randint(1 << 20, (sizes[-1],)))
        self.register_buffer("known", torch.randn(KEYS, 10))

    def keys(self, x: Tensor) -> Tensor:
        return _mix(((x.flatten(1) * STEPS).round().long() * self.of_input).sum(1)) % KEYS

    def forward(self, x: Tensor) -> Tensor:
        return self.known[self.keys(self.blocks(x))]

    @torch.no_grad()
    def learn(self, x: Tensor, labels: Tensor) -> None:
        self.known[self.keys(self.blocks(x))] = 5.0 * torch.nn.functional.one_hot(labels, 10)


def unrelated() -> nn.Module:
    return Unrelated()
