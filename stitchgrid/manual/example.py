# %% [markdown]
# # Two networks, compared in a notebook
#
# Two small networks learn the digits that ship with scikit-learn. Then: which layers of the one can be computed from
# layers of the other, and how sure is that? Cells begin with `# %%`; editors run them one by one, and
# `python example.py` runs all, in a folder of your choice: files are written where it runs. It takes about a minute.

# %%
from pathlib import Path

import stitchgrid as sg

# %% [markdown]
# A job names the images, the networks and the matchers. `weights = { train = "short" }` has networks trained first; of
# your own networks it is the path of a checkpoint, and `architecture` is `"nets.py:function"`.

# %%
JOB = """
name = "example"

[data]
dataset = "digits"
fit  = { split = "train", samples = 300 }
eval = { split = "test", samples = 200 }

[[models]]
name = "net"
architecture = "stitchgrid:resnet20"
args = { depth = 8, width = 4 }
weights = { train = "short" }
seeds = [0, 1]                     # two networks: net/0 and net/1

[recipes.short]
epochs = 3
lr = 0.1
schedule = "onecycle"

[grid]
pairs = [["net/0", "net/1"]]

[[matchers]]
kind = "direct"

[[matchers]]
kind = "cka_unbiased"

[controls]
untrained = true
shuffled = 20

[intervals]
groups = 10
"""
Path("example.toml").write_text(JOB)

# %% [markdown]
# `address="none"` computes in this process. Launched again, nothing is computed twice.

# %%
run = sg.launch("example.toml", store="grid", address="none")
run.networks

# %% [markdown]
# Answers: for each layer of `net/1` the best layer of `net/0`, with a verdict and the checks behind it.

# %%
answers = list(run.answer(target="net/1", matcher="direct"))
for answer in answers:
    print(answer.sentence)

# %% [markdown]
# All values as a table (pandas here; `.pl()` is Polars, `.arrow()` Arrow), a matrix with labels, and SQL.

# %%
table = run.results().df()
table[["source_layer", "target_layer", "matcher", "metric", "value", "low", "high"]].head()

# %%
matrix = run.matrix("net/0", "net/1", "direct")
matrix.plot()

# %%
run.sql("select target_layer, source_layer, verdict from answers where matcher = 'cka_unbiased'").df()

# %% [markdown]
# The atlas is a page with heat maps of all pairs; in a notebook it shows itself.

# %%
run.atlas().save("example.html")

# %% [markdown]
# Indices and stitchers in closed form take plain arrays, too: rows are images, columns features.

# %%
import numpy as np  # noqa: E402

x, y = np.random.default_rng(0).normal(size=(2, 200, 16))
print(sg.measures.cka(x, y), sg.measures.cka_unbiased(x, y))  # noise: only the unbiased one is near 0
