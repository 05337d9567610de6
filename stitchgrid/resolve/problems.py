"""Problems of a job that show once its networks and images are known."""

from collections.abc import Mapping, Sequence
from itertools import product

from stitchgrid.datasets import Images
from stitchgrid.jobfile import Job
from stitchgrid.live_networks import live_name
from stitchgrid.matchers.evidence import FEWEST_PER_GROUP
from stitchgrid.matchers.protocol import About
from stitchgrid.matchers.registry import MATCHERS, default_metrics, images_used, implementation, kind_of, needs_no_tail
from stitchgrid.models.features import has_fit_rows
from stitchgrid.records import Network
from stitchgrid.store.table_checks import MOST_ROWS


def problems_of_samples(job: Job, images: Images) -> list[str]:
    """Return the entries that ask for more images than there are."""
    fit, evaluation = ("fit", images.fit.num, job.data.fit.split), ("evaluation", images.eval.num, job.data.eval.split)
    asked = []
    for position, matcher in enumerate(job.matchers):
        role = fit if MATCHERS[matcher.kind].family == "stitcher" else evaluation
        asked.append((f"matchers[{position}].samples", matcher.kind, matcher.samples, role))
    if job.probes is not None:
        asked.append(("probes.samples", "a probe", job.probes.samples, fit))
    if job.energy_recipe() is not None:
        asked.append(("diagnostics.energy.samples", "a detector", job.diagnostics.energy.samples, fit))
    return [
        f"{where}: {who} asks for {samples} {role} images, and split {split!r} has {num}; lower it"
        + (', or write "all"' if who != "a probe" else "")
        for where, who, samples, (role, num, split) in asked
        if isinstance(samples, int) and samples > num
    ]


