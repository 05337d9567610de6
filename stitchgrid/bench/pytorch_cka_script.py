"""CKA of all layer pairs by the package pytorch-cka: the average of an unbiased estimate over batches.

python pytorch_cka_script.py INPUTS OUT
"""

import json
import sys

import torch
from cka import compute_cka
from torch.utils.data import DataLoader

# networks: name -> (network, names of layers, images); pairs: (name of source, name of target)
networks, pairs = torch.load(sys.argv[1], weights_only=False)
values = []
for f, g in pairs:
    (source, layers, images), (target, target_layers, _) = networks[f], networks[g]
    loader = DataLoader(images, batch_size=100, drop_last=len(images) % 100 in range(1, 4))
    [found] = compute_cka(source, target, loader, layers=layers, model2_layers=target_layers, progress=False)
    values.append(found.tolist())
with open(sys.argv[2], "w") as file:  # noqa: PTH123
    json.dump(values, file)
