import onnx

from training.export.edits import finish_graph, normalisation_nodes, prepare_graph


def without_names(graph):
    """Returns the graph as some exporters write it: no node has a name."""
    model = onnx.load_model_from_string(graph)
    for node in model.graph.node:
        node.ClearField("name")
    return model.SerializeToString()


def test_normalisation_nodes_are_those_before_the_first_convolution(tiny_graph):
    graph = onnx.load_model_from_string(tiny_graph).graph

    operators = {node.name: node.op_type for node in graph.node}
    assert [operators[name] for name in normalisation_nodes(graph)] == [
        "Transpose",
        "Reshape",  # without it onnxruntime would move the permutation behind the arithmetic
        "Cast",
        "Mul",
        "Add",
        "Reshape",
    ]


def test_prepare_graph_gives_unnamed_nodes_unique_names(tiny_graph):
    nodes = prepare_graph(without_names(tiny_graph)).graph.node

    names = [node.name for node in nodes]
    assert all(names)
    assert len(set(names)) == len(names)


def test_finish_graph_removes_doc_strings(tiny_graph):
    model = onnx.load_model_from_string(tiny_graph)
    model.doc_string = model.graph.node[0].doc_string = "made in /home/me"

    assert b"/home/me" not in finish_graph(model)
