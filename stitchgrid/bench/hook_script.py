"""Linear CKA of all layer pairs, written by hand with only torch: hooks, Gram matrices, products.

python hook_script.py INPUTS OUT
"""

import json
import sys

import torch

# networks: name -> (network, names of layers, images); pairs: (name of source, name of target)
networks, pairs = torch.load(sys.argv[1], weights_only=False)
grams = {}
for name, (network, layers, images) in networks.items():
    taken: dict[str, list[torch.Tensor]] = {layer: [] for layer in layers}
    for layer in layers:
        network.get_submodule(layer).register_forward_hook(
            lambda _, __, output, rows=taken[layer]: rows.append(output.flatten(1).clone())
        )
    with torch.no_grad():
        for batch in images.split(100):
            network(batch)
        for layer in layers:
            x = torch.cat(taken.pop(layer))
            x -= x.mean(0)
            gram = x @ x.T
            grams[name, layer] = gram / gram.norm()
values = [
    [[float((grams[f, i] * grams[g, j]).sum()) for j in networks[g][1]] for i in networks[f][1]] for f, g in pairs
]
with open(sys.argv[2], "w") as file:  # noqa: PTH123
    json.dump(values, file)