def problems_of_evidence(job: Job, images: Images) -> list[str]:
    """Return the problems of intervals: groups with so few images that values without one group are undefined."""
    groups = job.intervals.groups
    if groups is None:
        return []
    short: dict[int, dict[str, None]] = {}  # by number of images
    for spec in job.matcher_specs(num_fit=images.num_fit_listed):
        _, num = images_used(spec, num_fit=images.fit.num, num_fit_closed=images.fit.num, num_eval=images.eval.num)
        kept = num - -(-num // groups)
        if num < FEWEST_PER_GROUP * groups or kept < implementation(spec).fewest_images:
            short.setdefault(num, {})[spec.kind] = None
    return [
        f"intervals.groups: {num} evaluation images ({', '.join(kinds)}) cannot be divided into {groups} groups of "
        f"{FEWEST_PER_GROUP} or more, each of which can be left out; ask for fewer groups, or for more images"
        for num, kinds in short.items()
    ]


def problems_of_kinds(job: Job, networks: Sequence[Network], images: Images) -> list[str]:
    """Return the matchers that have too few images, or that cannot compare any two layers of the job."""
    found = []
    by_name = {network.name: network for network in networks}
    names = [spec.name for spec in job.network_specs()]
    known = [(by_name[names[f]], by_name[names[g]]) for f, g in job.pairs() if {names[f], names[g]} <= by_name.keys()]
    alike = dict.fromkeys((f.layers, g.layers) for f, g in known)  # networks of many seeds are looked at once
    for position, matcher in enumerate(job.matchers):
        about, kind = MATCHERS[matcher.kind], kind_of(matcher.kind)(matcher.params)
        num = matcher.samples if isinstance(matcher.samples, int) and about.family == "index" else images.eval.num
        if matcher.samples is None:
            num = min(num, about.most_images or num)
        if num < kind.fewest_images:
            found.append(f"matchers[{position}]: {about.kind} needs {kind.fewest_images} images at least, got {num}")
        reasons = (kind.why_not(*layers) for f, g in alike for layers in product(f, g))
        first = next(reasons, None)
        if first and all(reasons):
            found.append(
                f"matchers[{position}]: {first}; this holds for all layer pairs of the job: leave the matcher out"
            )
        pairs = (layers for f, g in alike for layers in product(f, g) if kind.why_not(*layers) is None)
        if missing := next(filter(None, (kind.not_installed(*layers) for layers in pairs)), None):
            found.append(f"matchers[{position}]: {missing}")
    return found


def problems_of_size(job: Job, networks: Sequence[Network]) -> list[str]:
    """Return that the job has more cells than one sweep of a store can hold."""
    num_layers = {network.name: len(network.layers) for network in networks}
    by_position = [num_layers.get(spec.name, 0) for spec in job.network_specs()]
    num = len(job.matcher_specs()) * sum(by_position[f] * by_position[g] for f, g in job.pairs())
    if num <= MOST_ROWS:
        return []
    return [
        f"it has {num:,} cells, and one sweep holds {MOST_ROWS:,} at most; take fewer layers, or divide the pairs "
        "([grid] pairs) among several jobs with one store"
    ]


def problems_of_features(job: Job, networks: Sequence[Network], images: Images) -> list[str]:
    """Return what a job asks of features that they cannot give: they have no tail to run, and their rows are fixed."""
    names = {network.name for network in networks if network.spec.is_features}
    if not names:
        return []
    specs, matchers, found = job.network_specs(), job.matcher_specs(), []
    sources, targets = ([name for f, g in job.pairs() if (name := specs[(f, g)[k]].name) in names] for k in (0, 1))
    stitchers = {spec.kind: spec for spec in matchers if MATCHERS[spec.kind].family == "stitcher"}
    alone = "use it as a source alone ([grid] pairs)"
    for name in dict.fromkeys(targets):
        if trained := [kind for kind in stitchers if MATCHERS[kind].is_trained]:
            found.append(
                f"model {name!r} is features: no network lies behind its layers, so {', '.join(trained)} cannot be "
                f"trained through it; {alone}, or leave these matchers out"
            )
        for spec in stitchers.values():
            tail = [metric for metric in spec.metrics if not needs_no_tail(spec.kind, metric)]
            is_asked = spec.metrics != default_metrics(spec.kind) and not MATCHERS[spec.kind].is_trained
            if tail and is_asked:
                found.append(
                    f"model {name!r} is features: no network lies behind its layers, so {', '.join(tail)} of "
                    f"{spec.kind} into it cannot be measured; residual and r2 can: set metrics, or {alone}"
                )
    if sources and (some := [spec.kind for spec in matchers if spec.values.get("augment", "none") != "none"]):
        found.append(
            f"model {sources[0]!r} is features of the images as they are, and {some[0]} augments them; set "
            'augment = "none", or take it out of the sources ([grid] pairs)'
        )
    needs_fit = bool(stitchers) or job.probes is not None or any(spec.rank for spec in matchers)
    for network in networks:
        if network.name in names and needs_fit and images.fit.num and not has_fit_rows(network.spec, images):
            found.append(
                f"model {network.name!r} has features of split {job.data.eval.split!r} alone, and maps, probes and "
                f"ranks are fitted on split {job.data.fit.split!r}; add its features, or ask for indices alone"
            )
    return found


def problems_of_labels(job: Job, networks: Sequence[Network], images: Images) -> list[str]:
    """Return the reasons against labels that no network has, and against stitching into networks of other classes."""
    if wrong := _wrong_labels(networks, images):
        return [wrong]
    specs, num_classes = job.network_specs(), images.num_classes
    targets = {specs[target].name for _, target in job.pairs()}
    kinds = {spec.kind: MATCHERS[spec.kind] for spec in job.matcher_specs()}
    stitchers = [kind for kind, matcher in kinds.items() if matcher.family == "stitcher"]
    if job.data.labels in ("agreement", "none"):
        stitchers = [kind for kind in stitchers if kinds[kind].needs_labels]
        way_out = '; labels = "agreement" needs no labels, except for kinds that are trained on them.'
    else:
        way_out = ', or set labels = "agreement" in [data], to report its agreement alone.'
    alone = "use it as a source alone ([grid] pairs)"
    if _are_live(networks):  # the user wrote no job
        way_out, alone = ", or give labels=False, to report its agreement alone.", "use it as a source alone (`pairs`)"
    found: list[str] = []
    for network in networks:
        if network.is_labelled or network.name not in targets or network.spec.is_features:
            continue
        if not network.head.has_classes:
            found += _problems_without_classes(network, kinds)
            continue
        if not stitchers:
            continue
        has_any_head = network.spec.is_untrained or network.spec.recipe
        other_head = f"give it num_classes = {num_classes} in args, or " if has_any_head else ""
        found.append(
            f"model {network.name!r}: the images have {num_classes} classes, the network {network.num_classes}, so "
            f"that {', '.join(stitchers)} into it cannot be compared with labels; {other_head}{alone}{way_out}"
        )
    return found


def notice_of_labels(job: Job, networks: Sequence[Network], images: Images) -> str | None:
    """Return a sentence if the images have classes, but not those of any network; None otherwise."""
    if job.data.labels != "classes" or (num := _most_classes(networks, images)) is None:
        return None
    return (
        f"the images have {images.num_classes} classes, and the networks {num}: no network is measured against the "
        "labels, so accuracies are left out"
    )


def _wrong_labels(networks: Sequence[Network], images: Images) -> str | None:
    """Return what is wrong with labels that are numbers without names, given from Python; None if nothing is."""
    num = _most_classes(networks, images) if images.may_know_more and _are_live(networks) else None
    if num is None:
        return None
    labels = [split.labels for split in (images.fit, images.eval) if split.num]
    lowest, highest = min(int(one.min()) for one in labels), max(int(one.max()) for one in labels)
    return (
        f"labels must be whole numbers from 0 to {num - 1}, as no network has more than {num} classes; they go from "
        f"{lowest} to {highest}. Give the position of each image's class among the scores, or labels=False to compare "
        "without labels."
    )


def _most_classes(networks: Sequence[Network], images: Images) -> int | None:
    """Return the largest number of classes of a network; None if a network has those of the images, or none has any."""
    own = [network for network in networks if network.head.has_classes and not network.spec.is_features]
    if not images.is_labelled or not own or any(network.is_labelled for network in networks):
        return None
    return max(network.num_classes for network in own)


def _are_live(networks: Sequence[Network]) -> bool:
    return any(live_name(network.spec.architecture) is not None for network in networks)


def _problems_without_classes(network: Network, kinds: Mapping[str, About]) -> list[str]:
    """Return the reasons against training maps on labels into a network without classes."""
    trained = [kind for kind, matcher in kinds.items() if matcher.needs_labels]
    if not trained:
        return []
    return [
        f"model {network.name!r} has no classes (its head is {network.head.kind!r}), so {', '.join(trained)} into it "
        "cannot be trained on labels; use it as a source alone ([grid] pairs), or leave these matchers out."
    ]
