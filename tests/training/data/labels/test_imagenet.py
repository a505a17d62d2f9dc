from contract.manifest import Label
from training.data.labels.imagenet import imagenet_labels


def test_imagenet_labels_are_in_the_networks_order():
    labels = imagenet_labels()

    assert len(labels) == 1000
    assert labels[293] == Label(index=293, name="cheetah", synset="n02130308")
    assert labels[0].name == "tench"
    assert labels[999].name == "toilet tissue"


def test_imagenet_labels_that_share_a_name_differ_in_synset():
    cranes = [label for label in imagenet_labels() if label.name == "crane"]

    assert len({label.synset for label in cranes}) == 2
