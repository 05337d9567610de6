"""Remarks on a network wherever it is shown: that it is untrained, at chance, refused, or orders classes otherwise."""

from collections.abc import Mapping, Sequence
from typing import Any

from stitchgrid.datasets import natural_order
from stitchgrid.models.cut_network import types_notice, way_notice
from stitchgrid.models.versions import library_versions
from stitchgrid.printable import first_few
from stitchgrid.records import NO_HEAD, Head, Network, Preprocess

SHOWN = 12  # classes named in an order


def network_remarks(
    network: Network, found: Mapping[str, Any] | None, class_names: Sequence[str], *, precision: str
) -> list[str]:
    """Return sentences about one network, without its name; none where there is nothing to say.

    Args:
        network: The network.
        found: The network's evaluation, None where it was not measured yet.
        class_names: The classes of the images, by label.
        precision: The precision in which the job runs networks.
    """
    remarks = []
    if problem := problem_of(found):
        remarks.append(f"cannot be measured: {problem}")
    if network.spec.is_twin:  # its name says that it is untrained, and hence at chance
        return remarks
    if network.spec.is_untrained:
        remarks.append("untrained: its weights are those of its initialisation")
    if network.head != Head() and not (found and network.spec.is_features):  # `found` has a remark about features
        remarks.append(_head(network.head))
    notices = way_notice("it", network.way), types_notice("it", network.types, precision)
    remarks += [notice for notice in notices if notice is not None]
    if found is None:
        return remarks
    if found.get("is_at_chance"):
        remarks.append(
            f"at chance: accuracy {found['accuracy']:.3f} on {len(class_names)} classes, where guesses without the "
            f"images reach {found['chance']:.3f}{_unprepared(network)}"
        )
    if found.get("order") and len(found["order"]["classes"]) == len(class_names):
        remarks.append(_order(found["order"], found["accuracy"], class_names))
    return [*remarks, *found.get("remarks", ())]


def problem_of(found: Mapping[str, Any] | None) -> str | None:
    """Return why a network is refused, None if it is not."""
    return "; ".join((found or {}).get("problems", ())) or None


def versions_changed(network: Network, found: Mapping[str, Any] | None) -> str | None:
    """Return a sentence on libraries whose versions differ from those a network was proven with; None without any."""
    before: Mapping[str, str] = (found or {}).get("libraries", {})
    now = library_versions(network.spec) if before else {}
    changed = [
        f"{name} {before.get(name, 'not there')} then, {now.get(name, 'not there')} here"
        for name in sorted(before.keys() | now.keys())
        if before.get(name) != now.get(name)
    ]
    if not changed:
        return None
    return (
        f"was measured with other versions of libraries ({'; '.join(changed)}); by its fingerprint it computes the same"
    )


def _unprepared(network: Network) -> str:
    """Return a hint at a frequent cause of wrong answers: nothing says how the network's images are prepared."""
    if network.spec.is_features or network.preprocess != Preprocess(channels=network.preprocess.channels):
        return ""
    return "; no `preprocess` is given for it: images must be prepared as in its training (resize, crop, mean and std)"


def _head(head: Head) -> str:
    kinds = {
        "logits": "its scores are logits",
        "probabilities": "its scores are probabilities: its loss is from their logarithm",
        "binary": "its one score decides between two classes by its sign",
        "multilabel": "its scores say yes or no for each class",
        "regression": "its outputs are numbers, not classes",
        "embedding": "its outputs are an embedding, not classes",
        NO_HEAD: "activations from files: no network lies behind its layers",
    }
    is_sigmoid = head.is_probability and head.kind in ("binary", "multilabel")
    return kinds[head.kind] + (", read as a probability (yes from 0.5 on)" if is_sigmoid else "")


def _order(order: Mapping[str, Any], accuracy: float, class_names: Sequence[str]) -> str:
    """Return the accuracy under another order of the classes, and what to write into the job, in words."""
    meant = [class_names[label] for label in order["classes"]]
    as_labelled = f"accuracy {accuracy:.3f} as labelled, {order['accuracy']:.3f} if its classes are in"
    natural = [class_names[label] for label in natural_order(class_names)]
    if all(one == other for one, other, is_seen in zip(meant, natural, order["is_seen"], strict=True) if is_seen):
        told = f"{as_labelled} natural order ({first_few(meant, SHOWN)})"
        return f'{told}: set class_order = "natural" in [data] if they are'
    named = first_few([repr(name) for name in meant], SHOWN)
    return f"{as_labelled} another order: set classes = [{named}] in [data] if they are"
