"""Training by a recipe."""

from dataclasses import dataclass, field, replace

import numpy as np
import pytest
import torch
from helpers_models import spec
from torch import Tensor, nn

from stitchgrid.errors import InputError, JobFileError, StitchgridError
from stitchgrid.models.training import train_network
from stitchgrid.models.weights import state_digest
from stitchgrid.records import Recipe


@dataclass
class Stripes:
    """Images of horizontal (0) and vertical (1) stripes under noise; remembers which were asked for."""

    num: int = 60
    labels: Tensor = None
    asked: list = field(default_factory=list)

    def __post_init__(self):
        generator = torch.Generator().manual_seed(0)
        if self.labels is None:
            self.labels = torch.arange(self.num) % 2
        horizontal = torch.arange(8).view(8, 1).expand(8, 8) % 4 < 2
        stripes = torch.stack([horizontal, horizontal.T])[torch.arange(self.num) % 2] * 100
        noise = torch.randint(0, 100, (self.num, 3, 8, 8), generator=generator)
        self.pixels = (stripes[:, None] + noise).to(torch.uint8)

    def batch(self, indices):
        self.asked.append(indices)
        return self.pixels[indices]


def preprocess(pixels):
    assert pixels.dtype == torch.uint8
    return pixels.float() / 127.5 - 1


RECIPE = Recipe(epochs=4, lr=0.05, batch_size=16)


def asked(recipe=RECIPE, seed=0, architecture="stitchgrid:resnet20", **args):
    return spec(architecture, recipe=recipe, seed=seed, **({"depth": 8, "width": 4, "num_classes": 2} | args))


def train(images=None, **kwargs):
    return train_network(asked(**kwargs), images or Stripes(), preprocess)


@pytest.mark.parametrize(
    "recipe",
    [
        RECIPE,
        replace(RECIPE, schedule="constant"),
        replace(RECIPE, optimizer="adam", lr=0.01, schedule="onecycle"),
        replace(RECIPE, optimizer="adamw", lr=0.01, augment="crop4_flip", epochs=8),
    ],
    ids=lambda recipe: f"{recipe.optimizer}-{recipe.schedule}-{recipe.augment}",
)
def test_a_network_learns_what_can_be_learnt_and_is_frozen(recipe):
    trained = train(recipe=recipe)
    assert trained.accuracy > 0.8
    assert trained.loss < 0.4
    trained.module.train()
    assert not trained.module.training
    assert not any(p.requires_grad for p in trained.module.parameters())
    images = Stripes()
    predicted = trained.module(preprocess(images.pixels)).argmax(1)
    assert (predicted == images.labels).float().mean() > 0.9


def dropout_network(num_classes=2):
    return nn.Sequential(nn.Flatten(), nn.Linear(192, 8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, num_classes))


def test_the_seed_decides_everything_and_the_global_generator_nothing():
    recipe = replace(RECIPE, epochs=1, augment="crop4_flip")
    where = {"architecture": f"{__name__}:dropout_network", "recipe": recipe, "depth": None, "width": None}

    def run(seed):
        kwargs = {key: value for key, value in where.items() if value is not None}
        named = replace(asked(seed=seed, **kwargs), args='{"num_classes":2}')
        return state_digest(train_network(named, Stripes(), preprocess).module)

    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    first = run(seed=3)
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(2)
    assert run(seed=3) == first
    assert run(seed=4) != first


def test_every_image_is_seen_once_an_epoch_in_a_new_order():
    images = Stripes(num=37)
    train(images, recipe=replace(RECIPE, epochs=2))
    steps = images.asked[1:]  # the first asks how many outputs the head has
    first, second = torch.cat(steps[:3]), torch.cat(steps[3:])
    assert len(steps) == 6
    assert first.sort().values.tolist() == second.sort().values.tolist() == list(range(37))
    assert first.tolist() != second.tolist() != list(range(37))
    assert {len(step) for step in steps} == {12, 13}


def learning_rates(monkeypatch, schedule, num_epochs=3):
    rates = []
    step = torch.optim.SGD.step

    def noted(self, *args, **kwargs):
        rates.append((self.param_groups[0]["lr"], self.param_groups[0]["momentum"]))
        return step(self, *args, **kwargs)

    monkeypatch.setattr(torch.optim.SGD, "step", noted)
    train(Stripes(num=32), recipe=replace(RECIPE, epochs=num_epochs, schedule=schedule, lr=0.1, momentum=0.8))
    assert all(momentum == 0.8 for _, momentum in rates)
    return [rate for rate, _ in rates]


def test_schedules_are_what_they_are_called(monkeypatch):
    assert learning_rates(monkeypatch, "constant") == [0.1] * 6
    monkeypatch.undo()
    cosine = [0.05 * (1 + np.cos(np.pi * step / 6)) for step in range(6)]
    assert learning_rates(monkeypatch, "cosine") == pytest.approx(cosine)
    monkeypatch.undo()
    onecycle = learning_rates(monkeypatch, "onecycle", num_epochs=10)
    assert max(onecycle) == pytest.approx(0.1, rel=0.02)
    assert onecycle[0] == pytest.approx(0.1 / 25)
    assert onecycle[-1] < 1e-4


def test_one_step_is_a_training_too():
    for schedule in ("constant", "cosine", "onecycle"):
        trained = train(Stripes(num=10), recipe=replace(RECIPE, epochs=1, schedule=schedule))
        assert np.isfinite(trained.loss)


def test_weight_decay_reaches_the_optimiser():
    light, heavy = (train(recipe=replace(RECIPE, weight_decay=decay)).module for decay in (0.0, 0.5))
    norms = [sum(p.square().sum() for p in module.parameters()) for module in (light, heavy)]
    assert norms[1] < 0.5 * norms[0]


def test_progress_is_reported_once_an_epoch():
    reports = []
    trained = train_network(asked(), Stripes(), preprocess, on_epoch=lambda *report: reports.append(report))
    assert [number for number, _, _ in reports] == [1, 2, 3, 4]
    assert reports[-1][1:] == (trained.loss, trained.accuracy)
    assert reports[-1][1] < reports[0][1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"optimizer": "adma"}, "unknown optimizer 'adma'; did you mean 'adam"),
        ({"schedule": "cosin"}, "unknown schedule 'cosin'; did you mean 'cosine'"),
        ({"augment": "crop_flip"}, "unknown augment 'crop_flip'; did you mean 'crop4_flip'"),
    ],
)
def test_an_unknown_word_of_a_recipe_is_refused(change, message):
    with pytest.raises(JobFileError, match=message):
        train(recipe=replace(RECIPE, **change))


@pytest.mark.parametrize("labels", [[0, 1, 5], [0, -1, 5]])
def test_labels_outside_the_heads_range_are_refused(labels):
    images = Stripes(num=3, labels=torch.tensor(labels))
    with pytest.raises(
        InputError,
        match=rf"labels run from {min(labels)} to 5, but the head of 'net' has 2 outputs; set num_classes = 6",
    ):
        train(images)


def test_a_training_whose_loss_is_not_finite_is_stopped_and_says_where():
    recipe = replace(RECIPE, lr=1e30, schedule="constant")
    with pytest.raises(
        StitchgridError,
        match=r"the loss of training 'net' is (nan|inf) at step \d of epoch 1; lower .* \(now 1e\+30\)",
    ) as caught:
        train(recipe=recipe)
    assert caught.value.exit_code == 1
