"""Labels of ImageNet, from timm."""

from __future__ import annotations

from contract.manifest import Label


def imagenet_labels() -> tuple[Label, ...]:
    """Returns the 1,000 labels of ImageNet-1k: the synset, and the first of its names."""
    from training.system.torch_compat import timm  # imports torch, which takes seconds

    info = timm().data.ImageNetInfo()
    return tuple(
        Label(index=index, name=info.index_to_description(index).split(",")[0], synset=synset)
        for index, synset in enumerate(info.label_names())
    )
