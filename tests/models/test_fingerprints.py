"""Networks that no longer compute what they did, although weights and code are the same."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from stitchgrid.errors import InputError
from stitchgrid.models.cut_network import cut_network
from stitchgrid.models.fingerprint import (
    KIND,
    difference,
    from_json,
    identify,
    noise_input,
    summary,
    take_fingerprint,
    to_json,
    unregistered,
)

IMAGES = torch.rand(8, 3, 6, 6, generator=torch.Generator().manual_seed(0))
OTHERS = torch.rand(8, 3, 6, 6, generator=torch.Generator().manual_seed(1))


class Kept(dict):
    def has_artefact(self, kind, key):
        return (kind, key) in self

    def read_artefact(self, kind, key):
        return self[kind, key]

    def keep(self, contents):
        self.update({(KIND, key): content for key, content in contents.items()})


def net(*, scale=1.0, order=None):
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5))
    with torch.no_grad():
        module[0].weight.mul_(scale)
        if order is not None:
            module[4].weight.copy_(module[4].weight[order])
            module[4].bias.copy_(module[4].bias[order])
    return cut_network(module, (3, 6, 6))


def taken(network, images=IMAGES, nodes=("1",)):
    return take_fingerprint(network, nodes, images)[0]


def look_up(found, kept, *, as_another=False):
    return identify("plain", found, kept, name="it", tolerance=1e-3, as_another=as_another)


def register(found, kept):
    kept.keep(unregistered("plain", found, kept, tolerance=1e-3))


def test_summaries_are_those_of_numpy_whatever_the_memory_format():
    a = torch.randn(3, 4, 5, 6, generator=torch.Generator().manual_seed(2))
    told = summary(a)
    assert told.mean == pytest.approx(float(a.double().mean()), rel=1e-6)
    assert told.std == pytest.approx(float(a.numpy().astype("float64").std()), rel=1e-6)
    assert summary(a.contiguous(memory_format=torch.channels_last)) == told


def test_the_same_network_has_the_same_fingerprint():
    assert difference(taken(net()), taken(net())) is None
    assert from_json(to_json(taken(net()))) == taken(net())


def test_rounding_makes_no_other_network_and_a_thousandth_does():
    assert difference(taken(net()), taken(net(scale=1 + 1e-5))) is None
    told = difference(taken(net()), taken(net(scale=1.01)))
    assert "on noise its activations at '1' have mean" in told


def test_another_order_of_the_classes_is_another_network_though_no_moment_differs():
    told = difference(taken(net()), taken(net(order=[4, 3, 2, 1, 0])))
    assert "at '4'" in told
    assert "their numbers have other places" in told


def test_images_are_compared_only_where_both_looked_at_the_same():
    kept, found = taken(net()), taken(net(), OTHERS)
    assert kept.images_digest != found.images_digest
    assert difference(kept, found) is None


def test_the_first_network_has_the_plain_address_and_one_that_computes_something_else_is_refused():
    kept = Kept()
    assert look_up(taken(net()), kept)[0] == "plain"
    register(taken(net()), kept)
    assert look_up(taken(net()), kept)[0] == "plain"
    message = r"it no longer computes what it did: on noise .* environment variable .* --update"
    with pytest.raises(InputError, match=message):
        look_up(taken(net(scale=8.0)), kept)


def test_another_network_gets_an_address_that_its_content_decides_and_each_is_known_again():
    kept = Kept()
    register(taken(net()), kept)
    before = look_up(taken(net(scale=8.0)), kept, as_another=True)[0]
    assert before != "plain"
    register(taken(net(scale=8.0)), kept)
    assert look_up(taken(net(scale=8.0)), kept)[0] == before
    assert look_up(taken(net(scale=8.0 * (1 + 1e-6))), kept)[0] == before
    assert look_up(taken(net()), kept)[0] == "plain"
    elsewhere = Kept()
    register(taken(net(scale=2.0)), elsewhere)
    assert look_up(taken(net(scale=8.0)), elsewhere, as_another=True)[0] == before


def test_nothing_is_kept_twice_and_new_images_are_kept_of_a_known_network():
    kept = Kept()
    register(taken(net()), kept)
    assert unregistered("plain", taken(net()), kept, tolerance=1e-3) == {}
    register(taken(net(), OTHERS), kept)
    assert len(kept) == 2
    assert unregistered("plain", taken(net(), OTHERS), kept, tolerance=1e-3) == {}


def test_a_change_that_only_images_show_is_noticed_on_images_that_were_seen_before():
    kept = Kept()
    register(taken(net(), OTHERS), kept)
    register(taken(net()), kept)  # other images, the same noise
    changed = replace(taken(net()), images=taken(net(scale=8.0)).images)
    with pytest.raises(InputError, match="on the first evaluation images"):
        look_up(changed, kept)


def test_layers_that_only_one_of_two_jobs_selects_are_not_compared():
    kept = Kept()
    register(taken(net(), nodes=("0",)), kept)
    assert look_up(taken(net(), nodes=("1", "2")), kept)[0] == "plain"
    with pytest.raises(InputError, match="at '4'"):
        look_up(taken(net(scale=8.0), nodes=("1", "2")), kept)


def test_noise_is_always_the_same():
    assert torch.equal(noise_input((3, 6, 6)), noise_input((3, 6, 6)))


def test_a_network_is_known_for_each_size_of_images_by_itself():
    kept = Kept()
    register(taken(net()), kept)
    larger = cut_network(net().module, (3, 9, 9))
    found = taken(larger, torch.rand(8, 3, 9, 9))
    assert look_up(found, kept)[0] == "plain"
    register(found, kept)
    assert len(kept) == 2
